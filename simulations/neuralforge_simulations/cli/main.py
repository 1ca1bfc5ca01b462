"""`nf-sim`: federations of virtual clients."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from neuralforge_common.command_line import Command, run_program
from neuralforge_simulations.cli import run

COMMANDS: tuple[Command, ...] = (run,)

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
"""No telemetry, and no chatter of libraries between our lines; what a person has set stays."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return run_program(
        arguments,
        name="nf-sim",
        description="Federations of virtual clients on one machine: the real rounds, the real training, a report.",
        commands=COMMANDS,
        environment=QUIET,
        out_of_memory="a smaller base (adapter.base), a lower adapter.rank or shorter examples (training.max_length)",
    )


if __name__ == "__main__":
    sys.exit(main())
