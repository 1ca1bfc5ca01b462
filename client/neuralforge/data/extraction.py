"""A history made into examples, commit by commit, in memory that does not grow with the history's text.

What is found goes into a journal beside the output, redacted already; an extraction that was interrupted goes on from
the last commit that is in it. At the end the journal is divided by file and written out, whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path

from neuralforge.data.balance import balanced
from neuralforge.data.cutting import CutCommit, Cutting, cut_commit
from neuralforge.data.dataset import ONE_GROUP, OVER_BALANCE, OVER_SAMPLES, DatasetReport, drawn, held_out_groups
from neuralforge.data.decision import Decision, Watch, nobody
from neuralforge.data.dedup import Deduplicator, example_text
from neuralforge.data.history import PART, CommitRead, History
from neuralforge.data.journal import Journal
from neuralforge.data.jsonl import decode_example
from neuralforge_common.atomic import open_atomically
from neuralforge_common.errors import DataError

_WINDOW = 32  # commits, or parts of one, under way at once: bounds what is in memory, and keeps every worker busy
_UNDER_WAY = 16 * PART  # characters of them; what comes of it is two to five times as much
_ALONE = PART // 4  # characters that are cut before other processes are asked: to start them takes as long
_SETTLED = 25  # commits between two marks in the journal
LEARNT, HELD_OUT = "", "held out"


def fill_journal(
    history: History,
    journal: Journal,
    cutting: Cutting,
    *,
    executor: Executor | None,
    progress: Callable[[int, int], None] = lambda done, examples: None,
    watch: Watch = nobody,
) -> None:
    """Go through what the journal does not have yet; near-duplicates of what it has are left out.

    The newest version of what was written over and over is the one that stays. `executor` cuts commits beside the
    reading of others; what comes out is the same without. `watch` is told what was left out, and needs an `executor` of
    None: what other processes leave out is not heard.
    """
    alike = Deduplicator()
    kept: list[str] = []
    for example in journal.examples():
        alike.add(example_text(example))
        kept.append(example.id if watch is not nobody else "")
    rest = history.commits[journal.commits :]
    done = 0
    for cut in _cut_all(history.read(rest, watch), cutting, executor, watch):
        journal.counts.add(cut)
        for file in cut.cut:
            for line, seen in zip(file.lines, file.prints, strict=True):
                name = decode_example(line, file.path, complete=True).id if watch is not nobody else ""
                if repeats := alike.add_print(seen):
                    reason, twin = f"{repeats} duplicate", kept[alike.twin]
                    journal.counts.dropped[reason] += 1
                    watch(Decision(path=file.path, commit=file.commit, id=name, reason=reason, twin=twin))
                else:
                    kept.append(name)
                    journal.add(file.repo, file.path, file.language, line)
        if not cut.is_last:
            continue
        done += 1
        if done % _SETTLED == 0 or done == len(rest):
            journal.settle(commits=done % _SETTLED or _SETTLED)
        progress(len(history.commits) - len(rest) + done, journal.kept)


def _cut_all(
    commits: Iterable[CommitRead], cutting: Cutting, executor: Executor | None, watch: Watch
) -> Iterator[CutCommit]:
    waiting: deque[tuple[Future[CutCommit], int]] = deque()
    under_way = seen = 0
    for read in commits:
        seen += read.size
        if executor is None or seen <= _ALONE:
            yield cut_commit(read, cutting, watch)
            continue
        waiting.append((executor.submit(cut_commit, read, cutting), read.size))
        under_way += read.size
        while len(waiting) >= _WINDOW or under_way > _UNDER_WAY:
            cut, size = waiting.popleft()
            under_way -= size
            yield cut.result()
    yield from (cut.result() for cut, _ in waiting)


def divided(
    journal: Journal,
    *,
    eval_fraction: float,
    max_samples: int | None,
    seed: int,
    balance: float | None = None,
) -> list[str]:
    """What becomes of each example of a journal, in order: LEARNT, HELD_OUT or why it is left out after all.

    Held out are whole files.
    """
    origins = journal.origins
    held_out = held_out_groups(Counter(origins.file), eval_fraction, seed)
    fates = [HELD_OUT if file in held_out else OVER_BALANCE for file in origins.file]
    learnt = [number for number, fate in enumerate(fates) if fate is not HELD_OUT]
    languages = list(origins.languages)
    level = [learnt[at] for at in balanced([languages[origins.language[number]] for number in learnt], balance, seed)]
    chosen = drawn(len(level), max_samples, seed)
    for at, number in enumerate(level):
        fates[number] = LEARNT if chosen is None or at in chosen else OVER_SAMPLES
    return fates


def tell(journal: Journal, fates: Iterable[str], watch: Watch) -> None:
    """Say of each example in a journal what becomes of it."""
    for example, fate in zip(journal.examples(), fates, strict=True):
        reason = "" if fate in (LEARNT, HELD_OUT) else fate
        watch(Decision(path=example.path, commit=example.commit, id=example.id, reason=reason))


def write_dataset(
    journal: Journal, history: History, output: Path, evaluation: Path | None, fates: list[str]
) -> DatasetReport:
    """Write both sides as `divided` has them; the examples pass through one at a time.

    Raises:
        DataError: there is no example in it.
        StorageError: the place cannot be written.
    """
    if not fates:
        raise _nothing(history, journal)
    sides = Counter(fates)
    for path, side in ((output, LEARNT), (evaluation, HELD_OUT)):
        if path is not None and (side == LEARNT or sides[side]):
            with open_atomically(path) as stream:
                lines = zip(journal.lines(), fates, strict=True)
                stream.writelines(line for line, fate in lines if fate == side)
    languages = list(journal.origins.languages)
    learnt = Counter(
        languages[number] or "not said"
        for number, fate in zip(journal.origins.language, fates, strict=True)
        if fate == LEARNT
    )
    counts = journal.counts
    notices = [f"{len(history.commits):,} commits read" + _listed(counts.passed_over, "; passed over: ")]
    notices += [ONE_GROUP] if evaluation is not None and not sides[HELD_OUT] else []
    if counts.without_grammar:
        notices.append(_listed(counts.without_grammar, "cut by lines alone, as no grammar tells their functions: "))
    return DatasetReport(
        files_found=counts.files + sum(counts.skipped.values()),
        files_used=counts.files,
        files_skipped=counts.skipped,
        examples_found=len(fates) + sum(counts.dropped.values()),
        dropped=counts.dropped + Counter({reason: sides[reason] for reason in (OVER_BALANCE, OVER_SAMPLES)}),
        redacted=counts.redacted,
        languages=learnt,
        train=sides[LEARNT],
        evaluation=sides[HELD_OUT],
        notices=tuple(notices),
    )


def journal_key(history: History, cutting: Cutting, options: str) -> str:
    """What names an extraction: the same commits read in the same way."""
    commits = hashlib.sha256("\n".join(history.commits).encode()).hexdigest()
    return hashlib.sha256(json.dumps([history.name, commits, cutting.key, options]).encode()).hexdigest()


def _listed(counts: Counter[str], head: str) -> str:
    return head + ", ".join(f"{number:,} × {name}" for name, number in counts.most_common(6)) if counts else ""


def _nothing(history: History, journal: Journal) -> DataError:
    said = _listed(journal.counts.passed_over + journal.counts.skipped, "; passed over: ")
    return DataError(
        f"no examples: {len(history.commits):,} commits read, none of use{said}",
        hint="another --since, --author or --languages",
    )
