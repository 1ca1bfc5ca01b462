"""What a commit has written, redacted and cut into examples: a function of its arguments, for any process."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from neuralforge.data.decision import Decision, Watch, nobody
from neuralforge.data.dedup import Print, example_text, token_prints
from neuralforge.data.example import Example
from neuralforge.data.extract import extract_examples
from neuralforge.data.functions import has_functions
from neuralforge.data.history import CommitRead, Written
from neuralforge.data.jsonl import encode_example
from neuralforge.data.license import license_of_text
from neuralforge.data.quality import Quality
from neuralforge.data.redact import redact


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
class CutFile:
    """The examples of one file, each as a line of JSON with its print."""

    repo: str
    path: str
    language: str
    commit: str
    lines: list[bytes]
    prints: list[Print]


@dataclass(frozen=True, slots=True, kw_only=True)
class CutCommit:
    """The examples of one commit or a part of one, by file, and what was left out of it."""

    cut: tuple[CutFile, ...] = ()
    files: int = 0
    passed_over: str = ""
    skipped: Counter[str]
    dropped: Counter[str]
    redacted: Counter[str]
    without_grammar: Counter[str]
    is_last: bool = True


def cut_commit(read: CommitRead, cutting: Cutting, watch: Watch = nobody) -> CutCommit:
    """Redact and cut what a commit has written; `watch` is told of each file, and of each example that a rule drops."""
    skipped = Counter(read.skipped)
    dropped: Counter[str] = Counter()
    redacted: Counter[str] = Counter()
    without: Counter[str] = Counter()
    cut: list[CutFile] = []
    files = 0
    for written in read.written:
        file = written.file
        reason = cutting.quality.refuses_file(replace(file, license=cutting.license))
        text, secrets = redact(file.text) if not reason else ("", Counter[str]())
        if not reason and text.count("\n") != file.text.count("\n"):
            reason = "holds a secret of several lines"
        watch(Decision(path=file.path, commit=file.commit, reason=reason))
        if reason:
            skipped[reason] += 1
            continue
        files += 1
        redacted += secrets
        if not has_functions(file.language):
            without[file.language or "no language"] += 1
        kept: list[Example] = []
        for example in _examples(written, text, cutting):
            if reason := cutting.quality.refuses(example):
                dropped[reason] += 1
                if watch is not nobody:
                    watch(Decision(path=file.path, commit=file.commit, id=example.id, reason=reason))
            else:
                kept.append(example)
        if kept:
            cut.append(_as_lines(kept))
    return CutCommit(
        cut=tuple(cut),
        files=files,
        passed_over=read.passed_over,
        skipped=skipped,
        dropped=dropped,
        redacted=redacted,
        without_grammar=without,
        is_last=read.is_last,
    )


def _as_lines(examples: list[Example]) -> CutFile:
    first = examples[0]
    return CutFile(
        repo=first.repo,
        path=first.path,
        language=first.language,
        commit=first.commit,
        lines=[encode_example(example, f"{first.path} in {first.commit}") for example in examples],
        prints=token_prints([example_text(example) for example in examples]),
    )


def _examples(written: Written, text: str, cutting: Cutting) -> Iterator[Example]:
    return extract_examples(
        replace(written.file, text=text, license=license_of_text(text) or cutting.license),
        written=written.lines,
        suffix_share=cutting.suffix_share,
        time=written.time,
        author=pseudonym(written.author) if cutting.keep_author else "",
    )


def pseudonym(address: str) -> str:
    """Eight hex digits for an author's e-mail address, whatever its case."""
    return hashlib.blake2b(address.strip().casefold().encode(), digest_size=4).hexdigest()
