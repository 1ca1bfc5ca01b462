"""What a dataset is like, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from shlex import quote
from typing import Literal

from neuralforge.data.dedup import Deduplicator, example_text
from neuralforge.data.example import Example
from neuralforge.data.leakage import Leakage, measure_leakage
from neuralforge.data.redact import find_secrets

Verdict = Literal["ready", "usable, with warnings", "do not train on it yet"]
FEW = 100
"""Fewer examples than the guide's minimum for a personal style."""
DOMINANT = 0.9
"""One language or repository with more than this share leaves the others next to nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of examples under one tokenizer: quantiles of whole ones, and the shares that `max_length` cuts.

    A context that is cut at its beginning shows the base less; a completion that is cut is learnt in part.
    """

    max_length: int
    quantiles: dict[int, int]
    context_cut: float
    completion_cut: float
    histogram: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """The facts; `secrets` and `duplicates` count examples by kind. No text of an example is in it."""

    examples: int
    languages: Counter[str]
    repos: Counter[str]
    files: int
    licenses: Counter[str]
    duplicates: Counter[str]
    secrets: Counter[str]
    with_suffix: int
    short: int
    leakage: Leakage | None = None
    lengths: Lengths | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing to know; `severe` where to train on the dataset is a mistake. `way_out` is a command or advice."""

    text: str
    severe: bool = False
    way_out: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The verdict, why, and what to run next."""

    verdict: Verdict
    findings: tuple[Finding, ...] = field(default=())
    next: str = ""


def analyze(train: Sequence[Example], against: Sequence[Example] | None = None) -> Analysis:
    """Count what can be counted without a model."""
    alike = Deduplicator()
    duplicates: Counter[str] = Counter(filter(None, (alike.add(example_text(example)) for example in train)))
    secrets: Counter[str] = Counter()
    for example in (*train, *(against or ())):
        secrets.update({secret.kind for secret in find_secrets(example.context + example.completion)})
    return Analysis(
        examples=len(train),
        languages=Counter(example.language or "not said" for example in train),
        repos=Counter(example.repo or "not said" for example in train),
        files=len({(example.repo, example.path) for example in train if example.path}),
        licenses=Counter(example.license or "not said" for example in train),
        duplicates=duplicates,
        secrets=secrets,
        with_suffix=sum(bool(example.suffix) for example in train),
        short=sum(len("".join(example.completion.split())) < 5 for example in train),
        leakage=None if against is None else measure_leakage(train, against),
    )


def measure_lengths(sizes: Sequence[tuple[int, int]], max_length: int, *, bins: int = 24) -> Lengths:
    """Of tokens of context and completion, end mark included; the histogram's last bin holds all that are longer."""
    ordered = sorted(context + completion for context, completion in sizes)
    top = max(1, min(ordered[-1], 4 * max_length))
    width = max(1, -(-top // bins))
    counts = Counter(min(length // width, bins - 1) for length in ordered)
    # As `tokens.tokenize` cuts: half of the room always belongs to the completion.
    cut = [completion > max(max_length - context, max_length // 2) for context, completion in sizes]
    return Lengths(
        max_length=max_length,
        quantiles={q: ordered[min(len(ordered) - 1, q * len(ordered) // 100)] for q in (5, 50, 95, 99)},
        context_cut=sum(length > max_length for length in ordered) / len(ordered),
        completion_cut=sum(cut) / len(cut),
        histogram=tuple((number * width, counts[number]) for number in range(bins)),
    )


def judge(analysis: Analysis, *, train: str, against: str | None) -> Judgement:
    """Decide; `train` and `against` are the files' names, for the commands that are told, quoted for a shell."""
    train, against = quote(train), None if against is None else quote(against)
    findings = [*_severe(analysis, train, against), *_mild(analysis, train, against)]
    severe = [finding for finding in findings if finding.severe]
    if severe:
        way_out = next((finding.way_out for finding in severe if finding.way_out), "")
        return Judgement(verdict="do not train on it yet", findings=tuple(findings), next=way_out)
    held_out = f" --eval-dataset {against}" if against else ""
    lengths = analysis.lengths
    longer = f" --max-length {2 * lengths.max_length}" if lengths is not None and _much_is_cut(lengths) else ""
    return Judgement(
        verdict="usable, with warnings" if findings else "ready",
        findings=tuple(findings),
        next=f"neuralforge train --dataset {train}{held_out}{longer}",
    )


def _severe(analysis: Analysis, train: str, against: str | None) -> list[Finding]:
    findings = []
    if analysis.leakage is not None and analysis.leakage.share > 0:
        leak = analysis.leakage
        findings.append(
            Finding(
                text=f"{leak.share:.1%} of the held-out examples stand in the training side "
                f"({leak.exact} to the token, {leak.near} nearly): what is measured on them says nothing",
                severe=True,
                way_out=f"cat {train} {against} > both.jsonl && neuralforge split-dataset both.jsonl",
            )
        )
    if analysis.secrets:
        kinds = ", ".join(f"{kind} in {count}" for kind, count in analysis.secrets.most_common(5))
        findings.append(
            Finding(
                text=f"secrets or personal data are in it ({kinds}); training redacts them, the file itself holds them",
                severe=True,
                way_out="make the file anew with extract-dataset or create-dataset, which redact before they write",
            )
        )
    return findings


def _mild(analysis: Analysis, train: str, against: str | None) -> list[Finding]:
    findings = []
    if analysis.examples < FEW:
        findings.append(Finding(text=f"{analysis.examples} examples are few: from 100 on a style can be learnt"))
    share = sum(analysis.duplicates.values()) / analysis.examples
    if share > 0.01:
        findings.append(
            Finding(text=f"{share:.1%} repeat another example; training leaves them out, other programs do not")
        )
    if analysis.short:
        findings.append(Finding(text=f"{analysis.short} completions are shorter than 5 characters"))
    for counts, kind in ((analysis.languages, "languages"), (analysis.repos, "repositories")):
        name, most = counts.most_common(1)[0]
        if len(counts) > 1 and most / analysis.examples > DOMINANT:
            text = f"{most / analysis.examples:.0%} are {'' if kind == 'languages' else 'of '}{name}"
            findings.append(Finding(text=f"{text}: the other {kind} hardly count"))
    if analysis.lengths is not None and _much_is_cut(analysis.lengths):
        share, limit = analysis.lengths.completion_cut, analysis.lengths.max_length
        findings.append(Finding(text=f"{share:.0%} of the completions do not fit into {limit} tokens and are cut"))
    if against is None:
        findings.append(
            Finding(
                text="nothing is held out; training holds a tenth of the files out by itself",
                way_out=f"neuralforge split-dataset {train}",
            )
        )
    return findings


def _much_is_cut(lengths: Lengths) -> bool:
    return lengths.completion_cut > 0.1
