"""A history made into examples, commit by commit, in memory that does not grow with the history's text.

What is found goes into a journal beside the output, redacted already; an extraction that was interrupted goes on from
the last commit that is in it. At the end the journal is divided by file and written out, whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from pathlib import Path

from neuralforge.data.balance import balanced
from neuralforge.data.dataset import ONE_GROUP, OVER_BALANCE, OVER_SAMPLES, DatasetReport, drawn, held_out_groups
from neuralforge.data.dedup import Deduplicator, example_text
from neuralforge.data.example import Example
from neuralforge.data.extract import extract_examples
from neuralforge.data.functions import has_functions
from neuralforge.data.history import CommitRead, History, Written
from neuralforge.data.journal import Journal
from neuralforge.data.jsonl import write_examples
from neuralforge.data.license import license_of_text
from neuralforge.data.quality import Quality
from neuralforge.data.redact import redact
from neuralforge_common.errors import DataError

_WINDOW = 32  # commits under way at once: bounds what is in memory, and keeps every worker busy
_SETTLED = 25  # commits between two marks in the journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """How examples are cut: `suffix_share` of them say what stands behind them; `license` where a file says none.

    With `keep_author` each carries a pseudonym of its author: eight hex digits of a digest of the e-mail address. Who
    can guess the address can check the guess.
    """

    license: str = ""
    suffix_share: float = 0.5
    keep_author: bool = False
    quality: Quality = field(default_factory=Quality)

    @property
    def key(self) -> str:
        """What an extraction must have in common with another to go on with it."""
        return f"{self.license}|{self.suffix_share}|{self.keep_author}|{self.quality.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CutCommit:
    """The examples of one commit, and what was left out of it."""

    examples: tuple[Example, ...] = ()
    files: int = 0
    passed_over: str = ""
    skipped: Counter[str]
    dropped: Counter[str]
    redacted: Counter[str]
    without_grammar: Counter[str]


def cut_commit(read: CommitRead, cutting: Cutting) -> CutCommit:
    """Redact and cut what a commit has written; a function of its arguments alone, for any process to compute."""
    skipped = Counter(read.skipped)
    dropped: Counter[str] = Counter()
    redacted: Counter[str] = Counter()
    without: Counter[str] = Counter()
    examples: list[Example] = []
    files = 0
    for written in read.written:
        if reason := cutting.quality.refuses_file(replace(written.file, license=cutting.license)):
            skipped[reason] += 1
            continue
        text, secrets = redact(written.file.text)
        if text.count("\n") != written.file.text.count("\n"):
            skipped["holds a secret of several lines"] += 1
            continue
        files += 1
        redacted += secrets
        if not has_functions(written.file.language):
            without[written.file.language or "no language"] += 1
        for example in _examples(written, text, cutting):
            if reason := cutting.quality.refuses(example):
                dropped[reason] += 1
            else:
                examples.append(example)
    return CutCommit(
        examples=tuple(examples),
        files=files,
        passed_over=read.passed_over,
        skipped=skipped,
        dropped=dropped,
        redacted=redacted,
        without_grammar=without,
    )


def _examples(written: Written, text: str, cutting: Cutting) -> Iterator[Example]:
    file = replace(written.file, text=text)
    license_name = license_of_text(text) or cutting.license
    author = pseudonym(written.author) if cutting.keep_author else ""
    for example in extract_examples(file, written=written.lines, suffixes=cutting.suffix_share > 0):
        made = replace(example, time=written.time, license=license_name, author=author)
        # Drawn by what the example says, not by its place: the same example is always cut alike.
        bare = replace(made, suffix="")
        keeps = int(bare.id[:8], 16) < cutting.suffix_share * 2**32
        yield made if keeps and made.suffix.strip() else bare


def pseudonym(address: str) -> str:
    """Eight hex digits for an author's e-mail address, whatever its case."""
    return hashlib.blake2b(address.strip().casefold().encode(), digest_size=4).hexdigest()


