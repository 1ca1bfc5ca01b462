"""Where the code of virtual clients comes from: git repositories, folders, installed packages in their place."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from neuralforge.data.dataset import Dataset, build_dataset
from neuralforge.data.git import read_git_tree
from neuralforge.data.source import SourceFile, SourceFiles, join_sources, printable, read_source_tree
from neuralforge_common.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One body of code; `name` is told apart from every other's and stands in each of its examples as `repo`."""

    name: str
    path: Path
    has_history: bool


def find_sources(folders: Sequence[Path], packages: Sequence[str]) -> tuple[Source, ...]:
    """The sources that were named, in that order.

    Raises:
        DataError: nothing was named, or a package is not installed.
    """
    if not folders and not packages:
        raise DataError(
            "no data: nothing says what the clients hold",
            hint="name repositories or folders (clients.sources) or installed packages (clients.packages)",
        )
    found: list[Source] = []
    taken: set[str] = set()
    places = [(printable(path.resolve().name) or "root", path, _is_repository(path)) for path in folders]
    places += [(package, _package_folder(package), False) for package in packages]
    for wanted, path, has_history in places:
        name, number = wanted, 1
        while name in taken:
            number += 1
            name = f"{wanted}-{number}"
        taken.add(name)
        found.append(Source(name=name, path=path, has_history=has_history))
    return tuple(found)


def read_pool(sources: Sequence[Source]) -> Dataset:
    """All examples of all sources, redacted, no two of them alike; nothing is held out yet.

    Cleaned before it is dealt out: an example of one client that nearly stands in another's held-out files would make
    the federation look better than it is.

    Raises:
        DataError: a source cannot be read, or not one example came out.
    """
    return build_dataset(join_sources([_read(source) for source in sources]), eval_fraction=0.0)


def _read(source: Source) -> SourceFiles:
    files = read_git_tree(source.path) if source.has_history else read_source_tree(source.path)

    def named() -> Iterator[SourceFile]:
        for file in files:
            yield replace(file, repo=source.name)

    return SourceFiles(named(), files.tally)


def _is_repository(path: Path) -> bool:
    return (path / ".git").exists() or ((path / "HEAD").is_file() and (path / "objects").is_dir())


def _package_folder(package: str) -> Path:
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError) as error:
        raise DataError(f"package {package!r} cannot be found: {error}") from error
    if found is not None and found.submodule_search_locations:
        return Path(next(iter(found.submodule_search_locations)))
    if found is not None and found.has_location and found.origin:
        return Path(found.origin)
    raise DataError(
        f"package {package!r} is not installed here, or has no source code",
        hint="clients.packages wants names as in `import NAME`",
    )
