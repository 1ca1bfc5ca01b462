"""Which files and examples are worth learning from: rules with names, each of which can be switched off.

A rule looks at one file or one completion and says why it is not wanted, or nothing. Marks and names of generated and
vendored files are those of GitHub's Linguist (github-linguist: generated.rb, vendor.yml).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from neuralforge.data.example import Example
from neuralforge.data.license import license_of_text
from neuralforge.data.redact import PLACEHOLDER
from neuralforge.data.source import SourceFile
from neuralforge_common.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an example completes, taken apart once for all rules: `lines` are those that are not blank.

    `comments` are what their comments say, empty unless each line is one.
    """

    text: str
    lines: list[str]
    comments: list[str]


Subject = TypeVar("Subject", SourceFile, Completion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(Generic[Subject]):
    """`unwanted` holds of what the rule leaves out, under the rule's name. `is_on` unless somebody says otherwise."""

    name: str
    summary: str
    unwanted: Callable[[Subject], bool]
    is_on: bool = True


# --- Files ------------------------------------------------------------------------------------------------------------

# What generators write at the top of their output: the Go convention (go.dev/s/generatedcode), protoc, thrift,
# swagger, ANTLR, Meta's @generated. Only in a comment: code may well speak of generated files.
_GENERATED = re.compile(
    r"^[ \t]*(?:#|//|/\*|\*|--|;|%|<!--|\"\"\"|')"
    r"(?:.*(?:@generated|do not edit|(?-i:DO NOT MODIFY)|auto-?(?:matically )?generated|"
    r"(?:file|code|module|script) (?:is|was|has been) generated)|"
    r"\W*(?-i:(?:Code g|G)enerated (?:by|from|with|using)) )",
    re.IGNORECASE | re.MULTILINE,
)
_HEAD = 1_000
_GENERATED_NAME = re.compile(
    r"(?:^|/)(?:__generated__|generated)/|"
    r"(?:_pb2(?:_grpc)?\.pyi?|\.pb(?:\.gw|\.validate)?\.(?:go|cc|h)|_pb\.(?:js|rb|d\.ts)|\.(?:designer|g|g\.i)\.cs|"
    r"\.(?:g|freezed|gr|mocks)\.dart|\.generated\.\w+|[._-]min\.(?:js|css)|\.(?:bundle|chunk)\.js|_string\.go|"
    r"(?:^|/)(?:moc_\w+\.cpp|ui_\w+\.h|qrc_\w+\.cpp|bindata\.go|zz_generated\.\w+\.go|R\.java|BuildConfig\.java)|"
    r"(?:^|/)(?:package-lock\.json|yarn\.lock|pnpm-lock\.yaml|poetry\.lock|uv\.lock|Cargo\.lock|go\.sum))$"
)
_VENDORED_NAME = re.compile(
    r"(?:^|/)(?:_?vendor(?:ed)?|_?deps|externs?|externals?|third[-_]?party|3rd[-_]?party|dist|Godeps|gradle/wrapper)/|"
    r"(?:^|/)(?:jquery|bootstrap|angular|react|vue|d3|three|mootools|prototype|modernizr|ember|raphael|underscore)"
    r"(?:[.-]?\d[\w.]*)?(?:[._-](?:slim|min|bundle|umd|prod|production))*\.js$|"
    r"(?:^|/)(?:gradlew|mvnw|configure|config\.(?:guess|sub)|ltmain\.sh|versioneer\.py|ez_setup\.py|get-pip\.py)$"
)
_TEST_NAME = re.compile(
    r"(?:^|/)(?:tests?|__tests__|specs?|testing)/|(?:^|/)(?:test_[^/]*|conftest)\.py$|"
    r"(?:_test|_spec|[.-](?:test|spec)|Tests?|Spec)\.\w{1,5}$"
)
_LONGEST_LINE = 5_000
_MEAN_LINE = 110  # Linguist's mark for minified JavaScript
_MOST_LINES = 15_000
_LEAST_TABLE = 40  # lines
# A line of nothing but numbers, marks and quoted words: a row of somebody's table.
_ROW = re.compile(
    r"""[\s\[\](){},;:.|&+*/\\<>=\-]*+(?:(?:0[xX][0-9a-fA-F]++|[0-9][\w.]*+|["'][^"']{0,200}["']|true|false|null|None)"""
    r"""[\s\[\](){},;:.|&+*/\\<>=\-]*+)++"""
)


def _generated(file: SourceFile) -> bool:
    return _GENERATED.search(file.text, 0, _HEAD) is not None


def _generated_name(file: SourceFile) -> bool:
    return _GENERATED_NAME.search(file.path) is not None


def _vendored_name(file: SourceFile) -> bool:
    return _VENDORED_NAME.search(file.path) is not None


def _tests(file: SourceFile) -> bool:
    return _TEST_NAME.search(file.path) is not None


def _minified(file: SourceFile) -> bool:
    lines = file.text.split("\n")
    return len(file.text) > _MEAN_LINE * len(lines) or max(map(len, lines)) > _LONGEST_LINE


def _very_long(file: SourceFile) -> bool:
    return file.text.count("\n") > _MOST_LINES


def _data_file(file: SourceFile) -> bool:
    lines = [line for line in file.text.split("\n") if line.strip()]
    return len(lines) >= _LEAST_TABLE and _are_rows(lines, 0.7)


def _are_rows(lines: list[str], share: float) -> bool:
    """Whether more than this share of the lines are; it stops where too many are not."""
    others = 0
    for line in lines:
        if not _ROW.fullmatch(line):
            others += 1
            if len(lines) - others <= share * len(lines):
                return False
    return True


# --- Examples ---------------------------------------------------------------------------------------------------------

_COMMENT = re.compile(r"\s*(?:#|//|/\*|\*|--|;|%|<!--)\s*(.*)")
_LEGAL = re.compile(
    r"copyright|\(c\) (?:19|20)\d\d|licen[cs]ed? |all rights reserved|SPDX-|warrant(?:y|ies)|redistribut|permission is",
    re.IGNORECASE,
)
_STATEMENT = re.compile(
    r"(?:[\w.\[\]]+(?:: ?[\w.\[\]]+)? ?[+\-*/|&]?= ?[^=\s].*|(?:if|for|while|elif|else|try|with|def|class) ?[^.]*:|"
    r"(?:return|import|from|raise|del|assert|print|var|let|const|int|auto) ?.*[;()=\[\]].*|[\w.]+\(.*\)[;:]?|.*[;{}])$"
)
_IMPORT = re.compile(r"\s*(?:import|from|use|using|require|require_relative|include|#include|package|mod|extern)\b.*")
_ASIDE = re.compile(r"[\s(){}\[\],;'\"\w.*]{0,120}+")


def _taken_apart(text: str) -> Completion:
    lines = [line for line in text.split("\n") if line.strip()]
    comments: list[str] = []
    for line in lines:
        found = _COMMENT.match(line)
        if not found:
            comments = []
            break
        comments.append(found[1].strip())
    return Completion(text=text, lines=lines, comments=comments)


def _license_header(one: Completion) -> bool:
    legal = sum(_LEGAL.search(line) is not None for line in one.lines) if one.comments else 0
    return bool(one.comments) and legal * 4 >= len(one.lines)


def _commented_code(one: Completion) -> bool:
    return len(one.comments) >= 2 and sum(
        _STATEMENT.match(comment) is not None for comment in one.comments
    ) > 0.6 * len(one.comments)


def _data_rows(one: Completion) -> bool:
    return len(one.lines) >= 4 and _are_rows(one.lines, 0.8)


def _repetitive(one: Completion) -> bool:
    return len(one.lines) >= 6 and len({line.strip() for line in one.lines}) < 0.4 * len(one.lines)


def _mostly_redacted(one: Completion) -> bool:
    rest = PLACEHOLDER.sub("", one.text)
    return rest != one.text and sum(c.isalnum() for c in rest) < 8


def _imports(one: Completion) -> bool:
    found = sum(_IMPORT.match(line) is not None for line in one.lines)
    return found * 2 > len(one.lines) and all(_IMPORT.match(line) or _ASIDE.fullmatch(line) for line in one.lines)


def _short(one: Completion) -> bool:
    return len("".join(one.text.split())) < 40


FILE_RULES: tuple[Rule[SourceFile], ...] = (
    Rule(name="generated", summary="says at its top that a program wrote it", unwanted=_generated),
    Rule(name="generated-name", summary="is named as generators name files: _pb2.py, .pb.go", unwanted=_generated_name),
    Rule(name="vendored-name", summary="is named as other people's code: deps/, jquery.js", unwanted=_vendored_name),
    Rule(name="minified", summary="mean line over 110 characters, or one over 5,000", unwanted=_minified),
    Rule(name="very-long", summary="more than 15,000 lines", unwanted=_very_long),
    Rule(name="data-file", summary="more than 7 in 10 lines hold nothing but literals", unwanted=_data_file),
    Rule(name="tests", summary="is a test by its name or folder", unwanted=_tests, is_on=False),
)
EXAMPLE_RULES: tuple[Rule[Completion], ...] = (
    Rule(name="license-header", summary="completes a license or a copyright notice", unwanted=_license_header),
    Rule(name="commented-code", summary="completes code that is commented out", unwanted=_commented_code),
    Rule(name="data-rows", summary="completes rows of literals", unwanted=_data_rows),
    Rule(name="repetitive", summary="fewer than 4 in 10 lines of the completion differ", unwanted=_repetitive),
    Rule(name="mostly-redacted", summary="nothing is left of the completion but marks", unwanted=_mostly_redacted),
    Rule(name="imports", summary="completes nothing but imports", unwanted=_imports, is_on=False),
    Rule(name="short", summary="completion under 40 characters, space aside", unwanted=_short, is_on=False),
)
LICENSE = "license"
RULES_ON = {rule.name: rule.is_on for rule in FILE_RULES} | {rule.name: rule.is_on for rule in EXAMPLE_RULES}
"""Every rule's name, and whether it holds unless somebody says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The rules that are on, and the licenses that are allowed: all where `licenses` is empty.

    Rules are kept by name, so that processes can hand them to each other. A license that nobody knows is allowed
    unless `require_license`.
    """

    rules: frozenset[str] = frozenset(name for name, is_on in RULES_ON.items() if is_on)
    licenses: frozenset[str] = frozenset()
    require_license: bool = False

    @property
    def asks_license(self) -> bool:
        """Whether a license decides anything."""
        return bool(self.licenses) or self.require_license

    @property
    def key(self) -> str:
        """The same for the same decisions."""
        return f"{sorted(self.rules)}|{sorted(self.licenses)}|{self.require_license}"

    def refuses_file(self, file: SourceFile) -> str:
        """The rule that leaves a file out, or ""."""
        for rule in FILE_RULES:
            if rule.name in self.rules and rule.unwanted(file):
                return rule.name
        return self._refuses_license(license_of_text(file.text) or file.license) if self.asks_license else ""

    def refuses(self, example: Example) -> str:
        """The rule that leaves an example out, or ""."""
        completion = _taken_apart(example.completion)
        for rule in EXAMPLE_RULES:
            if rule.name in self.rules and rule.unwanted(completion):
                return rule.name
        return ""

    def refuses_ready(self, example: Example) -> str:
        """The same of an example that somebody else has chosen: its license alone is asked for."""
        return self._refuses_license(example.license) if self.asks_license else ""

    def _refuses_license(self, expression: str) -> str:
        if not expression:
            return f"{LICENSE} unknown" if self.require_license else ""
        return "" if not self.licenses or _allowed(expression, self.licenses) else f"{LICENSE} {expression}"


def _allowed(expression: str, licenses: frozenset[str]) -> bool:
    """Of an SPDX expression without brackets: one of the alternatives, with all of its parts."""
    plain = re.sub(r"(?i) with \S+", "", expression)  # an exception only allows more
    return any(
        all(_bare(part) in licenses for part in re.split(r"(?i) and ", alternative))
        for alternative in re.split(r"(?i) or ", plain)
    )


def _bare(license_name: str) -> str:
    return re.sub(r"(?:-only|-or-later|\+)$", "", license_name.strip().casefold())


def quality(
    *,
    without: Iterable[str] = (),
    extra: Iterable[str] = (),
    licenses: Iterable[str] = (),
    require_license: bool = False,
) -> Quality:
    """The rules that are on by default, less some, with others; SPDX identifiers of licenses, in any case.

    Raises:
        DataError: no rule has this name.
    """
    off, on = frozenset(map(known_rule, without)), frozenset(map(known_rule, extra))
    allowed = frozenset(_bare(name) for name in licenses if name.strip())
    return Quality(rules=(Quality().rules | on) - off, licenses=allowed, require_license=require_license)


def known_rule(name: str) -> str:
    """The name itself; DataError with the nearest where there is no such rule."""
    if name in RULES_ON:
        return name
    near = difflib.get_close_matches(name, RULES_ON, n=1)
    raise DataError(
        f"no rule is called {name!r}" + (f"; did you mean {near[0]}?" if near else ""),
        hint="neuralforge create-dataset --list-rules names all",
    )
