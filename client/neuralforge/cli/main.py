"""`neuralforge` and `nf-client`: one program, two names."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from neuralforge.cli import (
    ab_test,
    adapters,
    analyze_dataset,
    audit_privacy,
    benchmark,
    create_dataset,
    eval_code,
    extract_dataset,
    forget_report,
    join,
    keygen,
    lsp,
    monitor,
    peers,
    privacy,
    publish,
    replay,
    rotate_key,
    serve,
    sign_adapter,
    split_dataset,
    test_adapter,
    train,
    trust,
)
from neuralforge_common.command_line import Command, run_program

COMMANDS: tuple[Command, ...] = (
    train,
    monitor,
    extract_dataset,
    create_dataset,
    split_dataset,
    analyze_dataset,
    test_adapter,
    benchmark,
    ab_test,
    eval_code,
    adapters,
    serve,
    lsp,
    forget_report,
    replay,
    privacy,
    audit_privacy,
    keygen,
    sign_adapter,
    publish,
    trust,
    join,
    rotate_key,
    peers,
)

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "GRPC_VERBOSITY": "NONE",
}
"""No telemetry, and no chatter of libraries between our lines; what a person has set stays."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0].partition("=")[0] == "--adapter":
        words.insert(0, serve.NAME)  # the guide's `neuralforge --adapter ./my-adapter.lora`
    return run_program(
        words,
        name="neuralforge",
        description="LoRA adapters that write code as your team does, trained where the code is.",
        commands=COMMANDS,
        environment=QUIET,
        out_of_memory="lower --batch-size or --max-length, or a smaller base",
    )


if __name__ == "__main__":
    sys.exit(main())
