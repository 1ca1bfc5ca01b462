"""Three real histories to datasets by the command line: samples, drops, leakage, planted secrets, speed.

    python benchmarks/histories.py            a quarter of an hour; fetches releases from PyPI and npm
    python benchmarks/histories.py --quick    half a megabyte of each, under 50 seconds; asks no registry

The histories: this project's own, and two that are built from releases one after the other, a commit for a few files
that a release changed: networkx from its wheels, eslint from its npm packages. Nothing of a package is run. With
`--quick`, or where a registry does not answer, packages that are installed here stand in, as in `data_speed.py`: their
Python, and the headers of torch for another language.

Each is run as a person would run it, in processes: `extract-dataset` on a copy, `split-dataset` of what that wrote by
time, `analyze-dataset` of its two sides, with no base loaded. Speed is extraction alone, of source as `data_speed.py`
counts it.

Leakage: of the two sides that extraction wrote, and of the two that the division by time wrote, measured by
`data_speed.leakage`, which uses datasketch and none of our code.

Secrets: the copy has commits at its end that plant what `redaction.py` makes, each behind a numbered comment in a file
of the history, and one that takes them out again. A planted line is *reached* where its comment and the line behind it
stand in an example; recall is the share of those whose secret does not. One that is anywhere in any output is missed.

False positives: whatever `find_secrets`, which the command calls, takes out of the files of the history itself, each
version of a file anew. All of it counts as false, except e-mail addresses and names of authors, which are real, and
what is in files of tests, which hold keys on purpose; both are told apart. `--show` prints each for a person to judge.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_speed import FILES_PER_COMMIT, build, extend, git, installed, leakage, measured, run, versions
from redaction import MAKERS, PERSONS, TESTS, planted
from releases import Release, changes, packages, wheels

from neuralforge.data.redact import find_secrets

NEURALFORGE = [sys.executable, "-m", "neuralforge.cli.main"]
WHEELS = tuple(f"networkx=={version}" for version in ("2.8.8", "3.0", "3.1", "3.2.1", "3.3", "3.4.2"))
PACKAGES = tuple(f"eslint@{version}" for version in ("7.0.0", "7.32.0", "8.0.0", "8.57.0", "9.0.0", "9.20.0"))
_LEFT_OUT = re.compile(r"(files|examples) left out *│ *([\d,]+) *│ *(.*?) *│")
_COUNTED = re.compile(r"([^,]+?) ([\d,]*\d)(?:, |$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The language that is read, the end of its files' names, and how a comment begins."""

    language: str
    ending: str
    comment: str


PYTHON = Kind(language="python", ending=".py", comment="#")
JAVASCRIPT = Kind(language="javascript", ending=".js", comment="//")
HEADERS = Kind(language="c++", ending=".h", comment="//")


