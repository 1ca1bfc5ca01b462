"""Friendly names of base models, in one table.

A revision is pinned only where the full commit id stands in public material (the hub's own pages, or several
repositories that cite it for that model). Where it is None the hub's default branch is taken; the commit that the hub
resolves is recorded with every adapter, and the base's fingerprint guards it.

The CodeT5 repositories hold only a pickle on their default branch. Their weights in safetensors lie in an open pull
request of Hugging Face's conversion bot, so their revision is that pull request's ref (`refs/pr/N`); here too the
commit behind it is recorded.

`parameters` is rounded to three digits. Names that begin with `codet5-` are the guide's CodeT5; `codet5p-` and
`codet5+-` are CodeT5+.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from neuralforge_common.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One base model: where it lives, what it is, under which terms.

    `embedded` bases need no network. Their `hub_id` names the model that they were made from, and is empty for
    nf-tiny, which exists nowhere else.
    """

    name: str
    hub_id: str
    revision: str | None
    family: str
    license: str
    parameters: int
    embedded: bool = False


_TABLE: tuple[tuple[str, str, str | None, str, str, int], ...] = (
    # name, hub id, revision, model_type, license, parameters
    ("codet5-220m", "Salesforce/codet5-base", "refs/pr/2", "t5", "apache-2.0", 223_000_000),
    ("codet5-770m", "Salesforce/codet5-large", "refs/pr/3", "t5", "bsd-3-clause", 738_000_000),
    ("codet5p-220m", "Salesforce/codet5p-220m", "refs/pr/3", "t5", "bsd-3-clause", 223_000_000),
    ("codet5p-770m", "Salesforce/codet5p-770m", "refs/pr/2", "t5", "bsd-3-clause", 738_000_000),
    (
        "stable-code-3b",
        "stabilityai/stable-code-3b",
        "b676b54bae5e15369ecac43b0eef511e86ab58db",
        "stablelm",
        "other (Stability AI)",
        2_800_000_000,
    ),
    (
        "starcoder2-3b",
        "bigcode/starcoder2-3b",
        "733247c55e3f73af49ce8e9c7949bf14af205928",
        "starcoder2",
        "bigcode-openrail-m",
        3_030_000_000,
    ),
    (
        "qwen2.5-coder-0.5b",
        "Qwen/Qwen2.5-Coder-0.5B",
        "8123ea2e9354afb7ffcc6c8641d1b2f5ecf18301",
        "qwen2",
        "apache-2.0",
        494_000_000,
    ),
    (
        "qwen2.5-coder-1.5b",
        "Qwen/Qwen2.5-Coder-1.5B",
        "df3ce67c0e24480f20468b6ef2894622d69eb73b",
        "qwen2",
        "apache-2.0",
        1_540_000_000,
    ),
    (
        "qwen2.5-coder-3b",
        "Qwen/Qwen2.5-Coder-3B",
        "09d9bc5d376b0cfa0100a0694ea7de7232525803",
        "qwen2",
        "other (Qwen Research)",
        3_090_000_000,
    ),
    (
        "qwen2.5-coder-7b",
        "Qwen/Qwen2.5-Coder-7B",
        "0396a76181e127dfc13e5c5ec48a8cee09938b02",
        "qwen2",
        "apache-2.0",
        7_620_000_000,
    ),
    (
        "deepseek-coder-1.3b",
        "deepseek-ai/deepseek-coder-1.3b-base",
        "c919139c3a9b4070729c8b2cca4847ab29ca8d94",
        "llama",
        "other (DeepSeek)",
        1_350_000_000,
    ),
    (
        "codellama-7b",
        "codellama/CodeLlama-7b-hf",
        "6c284d1468fe6c413cf56183e69b194dcfa27fe6",
        "llama",
        "llama2",
        6_740_000_000,
    ),
    ("smollm2-360m", "HuggingFaceTB/SmolLM2-360M", None, "llama", "apache-2.0", 362_000_000),
    (
        "smollm2-1.7b",
        "HuggingFaceTB/SmolLM2-1.7B",
        "effd688a12921b4cc83e3312b6feb579f70f9c71",
        "llama",
        "apache-2.0",
        1_710_000_000,
    ),
    ("granite-3b-code", "ibm-granite/granite-3b-code-base-2k", None, "llama", "apache-2.0", 3_480_000_000),
)

_EMBEDDED = (
    CatalogEntry(
        name="smollm2-135m",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        revision=None,
        family="llama",
        license="apache-2.0",
        parameters=135_000_000,
        embedded=True,
    ),
    CatalogEntry(
        name="nf-tiny",
        hub_id="",
        revision=None,
        family="llama",
        license="apache-2.0",
        parameters=3_150_000,
        embedded=True,
    ),
)

CATALOG: Mapping[str, CatalogEntry] = MappingProxyType(
    {
        **{entry.name: entry for entry in _EMBEDDED},
        **{
            name: CatalogEntry(
                name=name, hub_id=hub_id, revision=revision, family=family, license=terms, parameters=parameters
            )
            for name, hub_id, revision, family, terms, parameters in _TABLE
        },
    }
)

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "codet5-base": "codet5-220m",
        "codet5-large": "codet5-770m",
        "codet5+": "codet5p-770m",
        "codet5+-220m": "codet5p-220m",
        "codet5+-770m": "codet5p-770m",
        "stablecode": "stable-code-3b",
        "stablecode-3b": "stable-code-3b",
        "starcoder2": "starcoder2-3b",
        "smollm2": "smollm2-135m",
        "codellama": "codellama-7b",
        "deepseek-coder-1.3b-base": "deepseek-coder-1.3b",
        "nf_tiny": "nf-tiny",
    }
)


def find(name: str) -> CatalogEntry | None:
    """The entry of a friendly name, whatever its case, or None."""
    folded = name.strip().lower()
    return CATALOG.get(ALIASES.get(folded, folded))


def resolve(name: str) -> CatalogEntry:
    """The entry of a friendly name.

    Raises:
        ModelError: no such name; the hint holds the nearest ones.
    """
    if entry := find(name):
        return entry
    near = difflib.get_close_matches(name.strip().lower(), [*CATALOG, *ALIASES], n=3, cutoff=0.6)
    ways = "a folder, a .gguf file, a hub id (owner/name) or one of: " + ", ".join(sorted(CATALOG))
    raise ModelError(
        f"no base model is called {name!r}",
        hint=f"did you mean {' or '.join(near)}? A base is {ways}" if near else f"a base is {ways}",
    )


def license_of(hub_id: str) -> str:
    """The license of a hub id that the table knows, else an empty string."""
    known = {entry.hub_id.lower(): entry.license for entry in CATALOG.values() if not entry.embedded}
    return known.get(hub_id.lower(), "")
