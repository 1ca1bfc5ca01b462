"""Files or examples made into a dataset: redacted, without near-duplicates, split so that nothing leaks.

The order matters. Secrets go first, so that nothing after this holds one. Then whole files that repeat another, then
examples that do: after that no two examples are alike, and whatever the split, the held-out side has nothing that was
trained on. The split itself is by file, because neighbours in a file share names that a random split would give away.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from neuralforge.data.balance import balanced
from neuralforge.data.decision import Decision, Watch, nobody
from neuralforge.data.dedup import Deduplicator, example_text, line_shingles
from neuralforge.data.example import Example
from neuralforge.data.extract import extract_examples
from neuralforge.data.license import license_of_text
from neuralforge.data.quality import Quality
from neuralforge.data.redact import PLACEHOLDER, redact, redact_pair
from neuralforge.data.source import SourceFile, SourceFiles
from neuralforge_common.errors import DataError

Group = TypeVar("Group", bound=Hashable)

OVER_BALANCE, OVER_SAMPLES = "over --balance", "over --max-samples"
ONE_GROUP = "all examples come from one file: nothing is held out, because neighbours in a file give each other away"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReport:
    """What came in, what was left out and why. Files are None where examples came ready-made."""

    files_found: int | None = None
    files_used: int | None = None
    files_skipped: Counter[str] = field(default_factory=Counter)
    unsupported: Counter[str] = field(default_factory=Counter)
    examples_found: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    redacted: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    train: int = 0
    evaluation: int = 0
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Examples to learn from and those held out; no two of all of them are alike."""

    train: tuple[Example, ...]
    evaluation: tuple[Example, ...]
    report: DatasetReport

    @property
    def digest(self) -> str:
        """SHA-256 over the ids of both sides, in order, as 64 hex digits."""
        sides = ("\n".join(example.id for example in side) for side in (self.train, self.evaluation))
        return hashlib.sha256("\n\n".join(sides).encode()).hexdigest()


def build_dataset(
    files: SourceFiles,
    *,
    eval_fraction: float,
    max_samples: int | None = None,
    max_eval_samples: int | None = None,
    seed: int = 0,
    quality: Quality | None = None,
    balance: float | None = None,
    watch: Watch = nobody,
) -> Dataset:
    """Cut source files into examples and split them by file.

    `quality` None is the rules that are on by default. `balance` cuts each language of the training side to so many
    times the median. `watch` is told of every file and example that was read.

    Raises:
        DataError: not one example came out; the message says what stood in the way.
    """
    skipped: Counter[str] = Counter()
    redacted: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    quality = quality or Quality()
    whole_files, alike = Deduplicator(line_shingles), Deduplicator()
    kept_files: list[str] = []
    examples: list[Example] = []
    found = 0
    for file in files:
        if reason := quality.refuses_file(file):
            skipped[reason] += 1
            watch(Decision(path=file.path, reason=reason))
            continue
        text, secrets = redact(file.text)
        if repeats := whole_files.add(text):
            reason = "same content as another file" if repeats == "exact" else "near-duplicate of another file"
            skipped[reason] += 1
            watch(Decision(path=file.path, reason=reason, twin=kept_files[whole_files.twin]))
            continue
        redacted += secrets
        kept_files.append(file.path)
        watch(Decision(path=file.path))
        for example in extract_examples(_as_learnt(file, text)):
            found += 1
            if reason := quality.refuses(example):
                twin = ""
            elif repeats := alike.add(example_text(example)):
                reason, twin = f"{repeats} duplicate", examples[alike.twin].id
            else:
                examples.append(example)
                continue
            dropped[reason] += 1
            watch(Decision(path=file.path, id=example.id, reason=reason, twin=twin))
    report = DatasetReport(
        files_found=files.tally.found,
        files_used=len(kept_files),
        files_skipped=files.tally.skipped + skipped,
        unsupported=files.tally.unsupported,
        examples_found=found,
        dropped=dropped,
        redacted=redacted,
    )
    if not examples:
        raise _nothing(report)
    train, evaluation = _split(examples, lambda example: (example.repo, example.path), eval_fraction, seed)
    cuts = Cuts(max_samples=max_samples, max_eval_samples=max_eval_samples, balance=balance, seed=seed)
    return _finished(train, evaluation, report, eval_fraction, cuts, watch)


