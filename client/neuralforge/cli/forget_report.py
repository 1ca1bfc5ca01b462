"""`forget-report`: how an adapter still does on what each of its sessions has held out."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuralforge.continual.forgetting import Kept
    from neuralforge.continual.history import Session

NAME = "forget-report"
SUMMARY = "Show the held-out loss on every earlier session's data, right after it was learnt and now."
EXAMPLES = """\
  neuralforge forget-report ./my-adapter.lora
  neuralforge forget-report ./my-adapter.lora --key-file ~/.neuralforge/replay.key
  neuralforge forget-report ./my-adapter.lora --json > forgetting.json"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("adapter", type=Path, help="the .lora folder")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="the key file that the examples are locked by")
    parser.add_argument("--base", help="the base to open it on, where the one it names is elsewhere")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Score and tell."""
    from neuralforge.continual.history import HELD_OUT, History, adapter_digest
    from neuralforge.continual.keys import choose_key
    from neuralforge.continual.vault import read_header
    from neuralforge_common.errors import CheckpointError, VaultError
    from neuralforge_common.folder import read_adapter_folder

    folder = read_adapter_folder(args.adapter)
    history = History(args.adapter)
    record = history.read(adapter_digest(folder.spec, folder.state))
    if not record.sessions:
        raise CheckpointError(
            f"{args.adapter} has no history: none of its sessions was remembered",
            hint="neuralforge train --continue-from learns one that is, --remember a first one",
        )
    header = read_header(history.folder / HELD_OUT)
    if header is None:
        raise VaultError(
            f"nothing that the sessions of {args.adapter} have held out is kept",
            hint="it is kept where there is a key and --replay-buffer-size is not 0",
        )
    key = choose_key(header.kind, key_file=args.key_file, ask=getpass.getpass if sys.stdin.isatty() else None)

    from neuralforge.continual.forgetting import forget_report
    from neuralforge.continual.held_out import HeldOut
    from neuralforge.evaluation.opened import open_adapter

    items = HeldOut.open(history.folder / HELD_OUT, key).items()
    longest = max((item.max_length for item in items), default=256)
    opened = open_adapter(args.adapter, base=args.base, device=args.device, max_length=longest)
    for notice in (*opened.folder.notices, *opened.base.notices):
        print(notice, file=sys.stderr)
    report = forget_report(items, lambda examples, length: opened.score(examples, adapter=True, max_length=length))
    tell = _print_json if args.json else _print_table
    tell(args.adapter, record.sessions, {kept.session: kept for kept in report})
    return 0


def _print_json(adapter: Path, sessions: tuple[Session, ...], report: dict[str, Kept]) -> None:
    import json
    from dataclasses import asdict

    rows = []
    for session in sessions:
        kept = report.get(session.name)
        figures = kept and {
            "examples": kept.now.examples,
            "tokens": kept.now.tokens,
            "then": {"loss": kept.then.loss, "accuracy": kept.then.accuracy},
            "now": {"loss": kept.now.loss, "accuracy": kept.now.accuracy},
            "forgotten": kept.forgotten,
        }
        rows.append({**asdict(session), "kept": figures})
    print(json.dumps({"adapter": adapter.name, "sessions": rows, "forgotten": _mean_forgotten(sessions, report)}))


def _print_table(adapter: Path, sessions: tuple[Session, ...], report: dict[str, Kept]) -> None:
    from rich.table import Table

    from neuralforge.cli.console import plain_console

    table = Table(title=f"{adapter.name}: held-out loss in nats a token, and token accuracy", title_justify="left")
    columns = ("session", "learnt", "examples", "loss then", "now", "change", "accuracy then", "now")
    for name in columns:
        table.add_column(name, justify="left" if name in ("session", "learnt") else "right", no_wrap=name == "learnt")
    for session in sessions:
        kept = report.get(session.name)
        figures = (
            ["", "", "", "", "", ""]
            if kept is None
            else [
                str(kept.now.examples),
                f"{kept.then.loss:.3f}",
                f"{kept.now.loss:.3f}",
                f"{kept.forgotten:+.3f}",
                f"{kept.then.accuracy:.1%}",
                f"{kept.now.accuracy:.1%}",
            ]
        )
        table.add_row(session.name, session.learnt[:10], *figures)
    console = plain_console()
    console.print(table)
    mean = _mean_forgotten(sessions, report)
    if mean is not None:
        console.print(f"forgotten since, mean of the earlier sessions: {mean:+.3f} nats a token")


def _mean_forgotten(sessions: tuple[Session, ...], report: dict[str, Kept]) -> float | None:
    """Over all sessions but the last, which nothing has come after; minus the backward transfer in loss."""
    earlier = [report[session.name].forgotten for session in sessions[:-1] if session.name in report]
    return sum(earlier) / len(earlier) if earlier else None
