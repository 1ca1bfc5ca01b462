"""Code to evaluate on where a person names none."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

from neuralforge.data.dataset import build_dataset
from neuralforge.data.example import Example
from neuralforge.data.jsonl import read_examples
from neuralforge.data.run_folder import HELD_OUT_FILE, run_folder
from neuralforge.data.source import join_sources, read_source_tree

_MODULES = ("textwrap.py", "shlex.py", "calendar.py", "fractions.py", "queue.py", "configparser.py")


@dataclass(frozen=True, slots=True)
class Samples:
    """Examples and, for the person, where they come from."""

    examples: tuple[Example, ...]
    origin: str


def samples_for(adapter: Path, test_file: Path | None, *, limit: int) -> Samples:
    """The file that was named; else what the adapter's own training held out; else Python's standard library."""
    if test_file is not None:
        return Samples(tuple(read_examples(test_file))[:limit], str(test_file))
    name = adapter.resolve().name.removesuffix(".lora")
    held_out = run_folder(adapter.resolve().parent, name) / HELD_OUT_FILE
    if held_out.is_file():
        return Samples(tuple(read_examples(held_out))[:limit], "what its training held out")
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = [read_source_tree(library / name) for name in _MODULES if (library / name).is_file()]
    dataset = build_dataset(join_sources(modules), eval_fraction=0.0, max_samples=limit, seed=0)
    return Samples(dataset.train, "Python's standard library (name a --test-file for your own code)")
