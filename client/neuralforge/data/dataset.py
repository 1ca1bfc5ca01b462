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

from neuralforge.data.dedup import Deduplicator, example_text, line_shingles
from neuralforge.data.example import Example
from neuralforge.data.extract import extract_examples, unfit_reason
from neuralforge.data.redact import PLACEHOLDER, redact, redact_pair
from neuralforge.data.source import SourceFiles
from neuralforge_common.errors import DataError

Group = TypeVar("Group", bound=Hashable)

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
) -> Dataset:
    """Cut source files into examples and split them by file.

    Raises:
        DataError: not one example came out; the message says what stood in the way.
    """
    skipped: Counter[str] = Counter()
    redacted: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    whole_files, alike = Deduplicator(line_shingles), Deduplicator()
    examples: list[Example] = []
    used = found = 0
    for file in files:
        if reason := unfit_reason(file.text):
            skipped[reason] += 1
            continue
        text, secrets = redact(file.text)
        if repeats := whole_files.add(text):
            skipped["same content as another file" if repeats == "exact" else "near-duplicate of another file"] += 1
            continue
        redacted += secrets
        used += 1
        for example in extract_examples(replace(file, text=text)):
            found += 1
            if repeats := alike.add(example_text(example)):
                dropped[f"{repeats} duplicate"] += 1
            else:
                examples.append(example)
    report = DatasetReport(
        files_found=files.tally.found,
        files_used=used,
        files_skipped=files.tally.skipped + skipped,
        unsupported=files.tally.unsupported,
        examples_found=found,
        dropped=dropped,
        redacted=redacted,
    )
    if not examples:
        raise _nothing(report)
    train, evaluation = _split(examples, lambda example: (example.repo, example.path), eval_fraction, seed)
    return _finished(train, evaluation, report, eval_fraction, max_samples, max_eval_samples, seed)


def dataset_from_examples(
    examples: Iterable[Example],
    *,
    evaluation: Iterable[Example] | None = None,
    eval_fraction: float = 0.1,
    max_samples: int | None = None,
    max_eval_samples: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Clean ready-made examples; hold some out by file where they say their file, unless `evaluation` is given.

    A training example that stands, or nearly stands, in a given `evaluation` is dropped from training.

    Raises:
        DataError: a file that cannot be read, or nothing left to learn from.
    """
    redacted: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    alike = Deduplicator()
    given = list(evaluation) if evaluation is not None else None
    held_out = _cleaned(given or (), alike, redacted, dropped, "{} duplicate, held out")
    everything = list(examples)
    train = _cleaned(everything, alike, redacted, dropped, "{} duplicate")
    report = DatasetReport(examples_found=len(everything) + len(given or ()), dropped=dropped, redacted=redacted)
    if not train and not given:
        raise DataError(f"nothing is left to learn from: all {len(everything)} examples hold nothing but a secret")
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
    return _finished(train, held_out, report, 0.0 if given else eval_fraction, max_samples, max_eval_samples, seed)


def _cleaned(
    examples: Iterable[Example], alike: Deduplicator, redacted: Counter[str], dropped: Counter[str], label: str
) -> list[Example]:
    kept = []
    for example in examples:
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


def _finished(
    train: Sequence[Example],
    evaluation: Sequence[Example],
    report: DatasetReport,
    eval_fraction: float,
    max_samples: int | None,
    max_eval_samples: int | None,
    seed: int,
) -> Dataset:
    kept = _sample(train, max_samples, seed)
    held_out = _sample(evaluation, max_eval_samples, seed)
    dropped = report.dropped + Counter(
        {
            "over --max-samples": len(train) - len(kept),
            "held out, over max_eval_samples": len(evaluation) - len(held_out),
        }
    )
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
