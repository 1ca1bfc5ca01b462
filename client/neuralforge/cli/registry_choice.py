"""What the commands that call a registry share: which one, and how far a transfer is."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuralforge.registry.connection import Connection

REGISTRY_VARIABLE = "NEURALFORGE_REGISTRY"


def add_registry(parser: argparse.ArgumentParser) -> None:
    """Declare which registry is meant."""
    parser.add_argument(
        "--registry",
        metavar="ADDRESS",
        help=f"nf://host:port, or {REGISTRY_VARIABLE} (the one that adapters login made known); "
        "with #sha256:… it need not be known yet",
    )


@contextmanager
def chosen_registry(args: argparse.Namespace) -> Iterator[Connection]:
    """A connection to the registry that is meant; one whose address has its fingerprint is remembered."""
    from neuralforge.federation.home import client_home
    from neuralforge.registry.connection import connected, login
    from neuralforge.registry.home import RECORD, known_registry, parse_address, registry_folder

    home = client_home()
    named = args.registry or os.environ.get(REGISTRY_VARIABLE) or None
    address = None if named is None else parse_address(named)
    if address is not None and address.fingerprint and not (registry_folder(home, address) / RECORD).exists():
        login(address, home=home)
    with connected(known_registry(address, home=home), home=home) as connection:
        yield connection


@contextmanager
def transfer(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error where that is a terminal; takes the bytes that are there and those of all."""
    import sys

    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)
