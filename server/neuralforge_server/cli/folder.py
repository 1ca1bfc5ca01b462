"""What the commands that work on a state folder share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuralforge_server.config import ListenSection
    from neuralforge_server.identity import Identities
    from neuralforge_server.state_folder import ServerState


def add_directory(parser: argparse.ArgumentParser) -> None:
    """Declare `--directory`."""
    parser.add_argument("--directory", type=Path, default=Path("nf-server"), help="the state folder (nf-server)")


@contextmanager
def opened(directory: Path) -> Iterator[tuple[ServerState, Identities]]:
    """A state folder, checked, and its registry."""
    import datetime

    from neuralforge_server.identity import Identities
    from neuralforge_server.state_folder import open_state_folder

    state = open_state_folder(directory, now=datetime.datetime.now(datetime.UTC))
    identities = Identities(state.identities_path)
    try:
        yield state, identities
    finally:
        identities.close()


def read_listen(config: Path) -> ListenSection:
    """The `listen:` section of a server's configuration."""
    from neuralforge_server.config_rules import resolve_server_config

    return resolve_server_config(config, {}, os.environ).config.listen


def new_listen(*, name: str, port: int) -> ListenSection:
    """The `listen:` section of a new configuration, whose name must be one that a federation can have."""
    from neuralforge_server.config_rules import resolve_server_config

    return resolve_server_config(None, {"federation.name": name, "listen.port": port}, {}).config.listen
