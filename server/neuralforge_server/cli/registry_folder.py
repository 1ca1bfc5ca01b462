"""What the commands that work on a registry share."""

from __future__ import annotations

import argparse
import datetime
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from neuralforge_server.cli.folder import add_directory

if TYPE_CHECKING:
    from neuralforge_server.registry.schema import Database

DATABASE_VARIABLE = "NF_SERVER_REGISTRY_DATABASE"
BLOBS_VARIABLE = "NF_SERVER_REGISTRY_BLOBS"

_UNITS = {"m": 60, "h": 3600, "d": 86_400}
_SIZES = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


def add_place(parser: argparse.ArgumentParser) -> None:
    """Declare where the registry is."""
    add_directory(parser)
    parser.add_argument(
        "--database",
        metavar="URL",
        help=f"such as postgresql://user@host/name, or {DATABASE_VARIABLE} (SQLite inside it)",
    )


@contextmanager
def opened_database(args: argparse.Namespace) -> Iterator[Database]:
    """The registry's database; the folder must be a federation's."""
    from neuralforge_server.registry.place import open_database
    from neuralforge_server.state_folder import open_state_folder

    open_state_folder(args.directory, now=datetime.datetime.now(datetime.UTC))
    database = open_database(args.directory, database_url(args))
    try:
        yield database
    finally:
        database.close()


def database_url(args: argparse.Namespace) -> str | None:
    """The option, or the variable: a URL may hold a password, which others can read on a command line."""
    return args.database or os.environ.get(DATABASE_VARIABLE) or None


def seconds(text: str) -> int:
    """An option's time, such as 90d."""
    found = re.fullmatch(r"([0-9]{1,6})([mhd])", text)
    life = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 60 <= life <= 3650 * _UNITS["d"]:
        raise argparse.ArgumentTypeError(f"wanted a time from 1m to 3650d, such as 90d, got {text!r}")
    return life


def size(text: str) -> int:
    """An option's size, such as 50GB."""
    found = re.fullmatch(r"([0-9]{1,6})(MB|GB|TB)", text)
    if not found or not int(found[1]):
        raise argparse.ArgumentTypeError(f"wanted a size such as 500MB or 50GB, got {text!r}")
    return int(found[1]) * _SIZES[found[2]]


def moment(at: float) -> str:
    """A time for people."""
    return f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d %H:%M:%SZ}"
