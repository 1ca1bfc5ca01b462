"""A history to a dataset: `neuralforge extract-dataset` beside PyDriller and datasketch, on the same repositories.

    python benchmarks/data_speed.py            some minutes, nearly all of them the peer's
    python benchmarks/data_speed.py --quick    smaller repositories, under 50 seconds; start-up weighs heavier there

The repositories are real code: packages that are installed here, committed in small steps as two releases each (the
first lacks the last third of every file), and this project's own history where it lies around. A megabyte of source is
what the commits wrote, each new version of a file once; former versions are read too and do not count.

Ours is the command as a user runs it, in a process of its own: read, redact, cut, drop near-duplicates, divide by file,
write. The peer reads with PyDriller, takes each run of added lines behind the text before it, drops near-duplicates
with datasketch (128 values, Jaccard 0.8) and writes; it redacts nothing, tells no functions and divides nothing, all of
which is in its favour. It has one process, as PyDriller reads in one.

Leakage is measured on what the command wrote, by datasketch and sets of shingles made here: the share of held-out
examples whose answer, behind the line that it continues, stands in the training side, letter for letter or at a Jaccard
similarity of at least 0.8.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from datasketch import MinHash, MinHashLSH

PACKAGES = ("networkx", "sqlalchemy", "pygments", "flwr", "sympy", "scipy", "pandas", "transformers")
FILES_PER_COMMIT = 8
THRESHOLD, VALUES, SHINGLE, CONTEXT = 0.8, 128, 5, 2_000
_TOKEN = re.compile(r"\w+|[^\w\s]")


def main() -> None:
    """Build the repositories, run both, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--megabytes", type=float, default=0.0, help="of source in the built repository (40; quick: 4)")
    parser.add_argument("--child", nargs=2, metavar=("REPO", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps({"examples": peer(Path(args.child[0]), Path(args.child[1]))}))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        built = Path(place, "releases")
        build(built, installed((args.megabytes or (4.0 if args.quick else 40.0)) * 1e6))
        rows.append(compare("releases", built, Path(place)))
        own = Path(__file__).resolve().parents[1]
        if not args.quick and (own / ".git").exists():
            rows.append(compare("this project", own, Path(place)))
    first = rows[0]
    names = ("mb_per_minute", "speedup_vs_peer", "leakage_exact", "leakage_near", "peak_mb")
    summary = {name: first[name] for name in names}
    if args.json:
        print(json.dumps(summary | {"cpus": os.cpu_count(), "repositories": rows}))
        return
    print(f"{os.cpu_count()} CPUs\n")
    print(
        "| repository | MB | commits | ours, s | MB/min | peer, s | times | train | held out | exact | near | MB peak |"
    )
    print("|---|" + "---:|" * 11)
    for row in rows:
        print(
            f"| {row['name']} | {row['megabytes']:.1f} | {row['commits']} | {row['seconds']:.1f} "
            f"| {row['mb_per_minute']:.0f} | {row['peer_seconds']:.1f} | {row['speedup_vs_peer']:.1f} "
            f"| {row['train']} | {row['evaluation']} | {row['leakage_exact']:.2%} | {row['leakage_near']:.2%} "
            f"| {row['peak_mb']:.0f} |"
        )


def compare(name: str, repository: Path, place: Path) -> dict[str, Any]:
    """Both on one repository, one after the other."""
    commits, written = measured(repository)
    train, held_out = place / f"{name}.train.jsonl", place / f"{name}.eval.jsonl"
    command = [sys.executable, "-m", "neuralforge.cli.main", "extract-dataset", "--git-repo", str(repository)]
    options = ("--languages", "python", "--output", str(train), "--eval-output", str(held_out))
    seconds, cpu, peak, _ = run([*command, *options])
    peer_command = [sys.executable, str(Path(__file__).resolve()), "--child", str(repository)]
    peer_seconds, peer_cpu, peer_peak, said = run([*peer_command, str(place / f"{name}.peer.jsonl")])
    return {
        "name": name,
        "megabytes": written / 1e6,
        "commits": commits,
        "seconds": seconds,
        "mb_per_minute": 60 * written / 1e6 / seconds,
        "cpu_seconds": cpu,
        "peak_mb": peak,
        "peer_seconds": peer_seconds,
        "peer_cpu_seconds": peer_cpu,
        "peer_peak_mb": peer_peak,
        "peer_examples": json.loads(said)["examples"],
        "speedup_vs_peer": peer_seconds / seconds,
        **leakage(train, held_out),
    }


def run(command: list[str]) -> tuple[float, float, float, str]:
    """Seconds of a command; CPU seconds and peak memory in MB of it and all that it started; what it printed.

    Looked at five times a second: of a process that ends in between, its last fifth of a second is not counted.
    """
    spent: dict[int, float] = {}
    peak = 0
    with tempfile.TemporaryFile("w+") as output:
        began = time.perf_counter()
        child = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while True:
            resident = 0
            with suppress(psutil.NoSuchProcess):
                for process in (child, *child.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess):
                        times = process.cpu_times()
                        spent[process.pid] = times.user + times.system
                        resident += process.memory_info().rss
            peak = max(peak, resident)
            with suppress(psutil.TimeoutExpired):
                code = child.wait(0.2)
                break
        seconds = time.perf_counter() - began
        output.seek(0)
        said = output.read()
    if code:
        raise SystemExit(f"error: {command[1:4]} ended with {code}: {said[-2000:]}")
    return seconds, sum(spent.values()), peak / 1e6, said


# --- Repositories ---------------------------------------------------------------------------------------------------


def build(folder: Path, steps: Iterable[Sequence[tuple[str, bytes | None]]]) -> None:
    """A repository with a commit for each step: paths and what they hold from then on, or None where they end."""
    subprocess.run(["git", "init", "-q", "-b", "main", str(folder)], check=True)
    extend(folder, steps)


def extend(folder: Path, steps: Iterable[Sequence[tuple[str, bytes | None]]]) -> None:
    """Commits behind those that are there, an hour apart."""
    git = ["git", "-C", str(folder)]
    last = subprocess.run([*git, "log", "-1", "--format=%ct"], capture_output=True, text=True)
    moment = int(last.stdout or 1_600_000_000)
    follows = b"from refs/heads/main^0\n" if last.returncode == 0 else b""
    importer = subprocess.Popen([*git, "fast-import", "--quiet", "--force"], stdin=subprocess.PIPE, bufsize=1 << 20)
    if importer.stdin is None:
        raise SystemExit("error: git fast-import has no input")
    for changed in steps:
        moment += 3600
        lines = [b"commit refs/heads/main\ncommitter Ann <ann@example.org> %d +0000\ndata 5\nmore\n\n" % moment]
        lines.append(follows)
        follows = b""
        for path, content in changed:
            if content is None:
                lines.append(b"D %s\n" % path.encode())
            else:
                lines.append(b"M 100644 inline %s\ndata %d\n%s\n" % (path.encode(), len(content), content))
        importer.stdin.write(b"".join(lines))
    importer.stdin.close()
    if importer.wait():
        raise SystemExit("error: the repository could not be built")


def installed(
    bytes_wanted: float, *, packages: Sequence[str] = PACKAGES, pattern: str = "*.py"
) -> Iterator[list[tuple[str, bytes]]]:
    """Real packages in two releases each, a few files at a time, until so much source is written."""
    written = 0
    for package in packages:
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            continue
        root = Path(found.origin).parent
        files = [(str(file.relative_to(root.parent)), file) for file in sorted(root.rglob(pattern))]
        for release in (1, 2):
            for start in range(0, len(files), FILES_PER_COMMIT):
                step: list[tuple[str, bytes]] = []
                for name, file in files[start : start + FILES_PER_COMMIT]:
                    content = file.read_bytes()
                    if len(content) > 1 << 19 or not content:
                        continue
                    lines = content.splitlines(keepends=True)
                    step.append((name, b"".join(lines[: 2 * len(lines) // 3]) if release == 1 else content))
                written += sum(len(content) for _, content in step)
                if step:
                    yield step
                if written >= bytes_wanted:
                    return


def measured(repository: Path, ending: str = ".py") -> tuple[int, int]:
    """Commits that are no merges, and the bytes that they wrote in files of this ending."""
    names = git(repository, "rev-list", "--no-merges", "HEAD").split()
    return len(names), sum(size for _, _, size in versions(repository, names, ending))


def versions(repository: Path, commits: Sequence[bytes], ending: str) -> list[tuple[str, str, int]]:
    """Of each version of a file that these commits wrote: path, object and bytes, in the commits' order."""
    options = ("--stdin", "--root", "-r", "--raw", "-z", "--no-abbrev", "--diff-filter=d", "--no-commit-id")
    raw = git(repository, "diff-tree", *options, given=b"\n".join(commits) + b"\n").split(b"\0")
    # ":mode mode object object status" and the path by turns; a rename is told as an end and a beginning.
    pairs = [(told.split(), path) for told, path in zip(raw[::2], raw[1::2], strict=False)]
    found = [
        (os.fsdecode(path), told[3].decode())
        for told, path in pairs
        if path.endswith(ending.encode()) and told[1] == b"100644"
    ]
    names = "".join(f"{name}\n" for _, name in found).encode()
    sizes = git(repository, "cat-file", "--batch-check=%(objectsize)", given=names).split()
    return [(path, name, int(size)) for (path, name), size in zip(found, sizes, strict=True)]


def git(repository: Path, *arguments: str, given: bytes | None = None) -> bytes:
    """What git prints."""
    return subprocess.run(
        ["git", "-C", str(repository), *arguments], input=given, capture_output=True, check=True
    ).stdout


# --- The peer -------------------------------------------------------------------------------------------------------


def peer(repository: Path, output: Path) -> int:
    """What one would write with PyDriller and datasketch: examples written."""
    from pydriller import Repository

    index = MinHashLSH(threshold=THRESHOLD, num_perm=VALUES)
    kept = 0
    with output.open("w", encoding="utf-8") as stream:
        for commit in Repository(str(repository), only_no_merge=True, order="reverse").traverse_commits():
            for file in commit.modified_files:
                source = file.source_code
                if source is None or not file.filename.endswith(".py"):
                    continue
                lines = source.split("\n")
                added = [number for number, _ in file.diff_parsed["added"]]
                for first, last in _runs(added):
                    context = "\n".join(lines[: first - 1])[-CONTEXT:]
                    completion = "\n".join(lines[first - 1 : last])
                    sketch = _sketch(_shingles(_told(context, completion)), VALUES)
                    if not completion.strip() or index.query(sketch):
                        continue
                    index.insert(kept, sketch)
                    kept += 1
                    row = {"context": context, "completion": completion, "path": file.new_path, "commit": commit.hash}
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return kept


def _runs(numbers: list[int], longest: int = 12) -> Iterator[tuple[int, int]]:
    """Runs of neighbouring numbers, first and last, of a dozen at most."""
    start = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + 1 or at - start == longest:
            yield numbers[start], numbers[at - 1]
            start = at


# --- Leakage --------------------------------------------------------------------------------------------------------


def _answers(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as stream:
        return [_told(row["context"], row["completion"]) for row in map(json.loads, stream)]


def leakage(train: Path, held_out: Path, *, most: int = 2_000) -> dict[str, Any]:
    """Shares of held-out examples that stand in the training side; near ones are looked up for the first `most`."""
    learnt, kept = _answers(train), _answers(held_out)
    exact = set(learnt)
    looked_up = [_shingles(text) for text in kept[:most]]
    # The smaller side is indexed: a pair is one from either end. Of pairs at 0.8, these bands miss 10⁻⁷.
    index = MinHashLSH(num_perm=VALUES, params=(32, 4))
    for number, shingles in enumerate(looked_up):
        index.insert(number, _sketch(shingles, VALUES))
    near: set[int] = set()
    for text in learnt:
        shingles = _shingles(text)
        for number in index.query(_sketch(shingles, VALUES)):
            other = looked_up[number]
            if len(shingles & other) >= THRESHOLD * len(shingles | other):
                near.add(number)
    return {
        "train": len(learnt),
        "evaluation": len(kept),
        "leakage_exact": sum(text in exact for text in kept) / max(1, len(kept)),
        "leakage_near": len(near) / max(1, len(looked_up)),
    }


def _told(context: str, completion: str) -> str:
    return context.rstrip()[-120:].rpartition("\n")[2] + "\n" + completion


def _shingles(text: str) -> set[bytes]:
    tokens = _TOKEN.findall(text)
    runs = range(max(1, len(tokens) - SHINGLE + 1))
    return {" ".join(tokens[at : at + SHINGLE]).encode("utf-8", "surrogatepass") for at in runs}


def _sketch(shingles: set[bytes], values: int) -> MinHash:
    sketch = MinHash(num_perm=values)
    sketch.update_batch(shingles)
    return sketch


if __name__ == "__main__":
    main()