def _as_learnt(file: SourceFile, text: str) -> SourceFile:
    """With what was redacted, and the license that the file itself names, if it does."""
    return replace(file, text=text, license=license_of_text(text) or file.license)


def dataset_from_examples(
    examples: Iterable[Example],
    *,
    evaluation: Iterable[Example] | None = None,
    eval_fraction: float = 0.1,
    max_samples: int | None = None,
    max_eval_samples: int | None = None,
    seed: int = 0,
    quality: Quality | None = None,
    balance: float | None = None,
) -> Dataset:
    """Clean ready-made examples; hold some out by file where they say their file, unless `evaluation` is given.

    A training example that stands, or nearly stands, in a given `evaluation` is dropped from training. Of the rules of
    `quality` only those of licenses hold: the examples were chosen by somebody else.

    Raises:
        DataError: a file that cannot be read, or nothing left to learn from.
    """
    redacted: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    alike = Deduplicator()
    given = list(evaluation) if evaluation is not None else None
    quality = quality or Quality()
    held_out = _cleaned(given or (), alike, redacted, dropped, "{} duplicate, held out", quality)
    everything = list(examples)
    train = _cleaned(everything, alike, redacted, dropped, "{} duplicate", quality)
    report = DatasetReport(examples_found=len(everything) + len(given or ()), dropped=dropped, redacted=redacted)
    if not train and not given:
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in dropped.most_common(4))
        raise DataError(
            f"nothing is left to learn from: all {len(everything)} examples hold nothing but a secret"
            if set(dropped) <= {"nothing but a secret"}
            else f"nothing is left to learn from: all {len(everything)} examples are left out ({reasons})"
        )
    if not train:
        raise DataError(
            f"nothing is left to learn from: all {len(everything)} examples stand in the held-out file",
            hint="hold out another file, or none: a part of the training file is then held out",
        )
    if given is None:
        numbers = {id(example): number for number, example in enumerate(train)}
        # An example that names no file shares it with nobody.
        train, held_out = _split(
            train, lambda example: (example.repo, example.path) if example.path else numbers[id(example)],
            eval_fraction, seed,
        )  # fmt: skip
    cuts = Cuts(max_samples=max_samples, max_eval_samples=max_eval_samples, balance=balance, seed=seed)
    return _finished(train, held_out, report, 0.0 if given else eval_fraction, cuts, nobody)


def _cleaned(
    examples: Iterable[Example],
    alike: Deduplicator,
    redacted: Counter[str],
    dropped: Counter[str],
    label: str,
    quality: Quality,
) -> list[Example]:
    kept = []
    for example in examples:
        if reason := quality.refuses_ready(example):
            dropped[reason] += 1
            continue
        context, completion, secrets = redact_pair(example.context, example.completion)
        redacted += secrets
        if not PLACEHOLDER.sub("", completion).strip():
            dropped["nothing but a secret"] += 1
            continue
        clean = replace(example, context=context, completion=completion) if secrets else example
        if repeats := alike.add(example_text(clean)):
            dropped[label.format(repeats)] += 1
        else:
            kept.append(clean)
    return kept


