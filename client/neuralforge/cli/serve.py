"""`serve`: a completion server for the editors of this machine; `neuralforge --adapter …` is short for it."""

from __future__ import annotations

import argparse
from pathlib import Path

from neuralforge.cli import serving
from neuralforge.cli.numbers import whole

NAME = "serve"
SUMMARY = "Complete code for the editors of this machine (in short: neuralforge --adapter ADAPTER)."
EXAMPLES = """\
  neuralforge serve --adapter ./my-adapter.lora
  neuralforge serve --adapter ./spring.lora --adapter ./team.lora --port 8013
  neuralforge serve --adapter ./my-adapter.lora --host 192.0.2.7 --token-file ./token"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    serving.add_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="an address of this machine (127.0.0.1)")
    parser.add_argument("--port", type=whole, default=8012, help="8012, where llama.vim looks, too; 0 takes a free one")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="a private file with the bearer token that requests must bring"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    import sys

    from neuralforge.federation.home import client_home
    from neuralforge.serving.listening import bind, check_reach
    from neuralforge_common.errors import UsageError
    from neuralforge_common.key_files import read_private_file

    if args.port > 65_535:
        raise UsageError(f"--port: wanted a number up to 65535, got {args.port}")
    token = None
    if args.token_file is not None:
        token = read_private_file(args.token_file).decode("utf-8", "replace").strip()

    check_reach(args.host, token)
    serving.check_adapters(args)
    with bind(args.host, args.port) as bound:  # a port that is taken is told before a base is loaded
        worker = serving.open_worker(args)

        from neuralforge.serving.http_server import serve

        served = worker.opened.result()
        for notice in served.notices:
            print(notice, file=sys.stderr)

        def ready(address: str) -> None:
            print(f"{served.current} on {served.base.name} at {address}; Ctrl-C stops", flush=True)

        serve(worker, bound, host=args.host, token=token, home=client_home(), ready=ready)
    print("stopped")
    return 0
