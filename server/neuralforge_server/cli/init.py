"""`init`: makes a federation."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neuralforge_common.errors import UsageError

if TYPE_CHECKING:
    from neuralforge_server.config import ListenSection
    from neuralforge_server.state_folder import ServerState

NAME = "init"
SUMMARY = "Make a federation: its authority, the server's certificate, a state folder, a configuration."
EXAMPLES = """\
  nf-server init
  nf-server init --host build-box.example.org --host 10.0.0.7 --name platform-team
  nf-server init --renew"""

LOOPBACK = ("localhost", "127.0.0.1")
"""Always in the certificate: a machine may reach itself."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--directory", type=Path, default=Path("nf-server"), help="the state folder (nf-server)")
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME_OR_IP",
        help="how clients reach this machine, the best first (its host name)",
    )
    parser.add_argument("--port", type=_first_port, default=8470, help="the first of four ports in a row (8470)")
    parser.add_argument("--name", default="team", help="what the federation is called (team)")
    parser.add_argument("--renew", action="store_true", help="just a fresh certificate for the server; clients stay")


def run(args: argparse.Namespace) -> int:
    """Make it and say how to go on."""
    import datetime

    from neuralforge_common.address import canonical_host
    from neuralforge_server.state_folder import CONFIG, renew_server_certificate

    if args.renew:
        now = datetime.datetime.now(datetime.UTC)
        hosts = [canonical_host(host) for host in args.host]
        listen = _listen(args.directory, name=args.name, port=args.port)
        also = [*(canonical_host(host) for host in listen.names), *LOOPBACK]
        state = renew_server_certificate(args.directory, hosts=hosts, also=also, now=now)
        until = state.server_certificate.not_valid_after_utc
        print(f"renewed the server's certificate for {', '.join(state.hosts)}, until {until:%Y-%m-%d}")
        print("restart nf-server to use it; clients need nothing new")
        return 0
    state, port = make_federation(args.directory, hosts=args.host, name=args.name, port=args.port)
    folder = shlex.quote(str(args.directory))
    elsewhere = "" if args.directory == Path("nf-server") else f" --directory {folder}"
    print(f"made a federation in {args.directory}; its address is\n")
    print(f"  {state.address(port)}\n")
    print("next")
    print(f"  nf-server invite laptop-7{elsewhere}    # prints the line for a developer's machine to join with")
    print(f"  nf-server start --config {folder}/{CONFIG}")
    print(f"clients must reach this machine as {state.hosts[0]}; if they cannot: --renew --host NAME_OR_IP")
    print(f"back up {folder}/ca.key: who has it can admit anybody, and without it nobody can be admitted")
    return 0


def make_federation(directory: Path, *, hosts: Sequence[str], name: str, port: int) -> tuple[ServerState, int]:
    """Makes a state folder for a machine that is reached by `hosts` (none: its host name); returns its port, too.

    Raises:
        UsageError: a name or a host that cannot be.
        StorageError: the folder holds a federation or anything else, or cannot be written.
    """
    import contextlib
    import datetime
    import socket

    from neuralforge_common.address import canonical_host
    from neuralforge_server.cli.template import server_yaml
    from neuralforge_server.state_folder import create_state_folder

    # Whatever is wrong with a name or a file is said before anything is made.
    listen = _listen(directory, name=name, port=port)
    reached = [canonical_host(host) for host in hosts]
    also = [*(canonical_host(host) for host in listen.names), *LOOPBACK]
    if not reached:
        with contextlib.suppress(UsageError):  # a host name may be anything
            reached = [canonical_host(socket.gethostname())]
    state = create_state_folder(
        directory,
        hosts=tuple(dict.fromkeys((*reached, *also))),
        config=server_yaml(name=name, directory=directory, port=port),
        now=datetime.datetime.now(datetime.UTC),
    )
    return state, listen.port


def _listen(directory: Path, *, name: str, port: int) -> ListenSection:
    from neuralforge_server.cli.folder import new_listen, read_listen
    from neuralforge_server.state_folder import CONFIG

    there = directory / CONFIG
    return read_listen(there) if there.exists() else new_listen(name=name, port=port)


def _first_port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= 65_532:
        raise argparse.ArgumentTypeError(f"wanted a whole number from 1 to 65,532, got {text!r}")
    return int(text)
