"""What `serve` and `lsp` share: the adapters, the base, and the thread that they are opened in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from neuralforge.cli.numbers import positive

if TYPE_CHECKING:
    from neuralforge.serving.served import ServedModel
    from neuralforge.serving.worker import Worker


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--adapter",
        type=Path,
        action="append",
        default=[],
        metavar="ADAPTER",
        help="the .lora folder; may be given several times: the first one is used where a request names none",
    )
    parser.add_argument(
        "--base", help="the base, where the one that the adapter names is elsewhere; or without adapter"
    )
    parser.add_argument(
        "--max-context", type=positive, default=2048, metavar="TOKENS", help="of prompt and completion together (2048)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that comes with the base")


def check_adapters(args: argparse.Namespace) -> None:
    """Refuse what can be refused before torch is imported and a base loaded."""
    from neuralforge_common.errors import UsageError
    from neuralforge_common.folder import read_adapter_folder

    if not args.adapter and args.base is None:
        raise UsageError("wanted an adapter or a base", hint="--adapter ./my-adapter.lora")
    for path in args.adapter:
        read_adapter_folder(path)


def open_worker(args: argparse.Namespace) -> Worker:
    """Begin to load the base and its adapters in a thread of its own."""
    from neuralforge.serving.worker import Worker

    def open_model() -> ServedModel:
        from neuralforge.serving.served import open_served

        return open_served(
            args.adapter,
            base=args.base,
            device=args.device,
            max_context=args.max_context,
            trust_remote_code=args.trust_remote_code,
        )

    return Worker(open_model)
