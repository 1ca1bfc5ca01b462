"""Named features of code that a run can be told to learn more of: `training.focus_on`, `dataset.features`.

A detector looks at what is learnt of an example, its completion, without comments and what stands in quotes. One of
your own is a `Detector` given to `register`, or named in an installed package's entry points:

    [project.entry-points."neuralforge.detectors"]
    sql_queries = "our_package.detectors:SQL_QUERIES"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points

from neuralforge.data.example import Example
from neuralforge_common.config.faults import nearest
from neuralforge_common.errors import ConfigError

GROUP = "neuralforge.detectors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """A name, a sentence about it, and whether it fires on an example."""

    name: str
    about: str
    fires: Callable[[Example], bool]


def by_pattern(patterns: Mapping[str, str]) -> Callable[[Example], bool]:
    """Fires where the pattern of the example's language is found in its completion; `java,kotlin` names two.

    Patterns are regular expressions, `^` and `$` being ends of lines.
    """
    compiled = {
        language: re.compile(pattern, re.MULTILINE)
        for languages, pattern in patterns.items()
        for language in languages.split(",")
    }

    def fires(example: Example) -> bool:
        pattern = compiled.get(example.language)
        return pattern is not None and pattern.search(_code(example)) is not None

    return fires


def register(detector: Detector) -> Detector:
    """Make a detector known to this process; raises ConfigError where another one has its name."""
    known = _REGISTERED.setdefault(detector.name, detector)
    if known is not detector:
        raise ConfigError([f"two detectors are called {detector.name!r}"])
    return detector


def known_detectors() -> dict[str, Detector]:
    """All detectors by name: ours, those registered, and those of installed packages.

    Raises ConfigError where a package offers what is no detector, or one whose name is taken.
    """
    found = dict(_REGISTERED)
    for entry in entry_points(group=GROUP):
        offered = entry.load()
        if not isinstance(offered, Detector):
            raise ConfigError([f"entry point {entry.name!r} of {GROUP}: got {type(offered).__name__}, wanted Detector"])
        if found.setdefault(offered.name, offered) is not offered:
            raise ConfigError([f"two detectors are called {offered.name!r}, one of them from {entry.value}"])
    return found


def find_detectors(names: Sequence[str]) -> tuple[Detector, ...]:
    """The detectors of these names, each once; raises ConfigError with the nearest known name of each that is not."""
    known = known_detectors()
    faults = []
    for name in names:
        if name not in known:
            near = nearest(name, known)
            faults.append(f"no detector is called {name!r}{f', did you mean {near!r}?' if near else ''}")
    if faults:
        raise ConfigError(faults, hint=f"known are {', '.join(sorted(known))}; docs/data.md says how to add one")
    return tuple(known[name] for name in dict.fromkeys(names))


_HASH = frozenset({"python", "ruby", "shell", "yaml"})
_NOT_CODE = re.compile(r"/\*.*?(?:\*/|\Z)|//[^\n]*|^[ \t]*\*[^\n]*|\"(?:\\.|[^\"\\\n])*\"", re.MULTILINE | re.DOTALL)
_NOT_CODE_HASH = re.compile(r"#[^\n]*|\"\"\".*?(?:\"\"\"|\Z)|\"(?:\\.|[^\"\\\n])*\"", re.DOTALL)


def _code(example: Example) -> str:
    """The completion without comments and quoted text; a line of a comment that began before it starts with a star."""
    pattern = _NOT_CODE_HASH if example.language in _HASH else _NOT_CODE
    return pattern.sub(lambda found: '""' if found[0].startswith('"') else " ", example.completion)


_TRY = r"\b(?:try|catch|throw|throws|finally)\b"
_VERBS = r"(?:get|post|put|delete|patch)"

_REGISTERED: dict[str, Detector] = {}
register(
    Detector(
        name="annotations",
        about="annotations, attributes, decorators",
        fires=by_pattern(
            {
                "java,kotlin,scala,groovy": r"(?<![\w.])@(?!interface\b)[A-Za-z]\w*",
                "python,typescript,javascript": r"^[ \t]*@[A-Za-z_]",
                "c#": r"^[ \t]*\[[A-Z]\w*",
                "rust": r"#!?\[\w",
                "php": r"#\[\w",
            }
        ),
    )
)
register(
    Detector(
        name="dependency_injection",
        about="what a container hands in, and what is handed to it",
        fires=by_pattern(
            {
                "java,kotlin,groovy": r"@(?:Autowired|Inject|Resource|Qualifier|Bean|Provides|RequiredArgsConstructor|"
                r"Component|Service|Repository|Configuration)\b",
                "c#": r"\bAdd(?:Scoped|Singleton|Transient)\b|\[FromServices\]",
                "typescript,javascript": r"@(?:Injectable|Inject)\b|\binject\(",
                "python": r"\b(?:Depends|Inject|inject)\(|@inject\b",
            }
        ),
    )
)
register(
    Detector(
        name="rest_mappings",
        about="which request is answered by which function",
        fires=by_pattern(
            {
                "java,kotlin,groovy": r"@(?:(?:Get|Post|Put|Delete|Patch|Request)Mapping|RestController|Path|"
                r"GET|POST|PUT|DELETE|PATCH)\b",
                "python": rf"^[ \t]*@[\w.]+\.(?:{_VERBS}|route|api_route)\(",
                "typescript,javascript": rf"\b(?:app|router|server)\.{_VERBS}\(|@(?:Get|Post|Put|Delete|Patch)\(",
                "c#": r"\[(?:Http(?:Get|Post|Put|Delete|Patch)|Route|ApiController)\b|\bMap(?:Get|Post|Put|Delete)\(",
                "go": r"\bHandle(?:Func)?\(|\.(?:GET|POST|PUT|DELETE|PATCH)\(",
                "rust": rf"#\[{_VERBS}\(|\.route\(",
            }
        ),
    )
)
register(
    Detector(
        name="ownership_patterns",
        about="borrowing, moving, lifetimes, shared ownership",
        fires=by_pattern(
            {
                "rust": r"&mut\b|&'\w|<'\w|\b(?:Box|Rc|Arc|Cow|Cell|RefCell|Mutex|RwLock)(?:<|::)|\bmove\s*\||"
                r"\.(?:clone|borrow|borrow_mut|as_ref|as_mut|take|to_owned|into_inner)\(|\bmem::(?:take|swap|replace)\b",
                "c++": r"\b(?:unique_ptr|shared_ptr|weak_ptr)\s*<|\bstd::move\(",
            }
        ),
    )
)
register(
    Detector(
        name="error_handling",
        about="what is done when something fails",
        fires=by_pattern(
            {
                "rust": r"\?\s*[;,.)]|\?$|\bResult<|\b(?:Err|Ok)\(|\.(?:map_err|ok_or|ok_or_else|unwrap_or\w*)\(|"
                r"\.expect\(|\b(?:bail|ensure|anyhow)!",
                "java,kotlin,scala,groovy,javascript,typescript,c#,c++,php": _TRY,
                "swift": r"\b(?:try|catch|throw|throws|do)\b",
                "python": r"^[ \t]*(?:try|finally)\s*:|^[ \t]*(?:except|raise)\b",
                "go": r"\berr\s*[!=]=\s*nil\b|\berrors\.|\bfmt\.Errorf\(|\b(?:panic|recover)\(",
                "ruby": r"\b(?:rescue|raise|ensure)\b",
            }
        ),
    )
)
register(
    Detector(
        name="trait_implementations",
        about="a type is given a trait's functions",
        fires=by_pattern({"rust": r"\bimpl\b[^{};]{0,300}?\sfor\s+[\w&<(\[]|#\[derive\("}),
    )
)
