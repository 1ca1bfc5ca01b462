"""`eval-code`: code that an adapter writes, run against tests in a sandbox."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralforge.cli.numbers import positive, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from neuralforge.evaluation.executed import PassRate, WrittenCode
    from neuralforge.evaluation.humaneval import CodeTask
    from neuralforge.evaluation.opened import OpenedAdapter

NAME = "eval-code"
SUMMARY = "Have an adapter and its base write code, and run it against tests in a sandbox."
EXAMPLES = """\
  neuralforge eval-code --adapter ./my-adapter.lora --suite humaneval-infill --sandbox
  neuralforge eval-code --adapter ./my-adapter.lora --suite humaneval --limit 40 --samples 10 --sandbox --json
  neuralforge eval-code --adapter ./my-adapter.lora --generations-only written.jsonl"""

SUITES = ("humaneval-infill", "humaneval")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--adapter", type=Path, required=True, help="the .lora folder")
    parser.add_argument("--suite", choices=SUITES, default=SUITES[0], help="lines to fill in, or whole functions")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sandbox", action="store_true", help="run the code, without network, children or your files")
    what.add_argument("--generations-only", type=Path, metavar="FILE", help="write the code as JSONL and run nothing")
    parser.add_argument("--limit", type=positive, metavar="N", help="N tasks spread over the suite (all)")
    parser.add_argument("--samples", type=positive, default=1, metavar="K", help="answers to each task (1, greedy)")
    parser.add_argument("--temperature", type=_temperature, default=0.8, metavar="T", help="of K > 1 answers (0.8)")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of K > 1 answers (0)")
    parser.add_argument("--timeout", type=positive, default=10, metavar="SECONDS", help="for one program (10)")
    parser.add_argument("--memory", type=positive, default=512, metavar="MB", help="for one program (512)")
    parser.add_argument("--base", help="the base to open it on, where the one it names is elsewhere")
    parser.add_argument("--max-length", type=positive, default=1024, metavar="TOKENS", help="prompt and answer (1024)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Write, run, compare."""
    from neuralforge.evaluation.humaneval import code_tasks
    from neuralforge.evaluation.sandbox import confinement
    from neuralforge_common.errors import SandboxError
    from neuralforge_common.folder import read_adapter_folder

    if not args.sandbox and args.generations_only is None:
        raise SandboxError(
            "eval-code runs code that a model wrote, and does so only with --sandbox",
            hint="--sandbox runs it confined; --generations-only FILE writes it and runs nothing",
        )
    # What cannot work is told before a base is loaded and anything written.
    tasks = code_tasks(args.suite, limit=args.limit)
    layers = confinement() if args.sandbox else ()
    read_adapter_folder(args.adapter)

    from neuralforge.evaluation.executed import write_code
    from neuralforge.evaluation.opened import open_adapter

    opened = open_adapter(args.adapter, base=args.base, device=args.device, max_length=args.max_length)
    for notice in (*opened.folder.notices, *opened.base.notices):
        print(notice, file=sys.stderr)
    prompt = _prompt(tasks[0], opened)
    with _counting("writing", len(tasks)) as after:
        options = {"samples": args.samples, "temperature": args.temperature, "seed": args.seed}
        written = list(write_code(opened, tasks, after=after, **options))
    if args.generations_only is not None:
        _save(args.generations_only, written)
        of = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
        print(f"{len(written)} answers to {of} in {args.generations_only}; nothing was run")
        return 0
    return _judge(args, tasks, written, prompt=prompt, layers=layers)


def _judge(
    args: argparse.Namespace,
    tasks: Sequence[CodeTask],
    written: Sequence[WrittenCode],
    *,
    prompt: str,
    layers: Sequence[str],
) -> int:
    import json

    from neuralforge.cli.figures import plain
    from neuralforge.evaluation.executed import pass_rates, run_code
    from neuralforge.evaluation.sandbox import MIB, Limits

    limits = Limits(wall=float(args.timeout), cpu=args.timeout, memory=args.memory * MIB)
    with _counting("running", len({(code.task, code.answer) for code in written})) as after:
        passed = run_code(tasks, written, limits=limits, after=after)
    rates = {who: pass_rates(tasks, each) for who, each in passed.items()}
    solved = {who: [any(task) for task in each] for who, each in passed.items()}
    pairs = list(zip(solved["base"], solved["adapter"], strict=True))
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    if args.json:
        answer: dict[str, Any] = {
            **{"suite": args.suite, "tasks": len(tasks), "samples": args.samples, "prompt": prompt},
            **{"layers": list(layers), "gained": gained, "lost": lost},
        }
        for who, found in rates.items():
            answer[who] = {f"pass@{rate.k}": plain({"value": rate.value, "interval": rate.interval}) for rate in found}
        print(json.dumps(answer))
        return 0
    _show(args.suite, tasks, rates)
    print(f"solved with the adapter and not by the base: {gained}; by the base alone: {lost}")
    print(f"{prompt}; sandbox: system calls filtered, files held by {' and '.join(layers)}")
    return 0


def _show(suite: str, tasks: Sequence[CodeTask], rates: dict[str, list[PassRate]]) -> None:
    from rich.table import Table

    from neuralforge.cli.console import plain_console
    from neuralforge.cli.figures import shown

    table = Table(title=f"{suite}: {len(tasks)} tasks", title_justify="left")
    for name in ("Metric", "Baseline", "Your Adapter"):
        table.add_column(name, justify="left" if name == "Metric" else "right")
    for base, adapted in zip(rates["base"], rates["adapter"], strict=True):
        cells = (shown("pass", rate.value, rate.interval) for rate in (base, adapted))
        table.add_row(f"pass@{base.k}", *cells)
    plain_console().print(table)


def _prompt(task: CodeTask, opened: OpenedAdapter) -> str:
    """How the gap is shown to the model, for it decides what the figures mean."""
    if not task.one_line:
        return "the model sees the signature and its docstring"
    if opened.shows_suffix:
        return "the model sees what stands before and after the line"
    return "this base has no marks for what stands after the cursor: the model sees only what stands before the line"


def _save(path: Path, written: Sequence[WrittenCode]) -> None:
    import json

    from neuralforge_common.atomic import write_bytes_atomically

    lines = (
        {"task_id": code.task, "who": code.who, "sample": code.sample, "completion": code.answer} for code in written
    )
    write_bytes_atomically(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


class _counting:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, what: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> Callable[[], object]:
        self._bar.start()
        return lambda: self._bar.advance(self._task)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 10:
        raise argparse.ArgumentTypeError(f"wanted a number above 0, at most 10, got {text!r}")
    return value
