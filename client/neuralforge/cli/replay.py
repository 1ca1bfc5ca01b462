"""`replay`: what is kept of earlier sessions on this machine, and how to be rid of it."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from neuralforge.cli.numbers import positive

if TYPE_CHECKING:
    from neuralforge.continual.keys import Key
    from neuralforge.continual.vault import Manifest

NAME = "replay"
SUMMARY = "Show or destroy the encrypted examples of earlier sessions that are learnt again with new ones."
EXAMPLES = """\
  neuralforge replay show ./my-adapter.lora
  neuralforge replay show ./my-adapter.lora --show 3 --key-file ~/.neuralforge/replay.key
  neuralforge replay purge ./my-adapter.lora --yes"""

ACTIONS = ("show", "purge")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("action", choices=ACTIONS, metavar="show|purge", help="what to do")
    parser.add_argument("place", type=Path, metavar="PLACE", help="an adapter (NAME.lora), or a replay folder")
    parser.add_argument("--show", type=positive, metavar="N", help="with show: the text of the newest N examples, too")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="the key file that the examples are locked by")
    parser.add_argument("--yes", action="store_true", help="with purge: do not ask")


def run(args: argparse.Namespace) -> int:
    """Show or purge."""
    from neuralforge.data.run_folder import replay_folder

    if args.action == "purge":
        return _purge(args.place, yes=args.yes)
    return _show(replay_folder(args.place), args.key_file, args.show)


def _show(folder: Path, key_file: Path | None, texts: int | None) -> int:
    from neuralforge.continual.keys import choose_key
    from neuralforge.continual.vault import Vault, read_header
    from neuralforge_common.errors import VaultError

    header = read_header(folder)
    if header is None:
        raise VaultError(f"no replay buffer in {folder}", hint="one is made when a session with replay is learnt")
    key = choose_key(header.kind, key_file=key_file, ask=_asker())
    vault = Vault.open(folder, key)
    manifest = vault.load()
    if manifest is None:
        print(f"{folder}: no examples yet; locked by {vault.source}")
        return 0
    _print_counts(folder, manifest, vault.source)
    if texts is not None:
        from neuralforge.continual.item import from_bytes

        newest = sorted(manifest.records, key=lambda record: str(record.facts["added"]), reverse=True)[:texts]
        for record in newest:
            item = from_bytes(vault.open_record(record.id))
            print(_printable(f"\n--- {item.example.path or item.example.id} · {item.session} · {item.added}"))
            print(_printable(f"{item.example.context}⟦{item.example.completion}⟧"))
    return 0


def _printable(text: str) -> str:
    """Code may hold what a terminal takes for orders."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _print_counts(folder: Path, manifest: Manifest, source: str) -> None:
    from collections import Counter

    from rich.table import Table
    from rich.text import Text

    from neuralforge.cli.console import plain_console

    table = Table(title="replay buffer", title_justify="left")
    for name in ("session", "examples", "languages", "stored", "bytes"):
        table.add_column(name, justify="right" if name in ("examples", "bytes") else "left", overflow="fold")
    sessions = sorted(
        {str(record.facts["session"]) for record in manifest.records},
        key=lambda name: min(str(r.facts["added"]) for r in manifest.records if r.facts["session"] == name),
    )
    for session in [*sessions, None]:
        mine = [record for record in manifest.records if session is None or record.facts["session"] == session]
        languages = Counter(str(record.facts["language"]) or "not said" for record in mine)
        times = sorted(str(record.facts["added"]) for record in mine)
        table.add_row(
            Text("all" if session is None else session or "not named"),
            f"{len(mine):,}",
            Text(", ".join(f"{name} {count:,}" for name, count in languages.most_common())),
            " to ".join(dict.fromkeys([times[0], times[-1]])) if times else "",
            f"{sum(record.size for record in mine):,}",
        )
    console = plain_console()
    console.print(table)
    state = manifest.state
    seen = sum(state["seen"].values())
    with_logits = sum(bool(record.facts["logits"]) for record in manifest.records)
    console.print(
        f"a sample ({state['balance']}) of {seen:,} examples, at most {state['max_size']:,} kept\n"
        f"{with_logits:,} of them with the adapter's answers; encrypted in {folder}; locked by {source}"
    )


def _purge(place: Path, *, yes: bool) -> int:
    from neuralforge.continual.history import vaults_of
    from neuralforge.continual.vault import erase
    from neuralforge.data.run_folder import replay_folder
    from neuralforge_common.errors import UsageError, VaultError

    folder = replay_folder(place)
    vaults = vaults_of(place)
    if not vaults:
        raise VaultError(f"no replay buffer in {folder}")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("purge destroys the examples for good", hint="say --yes")
        what = f"the replay buffer in {folder}" + (", and what was held out," if len(vaults) > 1 else "")
        if input(f"destroy {what} for good? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was changed")
            return 0
    freed = sum(erase(vault, _keyring_key()) for vault in vaults)
    print(f"purged {folder}: the key is destroyed, {freed:,} bytes of records are removed")
    return 0


def _keyring_key() -> Key | None:
    from neuralforge.continual.keys import KeyringKey, system_keyring

    found = system_keyring()
    return KeyringKey(found) if found is not None else None


def _asker() -> Callable[[str], str] | None:
    return getpass.getpass if sys.stdin.isatty() else None
