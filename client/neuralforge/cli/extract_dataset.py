"""`extract-dataset`: a repository's history to training examples."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralforge.cli.cleaning import Explanation, chosen_quality, configure_cleaning
from neuralforge.cli.numbers import positive, share, whole
from neuralforge_common.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from neuralforge.data.cutting import Cutting
    from neuralforge.data.history import History

NAME = "extract-dataset"
SUMMARY = "Turn a git history into a JSONL dataset: what was written, in the context in which it was written."
EXAMPLES = """\
  neuralforge extract-dataset --git-repo ./my-project --output dataset.jsonl --languages java,python,js
  neuralforge extract-dataset --git-repo . --since "6 months ago" --author me@example.org --output mine.jsonl
  neuralforge extract-dataset --git-repo . --output train.jsonl --eval-output eval.jsonl --max-samples 20000
  neuralforge extract-dataset --git-repo . --explain app/models.py"""

_FEW = 20  # commits that are done before other processes could start


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--git-repo", type=Path, required=True, metavar="DIR", help="the repository")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the examples go, as JSONL")
    parser.add_argument("--eval-output", type=Path, metavar="FILE", help="hold out a tenth of the files, into this")
    parser.add_argument("--languages", default="", help="only these, e.g. java,python,js")
    parser.add_argument("--pattern", action="append", default=[], help="only files like this, e.g. '*.java'")
    parser.add_argument("--since", metavar="DATE", help="only commits since, e.g. '6 months ago'")
    parser.add_argument("--author", default="", metavar="WHO", help="only commits of this e-mail address or name")
    parser.add_argument("--first-parent", action="store_true", help="only what was committed on the branch itself")
    parser.add_argument("--revision", default="HEAD", metavar="REV", help="the branch, tag or commit to read (HEAD)")
    parser.add_argument("--max-samples", type=positive, metavar="N", help="at most N examples to learn from")
    parser.add_argument(
        "--fim-share", type=share, default=0.5, metavar="F", help="share that says what stands behind it, too (0.5)"
    )
    parser.add_argument("--keep-author", action="store_true", help="a pseudonym of the author in each example")
    parser.add_argument("--resume", action="store_true", help="go on where an extraction into --output was interrupted")
    parser.add_argument("--jobs", type=positive, metavar="N", help="processes (as many as cores, at most 4)")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of the draw of what is held out (0)")
    configure_cleaning(parser)
    parser.add_argument(
        "--explain", metavar="ID", help="write nothing: say what became of this file or example, and why"
    )


def run(args: argparse.Namespace) -> int:
    """Read, clean, split, write."""
    from neuralforge.cli.console import plain_console
    from neuralforge.data.cutting import Cutting
    from neuralforge.data.history import open_history
    from neuralforge.data.license import license_of_repository

    if args.output is None and args.explain is None:
        raise UsageError("nothing says where the examples go", hint="--output dataset.jsonl, or --explain ID")
    if args.explain is not None and args.resume:
        raise UsageError("--explain goes through all of the history", hint="leave --resume out")
    if (
        args.eval_output is not None
        and args.output is not None
        and args.eval_output.absolute() == args.output.absolute()
    ):
        raise UsageError(
            f"--eval-output is --output ({args.output}): what is held out would replace the rest",
            hint="name two files",
        )
    languages = tuple(name.strip() for name in args.languages.split(",") if name.strip())
    history = open_history(
        args.git_repo,
        revision=args.revision,
        since=args.since,
        author=args.author,
        first_parent=args.first_parent,
        patterns=args.pattern,
        languages=languages,
    )
    cutting = Cutting(
        license=license_of_repository(args.git_repo, revision=args.revision),
        suffix_share=args.fim_share,
        keep_author=args.keep_author,
        quality=chosen_quality(args),
    )
    if args.explain is not None:
        _explain(history, cutting, args, plain_console())
    else:
        _extract(history, cutting, args, repr((languages, args.pattern, args.author)), plain_console())
    return 0


def _extract(history: History, cutting: Cutting, args: argparse.Namespace, options: str, console: Console) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import forkserver, get_context

    jobs = args.jobs or _cores()
    context = get_context("forkserver")  # fresh processes: a fork would copy the pipes to git as well
    context.set_forkserver_preload(["__main__", "neuralforge.data.cutting"])
    if jobs > 1 and len(history.commits) > _FEW:
        forkserver.ensure_running()  # it loads what they need beside what this process does next

    from neuralforge.cli.present import dataset_table
    from neuralforge.data.extraction import divided, fill_journal, journal_key, write_dataset
    from neuralforge.data.journal import Journal

    args.output.absolute().parent.mkdir(parents=True, exist_ok=True)
    key = journal_key(history, cutting, options)
    journal = Journal(args.output.with_name(f"{args.output.name}.partial"), key, resume=args.resume)
    try:
        with ExitStack() as stack:
            executor = None
            if jobs > 1:
                executor = stack.enter_context(ProcessPoolExecutor(jobs, mp_context=context))
            progress = stack.enter_context(_progress(len(history.commits)))
            fill_journal(history, journal, cutting, executor=executor, progress=progress)
        report = write_dataset(journal, history, args.output, args.eval_output, divided(journal, **_division(args)))
    except KeyboardInterrupt:
        console.print(f"interrupted after {journal.commits:,} of {len(history.commits):,} commits; go on: --resume")
        journal.close()
        raise
    journal.remove()
    console.print(dataset_table(report))
    for path, count in ((args.output, report.train), (args.eval_output, report.evaluation)):
        if path is not None and count:
            console.print(f"wrote {count:,} examples to {path}")


def _explain(history: History, cutting: Cutting, args: argparse.Namespace, console: Console) -> None:
    from tempfile import TemporaryDirectory

    from neuralforge.data.extraction import divided, fill_journal, tell
    from neuralforge.data.journal import Journal

    explanation = Explanation(args.explain)
    with TemporaryDirectory() as place:
        journal = Journal(Path(place, "journal"), "explanation", resume=False)
        with _progress(len(history.commits)) as progress:
            fill_journal(history, journal, cutting, executor=None, progress=progress, watch=explanation)
        tell(journal, divided(journal, **_division(args)), explanation)
        journal.close()
    explanation.show(console)


def _division(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "eval_fraction": 0.1 if args.eval_output is not None else 0.0,
        "max_samples": args.max_samples,
        "seed": args.seed,
        "balance": args.balance,
    }


def _cores() -> int:
    """Processes that cut while this one reads: as many as there are cores, four at most."""
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@contextmanager
def _progress(commits: int) -> Iterator[Callable[[int, int], None]]:
    """A bar at a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("commits"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, TextColumn("{task.fields[examples]:,} examples"), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=commits, examples=0)

        def show(done: int, examples: int) -> None:
            bar.update(task, completed=done, examples=examples)

        yield show
