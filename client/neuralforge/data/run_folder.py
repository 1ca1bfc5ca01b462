"""Where a run keeps what belongs to it alone: checkpoints, metrics, the examples that were held out."""

from pathlib import Path

HELD_OUT_FILE = "held-out.jsonl"


def run_folder(output: Path, adapter_name: str) -> Path:
    """The folder of the run that makes `<output>/<adapter_name>.lora`, beside it."""
    return output / ".neuralforge" / adapter_name
