"""Tree-sitter's grammars of languages: one wheel each, compiled into the package, nothing fetched when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import Any

# A wheel's module and the function in it that gives the grammar; c++ reads CUDA, tsx is what reads both kinds.
_MODULES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "python": ("tree_sitter_python", "language"),
        "java": ("tree_sitter_java", "language"),
        "javascript": ("tree_sitter_javascript", "language"),
        "typescript": ("tree_sitter_typescript", "language_tsx"),
        "go": ("tree_sitter_go", "language"),
        "rust": ("tree_sitter_rust", "language"),
        "c": ("tree_sitter_c", "language"),
        "c++": ("tree_sitter_cpp", "language"),
        "c#": ("tree_sitter_c_sharp", "language"),
        "ruby": ("tree_sitter_ruby", "language"),
        "php": ("tree_sitter_php", "language_php"),
        "shell": ("tree_sitter_bash", "language"),
        "kotlin": ("tree_sitter_kotlin", "language"),
        "scala": ("tree_sitter_scala", "language"),
        "swift": ("tree_sitter_swift", "language"),
    }
)

GRAMMARS: tuple[str, ...] = tuple(_MODULES)
"""Languages that have one, by the names of `language.LANGUAGES`."""


@cache
def grammar(language: str) -> Any:
    """The `tree_sitter.Language`; raises KeyError for a language without one."""
    from tree_sitter import Language

    module, entry = _MODULES[language]
    return Language(getattr(import_module(module), entry)())


@cache
def parser(language: str) -> Any:
    """A `tree_sitter.Parser` for the language."""
    from tree_sitter import Parser

    return Parser(grammar(language))