def main() -> None:
    """Build the histories, go through the commands, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 50 seconds, without a registry")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--show", action="store_true", help="print on standard error what counts as false positive")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["COLUMNS"] = "1000"  # no row of a table is folded
    with tempfile.TemporaryDirectory() as place:
        histories = made(Path(place), quick=args.quick)
        rows = [
            row(name, folder, kind, each=3 if args.quick else 20, seed=args.seed, show=args.show)
            for name, folder, kind in histories
        ]
    megabytes = sum(each["megabytes_outside_tests"] for each in rows)
    summary = {
        "recall": sum(each["reached"] - each["missed"] for each in rows) / sum(each["reached"] for each in rows),
        "false_positives_per_mb": sum(each["false_positives"] for each in rows) / megabytes,
        "leakage": max(each[name] for each in rows for name in each if name.startswith("leakage")),
        "mb_per_minute": sum(each["megabytes"] for each in rows) / sum(each["seconds"] for each in rows) * 60,
    }
    if args.json:
        print(json.dumps(summary | {"cpus": os.cpu_count(), "histories": rows}))
        return
    table(rows)
    print(
        f"\n{os.cpu_count()} CPUs; together: recall {summary['recall']:.1%}, {summary['false_positives_per_mb']:.2f} "
        f"false positives per MB, leakage {summary['leakage']:.2%}, {summary['mb_per_minute']:.0f} MB a minute"
    )


# --- Histories ------------------------------------------------------------------------------------------------------


def made(place: Path, *, quick: bool) -> list[tuple[str, Path, Kind]]:
    """Repositories, each with its name and language."""
    found: list[tuple[str, Path, Kind]] = []
    wanted = 6e5 if quick else 20e6
    own = Path(__file__).resolve().parents[1]
    if (own / ".git").exists():
        copy = place / "own"
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(own), str(copy)], check=True)
        git(copy, "checkout", "-q", "-B", "main")
        if quick:
            _shorten(copy, wanted)
        found.append(("this project", copy, PYTHON))
    for name, specifications, kind, fetch, stand_in, its_kind in (
        ("networkx", WHEELS, PYTHON, wheels, "networkx", PYTHON),
        ("eslint", PACKAGES, JAVASCRIPT, packages, "torch", HEADERS),
    ):
        folder = place / name
        releases = [] if quick else fetch(specifications, place / f"{name}.fetched", kind.ending)
        if releases:
            build(folder, changes(releases))
            found.append((f"{name}, {len(releases)} releases", folder, kind))
        else:
            build(folder, installed(wanted, packages=(stand_in,), pattern=f"*{its_kind.ending}"))
            found.append((f"{stand_in}, as installed", folder, its_kind))
    return found


def _shorten(repository: Path, bytes_wanted: float) -> None:
    """Let the branch end where so much is written."""
    names = git(repository, "rev-list", "--reverse", "--no-merges", "HEAD").split()
    written = 0
    for last in names:
        written += sum(size for _, _, size in versions(repository, [last], PYTHON.ending))
        if written >= bytes_wanted:
            git(repository, "reset", "-q", "--hard", last.decode())
            return


# --- One history ----------------------------------------------------------------------------------------------------


def row(name: str, repository: Path, kind: Kind, *, each: int, seed: int, show: bool) -> dict[str, Any]:
    """Through the commands with it; `each` secrets of a kind are planted."""
    found: dict[str, Any] = {"name": name, "language": kind.language}
    found |= false_positives(repository, kind, show=show)
    secrets = plant(repository, kind, each=each, seed=seed)
    commits, written = measured(repository, kind.ending)
    train, held_out = (repository.with_name(f"{repository.name}.{side}.jsonl") for side in ("train", "eval"))
    options = ["--languages", kind.language, "--output", str(train), "--eval-output", str(held_out)]
    seconds, _, peak, said = run([*NEURALFORGE, "extract-dataset", "--git-repo", str(repository), *options])
    found |= {"megabytes": written / 1e6, "commits": commits, "seconds": seconds, "peak_mb": peak}
    found |= {"mb_per_minute": 60 * written / 1e6 / seconds}
    for what, count, details in _LEFT_OUT.findall(said):
        found[f"{what}_left_out"] = _number(count)
        found[f"{what}_left_out_by"] = {reason: _number(many) for reason, many in _COUNTED.findall(details)}
    found |= leakage(train, held_out)
    sides = [train.with_suffix(f".{side}.jsonl") for side in ("train", "eval")]
    outputs = ["--train-output", str(sides[0]), "--eval-output", str(sides[1])]
    run([*NEURALFORGE, "split-dataset", str(train), "--by", "time", *outputs])
    by_time = leakage(*sides)
    found |= {f"{share}_by_time": by_time[share] for share in ("leakage_exact", "leakage_near")}
    against = ["--against", str(held_out), "--json", "--no-probe"]
    judged = json.loads(run([*NEURALFORGE, "analyze-dataset", str(train), *against])[3].splitlines()[-1])
    found |= {"verdict": judged["verdict"], "leakage_told": judged["leakage_share"]}
    return found | recall(secrets, (train, held_out), kind)


def _number(text: str) -> int:
    return int(text.replace(",", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A secret, its kind and the comment before it."""

    kind: str
    secret: str
    mark: str


def plant(repository: Path, kind: Kind, *, each: int, seed: int) -> list[Planted]:
    """Commit secrets of all kinds, each into a file of its own as far as there are so many, and take them out again."""
    draw = random.Random(f"{seed} {repository.name}")  # noqa: S311
    listed = git(repository, "ls-tree", "-r", "-z", "HEAD").split(b"\0")
    entries = [(told.split(), path) for told, _, path in (entry.partition(b"\t") for entry in listed if entry)]
    paths = [path.decode() for told, path in entries if told[0] == b"100644" and path.endswith(kind.ending.encode())]
    secrets = [(name, make(draw)) for name, make in MAKERS.items() for _ in range(each)]
    draw.shuffle(secrets)
    draw.shuffle(paths)
    found: list[Planted] = []
    held: Release = {}
    now: Release = {}
    steps: list[list[tuple[str, bytes | None]]] = []
    for start in range(0, len(secrets), FILES_PER_COMMIT):
        changed = set()
        for number, (name, secret) in enumerate(secrets[start : start + FILES_PER_COMMIT], start=start):
            path = paths[number % len(paths)]
            if path not in held:
                held[path] = now[path] = git(repository, "show", f"HEAD:{path}")
            lines = now[path].split(b"\n")
            # Long enough that the two lines are worth an example, whatever is left of the second.
            mark = f"{kind.comment} planted {number:04d}, for the service that answers all requests"
            at = draw.randrange(len(lines) + 1)
            lines[at:at] = f"{mark}\n{planted(name, secret, draw)}".encode().split(b"\n")
            now[path] = b"\n".join(lines)
            changed.add(path)
            found.append(Planted(kind=name, secret=secret, mark=mark))
        steps.append([(path, now[path]) for path in sorted(changed)])
    extend(repository, [*steps, list(held.items())])
    return found