def _split(
    examples: Sequence[Example], group_of: Callable[[Example], Hashable], fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Hold out whole groups, in an order drawn from the seed, until `fraction` of the examples is reached."""
    sizes = Counter(map(group_of, examples))
    held_out = held_out_groups(sizes, fraction, seed)
    return (
        [example for example in examples if group_of(example) not in held_out],
        [example for example in examples if group_of(example) in held_out],
    )


def held_out_groups(sizes: Mapping[Group, int], fraction: float, seed: int) -> frozenset[Group]:
    """Which groups of examples to hold out, drawn from the seed until `fraction` of the examples is reached.

    None where there is a single group. `sizes` decides by its order, too.
    """
    if fraction == 0 or len(sizes) < 2:
        return frozenset()
    order = list(sizes)
    held_out: set[Group] = set()
    wanted, count = fraction * sum(sizes.values()), 0
    for place in generator(seed).permutation(len(order)):
        size = sizes[order[place]]
        # A group that would more than double what is wanted is passed over, unless nothing else is held out yet.
        if count >= wanted or len(held_out) == len(order) - 1:
            break
        if count + size <= max(2 * wanted, 1):
            held_out.add(order[place])
            count += size
    return frozenset(held_out or {min(order, key=lambda group: sizes[group])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """How much is left at the end: languages against each other first, then the sizes of both sides."""

    max_samples: int | None = None
    max_eval_samples: int | None = None
    balance: float | None = None
    seed: int = 0


def _finished(
    train: Sequence[Example],
    evaluation: Sequence[Example],
    report: DatasetReport,
    eval_fraction: float,
    cuts: Cuts,
    watch: Watch,
) -> Dataset:
    level = [train[place] for place in balanced([one.language for one in train], cuts.balance, cuts.seed)]
    kept = _sample(level, cuts.max_samples, cuts.seed)
    held_out = _sample(evaluation, cuts.max_eval_samples, cuts.seed)
    sizes = {
        OVER_BALANCE: (train, level),
        OVER_SAMPLES: (level, kept),
        "held out, over max_eval_samples": (evaluation, held_out),
    }
    dropped = report.dropped + Counter({reason: len(had) - len(has) for reason, (had, has) in sizes.items()})
    if watch is not nobody:
        _tell(watch, sizes, kept, held_out)
    return Dataset(
        train=kept,
        evaluation=held_out,
        report=replace(
            report,
            dropped=dropped,
            languages=Counter(example.language or "not said" for example in kept),
            train=len(kept),
            evaluation=len(held_out),
            notices=(ONE_GROUP,) if eval_fraction > 0 and not held_out else (),
        ),
    )


def _tell(
    watch: Watch,
    sizes: Mapping[str, tuple[Sequence[Example], Sequence[Example]]],
    kept: Sequence[Example],
    held_out: Sequence[Example],
) -> None:
    for reason, (had, has) in sizes.items():
        left = {id(example) for example in has}
        for example in had:
            if id(example) not in left:
                watch(Decision(path=example.path, id=example.id, reason=reason))
    for side in (kept, held_out):
        for example in side:
            watch(Decision(path=example.path, id=example.id))


def _sample(examples: Sequence[Example], most: int | None, seed: int) -> tuple[Example, ...]:
    """At most so many, drawn evenly and left in their order."""
    chosen = drawn(len(examples), most, seed)
    return tuple(examples) if chosen is None else tuple(examples[i] for i in sorted(chosen))


def drawn(count: int, most: int | None, seed: int) -> frozenset[int] | None:
    """Which of `count` examples stay where at most so many may; None where all do."""
    if most is None or count <= most:
        return None
    return frozenset(generator(seed).permutation(count)[:most].tolist())


def generator(seed: int) -> np.random.Generator:
    """Numbers that are a function of the seed alone."""
    return np.random.Generator(np.random.Philox(key=seed))


def _nothing(report: DatasetReport) -> DataError:
    if not report.files_found:
        return DataError("no examples: there are no files there", hint="name a repository or folder with source code")
    reasons = ", ".join(f"{count:,} × {reason}" for reason, count in report.files_skipped.most_common(4))
    suffixes = ", ".join(suffix for suffix, _ in report.unsupported.most_common(5))
    what = f"passed over: {reasons}" if reasons else "too short to hold a completion"
    return DataError(
        f"no examples: {report.files_found:,} files found, none of use ({what}"
        + (f"; suffixes: {suffixes})" if suffixes else ")"),
        hint="--pattern names files of any kind, such as '*.txt'; --language chooses another language",
    )