def fill_journal(
    history: History,
    journal: Journal,
    cutting: Cutting,
    *,
    executor: Executor | None,
    progress: Callable[[int, int], None] = lambda done, examples: None,
) -> None:
    """Go through what the journal does not have yet; near-duplicates of what it has are left out.

    The newest version of what was written over and over is the one that stays. `executor` cuts commits beside the
    reading of others; what comes out is the same without.
    """
    alike = Deduplicator()
    for example in journal.examples():
        alike.add(example_text(example))
    counts = journal.counts
    pending: list[Example] = []
    rest = history.commits[journal.commits :]
    for number, cut in enumerate(_cut_all(history.read(rest), cutting, executor), start=1):
        counts.add(cut)
        for example in cut.examples:
            if repeats := alike.add(example_text(example)):
                counts.dropped[f"{repeats} duplicate"] += 1
            else:
                pending.append(example)
        if number % _SETTLED == 0 or number == len(rest):
            journal.settle(pending, commits=number % _SETTLED or _SETTLED)
            pending = []
        progress(journal.commits, journal.kept)


def _cut_all(commits: Iterable[CommitRead], cutting: Cutting, executor: Executor | None) -> Iterator[CutCommit]:
    if executor is None:
        yield from (cut_commit(read, cutting) for read in commits)
        return
    waiting: deque[Future[CutCommit]] = deque()
    for read in commits:
        waiting.append(executor.submit(cut_commit, read, cutting))
        if len(waiting) >= _WINDOW:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def write_dataset(
    journal: Journal,
    history: History,
    output: Path,
    evaluation: Path | None,
    *,
    eval_fraction: float,
    max_samples: int | None,
    seed: int,
    balance: float | None = None,
) -> DatasetReport:
    """Divide the journal by file and write both sides; the examples pass through one at a time.

    Raises:
        DataError: there is no example in it.
        StorageError: the place cannot be written.
    """
    sizes: Counter[tuple[str, str]] = Counter((example.repo, example.path) for example in journal.examples())
    total = sum(sizes.values())
    if not total:
        raise _nothing(history, journal)
    held_out = held_out_groups(sizes, eval_fraction if evaluation is not None else 0.0, seed)
    learnt = total - sum(sizes[group] for group in held_out)
    chosen: frozenset[int] | None
    level = learnt
    if balance is not None:
        names = [one.language for one in journal.examples() if (one.repo, one.path) not in held_out]
        places = balanced(names, balance, seed)
        chosen, level = frozenset(places), len(places)
        if (left := drawn(level, max_samples, seed)) is not None:
            chosen = frozenset(places[number] for number in left)
    else:
        chosen = drawn(learnt, max_samples, seed)
    languages: Counter[str] = Counter()

    def side(*, is_held_out: bool) -> Iterator[Example]:
        number = 0
        for example in journal.examples():
            if ((example.repo, example.path) in held_out) != is_held_out:
                continue
            if is_held_out or chosen is None or number in chosen:
                if not is_held_out:
                    languages[example.language or "not said"] += 1
                yield example
            number += 1

    train = write_examples(output, side(is_held_out=False))
    kept = write_examples(evaluation, side(is_held_out=True)) if evaluation is not None and held_out else 0
    counts = journal.counts
    notices = [f"{len(history.commits):,} commits read" + _listed(counts.passed_over, "; passed over: ")]
    notices += [ONE_GROUP] if evaluation is not None and not held_out else []
    if counts.without_grammar:
        notices.append(_listed(counts.without_grammar, "cut by lines alone, as no grammar tells their functions: "))
    dropped = counts.dropped + Counter({OVER_BALANCE: learnt - level, OVER_SAMPLES: level - train})
    return DatasetReport(
        files_found=counts.files + sum(counts.skipped.values()),
        files_used=counts.files,
        files_skipped=counts.skipped,
        examples_found=total + sum(counts.dropped.values()),
        dropped=dropped,
        redacted=counts.redacted,
        languages=languages,
        train=train,
        evaluation=kept,
        notices=tuple(notices),
    )


def journal_key(history: History, cutting: Cutting, options: str) -> str:
    """What names an extraction: the same commits read in the same way."""
    commits = hashlib.sha256("\n".join(history.commits).encode()).hexdigest()
    return hashlib.sha256(json.dumps([history.name, commits, cutting.key, options]).encode()).hexdigest()


def workers() -> int:
    """Processes that cut while this one reads: as many as there are cores, four at most."""
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _listed(counts: Counter[str], head: str) -> str:
    return head + ", ".join(f"{number:,} × {name}" for name, number in counts.most_common(6)) if counts else ""


def _nothing(history: History, journal: Journal) -> DataError:
    said = _listed(journal.counts.passed_over + journal.counts.skipped, "; passed over: ")
    return DataError(
        f"no examples: {len(history.commits):,} commits read, none of use{said}",
        hint="another --since, --author or --languages",
    )