def recall(secrets: Sequence[Planted], outputs: Sequence[Path], kind: Kind) -> dict[str, Any]:
    """How many of them reached an example, and how many stand in one."""
    texts = [text for path in outputs for text in _texts(path)]
    whole = "\0".join(texts)
    shown = set(re.findall(rf"{kind.comment} planted \d{{4}}, .*(?=\n.)", whole))
    missed = [one for one in secrets if one.secret in whole]
    reached = {one.mark for one in secrets if one.mark in shown} | {one.mark for one in missed}
    return {
        "planted": len(secrets),
        "reached": len(reached),
        "missed": len(missed),
        "missed_by_kind": dict(Counter(one.kind for one in missed)),
        "recall": 1 - len(missed) / max(1, len(reached)),
    }


def _texts(path: Path) -> Iterator[str]:
    """Context and completion as they stood together, and every other text of each example."""
    with path.open(encoding="utf-8") as stream:
        for one in map(json.loads, stream):
            yield one["context"] + one["completion"]
            yield from (value for name, value in one.items() if isinstance(value, str) and name != "context")


def false_positives(repository: Path, kind: Kind, *, show: bool) -> dict[str, Any]:
    """What is taken out of each version of each file that the history wrote."""
    written = versions(repository, git(repository, "rev-list", "--no-merges", "HEAD").split(), kind.ending)
    content = git(repository, "cat-file", "--batch", given="".join(f"{name}\n" for _, name, _ in written).encode())
    by_kind: Counter[str] = Counter()
    in_tests: Counter[str] = Counter()
    at = outside = 0
    for path, _, size in written:
        at = content.index(b"\n", at) + 1
        text = content[at : at + size].decode("utf-8", "replace")
        at += size + 1
        counts = in_tests if TESTS.search(path) else by_kind
        outside += 0 if counts is in_tests else size
        for secret in find_secrets(text):
            counts[secret.kind] += 1
            if show and counts is by_kind and secret.kind not in PERSONS:
                print(path, secret.kind, repr(text[max(0, secret.start - 40) : secret.end + 20]), file=sys.stderr)
    persons = sum(by_kind[name] for name in PERSONS)
    false = by_kind.total() - persons
    return {
        "megabytes_outside_tests": outside / 1e6,
        "false_positives": false,
        "false_positives_by_kind": {name: count for name, count in by_kind.most_common() if name not in PERSONS},
        "false_positives_per_mb": false / (outside / 1e6),
        "persons": persons,
        "redacted_in_tests": in_tests.total(),
    }


def table(rows: Sequence[dict[str, Any]]) -> None:
    """As Markdown, a history a column."""
    lines = {
        "MB of source, plants included": "{megabytes:.1f}",
        "commits": "{commits:,}",
        "to learn from / held out": "{train:,} / {evaluation:,}",
        "files left out": "{files_left_out:,}: {files}",
        "examples left out": "{examples_left_out:,}: {examples}",
        "leakage, exact / near": "{leakage_exact:.2%} / {leakage_near:.2%}",
        "… of `split-dataset --by time`": "{leakage_exact_by_time:.2%} / {leakage_near_by_time:.2%}",
        "verdict of `analyze-dataset`": "{verdict}",
        "secrets planted / reached / missed": "{planted} / {reached} / {missed}",
        "recall": "{recall:.1%}",
        "false positives per MB": "{false_positives_per_mb:.2f}",
        "persons, and all in tests": "{persons} and {redacted_in_tests}",
        "MB a minute": "{mb_per_minute:.0f}",
        "MB of memory, peak": "{peak_mb:.0f}",
    }
    print(f"| | {' | '.join(row['name'] for row in rows)} |\n|---|{'---|' * len(rows)}")
    for name, form in lines.items():
        cells = (form.format(**row, files=_most(row, "files"), examples=_most(row, "examples")) for row in rows)
        print(f"| {name} | {' | '.join(cells)} |")


def _most(row: dict[str, Any], what: str) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in list(row[f"{what}_left_out_by"].items())[:3])


if __name__ == "__main__":
    main()
