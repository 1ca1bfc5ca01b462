"""Which language a file is written in, by its name, and the names that people use for languages."""

import difflib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType

from identify import identify

from neuralforge_common.errors import DataError

# Ours on the left; then the tags of the `identify` package that mean it, then the short names that people type.
# Programming languages only: data and prose (JSON, YAML, Markdown, lock files) teach a code model little and hold
# most of the secrets; a --pattern can still ask for them by name.
_TABLE: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("python", ("python", "pyi"), ("py", "python3")),
    ("java", ("java",), ()),
    ("javascript", ("javascript", "jsx"), ("js", "jsx", "node", "ecmascript")),
    ("typescript", ("ts", "tsx"), ("ts", "tsx")),
    ("rust", ("rust",), ("rs",)),
    ("go", ("go",), ("golang",)),
    ("c++", ("c++", "cuda", "metal"), ("cpp", "cxx", "cc", "cplusplus", "cuda")),
    ("c", ("c",), ()),
    ("c#", ("c#",), ("cs", "csharp")),
    ("kotlin", ("kotlin",), ("kt",)),
    ("scala", ("scala",), ()),
    ("groovy", ("groovy",), ("gradle",)),
    ("swift", ("swift",), ()),
    ("objective-c", ("objective-c", "objective-c++"), ("objc", "objectivec")),
    ("php", ("php",), ()),
    ("ruby", ("ruby",), ("rb",)),
    ("perl", ("perl",), ("pl",)),
    ("lua", ("lua", "luau"), ()),
    ("r", ("r",), ("rlang",)),
    ("julia", ("julia",), ("jl",)),
    ("dart", ("dart",), ()),
    ("elixir", ("elixir",), ("ex",)),
    ("erlang", ("erlang",), ("erl",)),
    ("haskell", ("haskell",), ("hs",)),
    ("ocaml", ("ocaml",), ("ml",)),
    ("f#", ("f#",), ("fs", "fsharp")),
    ("clojure", ("clojure",), ("clj",)),
    ("zig", ("zig",), ()),
    ("nim", ("nim",), ()),
    ("solidity", ("solidity",), ("sol",)),
    ("shell", ("shell",), ("sh", "bash", "zsh")),
    ("powershell", ("powershell",), ("ps1",)),
    ("sql", ("sql",), ()),
    ("html", ("html",), ()),
    ("css", ("css", "scss", "sass", "less"), ("scss", "sass", "less")),
    ("vue", ("vue",), ()),
    ("svelte", ("svelte",), ()),
    ("terraform", ("terraform", "hcl"), ("tf", "hcl")),
    ("dockerfile", ("dockerfile",), ("docker",)),
    ("makefile", ("makefile",), ("make", "mk")),
    ("cmake", ("cmake",), ()),
    ("protobuf", ("proto",), ("proto",)),
    ("graphql", ("graphql",), ("gql",)),
)

# What `identify` tags as Python or JSON-with-code but is neither: gyp files are data in Python's notation.
_NOT_CODE_TAGS = frozenset({"gyp", "jupyter", "svg"})

LANGUAGES: tuple[str, ...] = tuple(name for name, _, _ in _TABLE)
"""Every language that is read by default."""

_BY_NAME: Mapping[str, str] = MappingProxyType(
    {alias: name for name, _, aliases in _TABLE for alias in (name, *aliases)}
)


@lru_cache(maxsize=4096)
def _language_of_name(name: str) -> str:
    tags = identify.tags_from_filename(name)
    if tags & _NOT_CODE_TAGS:
        return ""
    # In the table's order: a header (.h) is tagged both C and C++, and C++ stands first because it contains C.
    return next((language for language, wanted, _ in _TABLE if not tags.isdisjoint(wanted)), "")


def language_of(path: str) -> str:
    """The language of the file at this slash-separated path, or "" where it is none of `LANGUAGES`."""
    return _language_of_name(path.rpartition("/")[2])


def canonical_language(name: str) -> str:
    """The name in `LANGUAGES` for a name or short name (`js`, `ts`, `py`) in any case; DataError if there is none."""
    wanted = name.strip().lower()
    if wanted in _BY_NAME:
        return _BY_NAME[wanted]
    near = difflib.get_close_matches(wanted, _BY_NAME, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise DataError(f"language {name!r} is not known", hint=f"{guess}Known: {', '.join(LANGUAGES)}")


def canonical_languages(names: Iterable[str]) -> frozenset[str]:
    """The canonical names for several; empty for none, which means every language."""
    return frozenset(canonical_language(name) for name in names if name.strip())
