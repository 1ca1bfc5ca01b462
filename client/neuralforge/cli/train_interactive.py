"""`train --interactive`: ask for what a first run needs."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.prompt import Prompt

from neuralforge.cli.train_settled import resolve
from neuralforge_common.config.load import flatten
from neuralforge_common.errors import ConfigError


def interactive(file: str | None, overrides: dict[str, object]) -> dict[str, object]:
    """Ask for what a first run needs and nobody has given; answers stand beside what the command line gave."""
    if not sys.stdin.isatty():
        raise ConfigError(["--interactive needs a terminal to ask at"], hint="give the options on the command line")
    resolved = resolve(file, overrides)
    given = {key for key, origin in resolved.origins.items() if origin.kind != "default"}
    answers = dict(overrides)
    if not {"dataset.from_git", "dataset.train_file", "dataset.sources"} & given:
        place = Path(_ask("Learn from which repository, folder or .jsonl file?", default=".")).expanduser()
        if place.is_file():
            answers["dataset.train_file"] = str(place)
        elif (place / ".git").exists():
            answers["dataset.from_git"] = str(place)
        else:
            answers["dataset.sources"] = [str(place)]
    questions = {
        "model.base": "Which base model?",
        "model.adapter_name": "A name for the adapter?",
        "training.epochs": "How many epochs?",
    }
    defaults = flatten(resolved.config)
    return answers | {
        key: _ask(question, default=str(defaults[key])) for key, question in questions.items() if key not in given
    }


def _ask(question: str, *, default: str) -> str:
    try:
        return Prompt.ask(question, default=default)
    except (EOFError, KeyboardInterrupt):  # Ctrl-D, Ctrl-C: whoever was asked has gone
        print()  # the cursor still stands behind the question
        raise KeyboardInterrupt from None
