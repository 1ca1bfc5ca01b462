"""`nf-server`: the coordinator of a federation."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from neuralforge_common.command_line import Command, run_program
from neuralforge_server.cli import init, invite, registry, revoke, start, status

COMMANDS: tuple[Command, ...] = (init, invite, start, status, revoke, registry)

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "GRPC_VERBOSITY": "NONE",
}
"""No telemetry, and no chatter of libraries between our lines; what a person has set stays."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return run_program(
        arguments,
        name="nf-server",
        description="A federation's coordinator and its registry of adapters: it holds adapters, never code.",
        commands=COMMANDS,
        environment=QUIET,
        out_of_memory="lower adapter.rank or federation.sample",
    )


if __name__ == "__main__":
    sys.exit(main())
