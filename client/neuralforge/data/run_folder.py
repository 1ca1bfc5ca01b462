"""Where a run keeps what belongs to it alone: checkpoints, metrics, held-out examples, what earlier sessions left."""

from pathlib import Path

HELD_OUT_FILE = "held-out.jsonl"
METRICS_FILE = "metrics.jsonl"
CONTINUAL = "continual"
REPLAY = "replay"
LANGUAGES = "languages"


def run_folder(output: Path, adapter_name: str) -> Path:
    """The folder of the run that makes `<output>/<adapter_name>.lora`, beside it."""
    return output / ".neuralforge" / adapter_name


def languages_folder(adapter: Path) -> Path:
    """Where the adapters are that sessions in blocks of their own make for single languages."""
    return run_folder(adapter.parent, adapter.name.removesuffix(".lora")) / LANGUAGES


def continual_folder(adapter: Path) -> Path:
    """What the sessions of an adapter `<output>/<name>.lora` have left for the next one."""
    adapter = adapter.absolute()
    return run_folder(adapter.parent, adapter.name.removesuffix(".lora")) / CONTINUAL


def replay_folder(place: Path) -> Path:
    """The replay buffer that belongs to an adapter `<output>/<name>.lora`; any other folder is one itself."""
    return continual_folder(place) / REPLAY if place.suffix == ".lora" else place.absolute()
