"""`metadata.json` of an adapter folder: the guide's nine fields, and what makes the adapter checkable."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime

from neuralforge_common.errors import AdapterError, PrivacyError
from neuralforge_common.lineage import Composition, Predecessor, decode_composition, decode_predecessor
from neuralforge_common.privacy import PrivacyStatement
from neuralforge_common.strict_json import is_plain_text, parse_json_object, shortened

MAX_METADATA_BYTES = 2**20

_FILE = "metadata.json"
_VERSION = re.compile(r"\d{1,9}(\.\d{1,9}){0,3}([-+.][0-9A-Za-z.+-]{1,64})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CREATED = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How well one model did on the held-out examples; None is "not measured".

    A value that is not finite becomes None: a model that overflows must not cost the adapter it was compared with.
    """

    perplexity: float | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        for name in ("perplexity", "accuracy"):
            if isinstance(value := getattr(self, name), float) and not math.isfinite(value):
                object.__setattr__(self, name, None)
        _check_number(self, "perplexity", low=0.0)
        _check_number(self, "accuracy", low=0.0, high=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The base against the adapter on the same held-out examples; `samples` is their number."""

    base: Scores = field(default_factory=Scores)
    adapter: Scores = field(default_factory=Scores)
    samples: int | None = None

    def __post_init__(self) -> None:
        _check_whole(self, "samples")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMetadata:
    """What `metadata.json` says of an adapter; only `name` must be given, None and "" are "not known".

    `accuracy` is the adapter's token accuracy on held-out examples, 0 to 1; `created` is RFC 3339 in UTC
    ("2026-01-31T09:30:00Z"); `dataset_digest` is SHA-256 of the training data; `digests` maps file names of the folder
    to their SHA-256; `privacy` is what the adapter tells at most about the data that it learnt from;
    `federation_rounds` is None where it was not trained in a federation, `parent` where its training did not go on from
    another adapter, `composition` where it was not made of others;
    `allow_worse` says that it was published although it does not beat its base.
    `write_adapter_folder` fills in what the adapter itself knows: size_mb (10⁶ bytes), base_revision, base_fingerprint,
    rank, alpha, target_modules and digests.

    Raises:
        AdapterError: a value that is not of its type or out of its bounds.
    """

    name: str
    version: str = "1.0.0"
    base_model: str = ""
    description: str = ""
    author: str = ""
    license: str = ""
    training_samples: int | None = None
    accuracy: float | None = None
    size_mb: float | None = None
    base_revision: str | None = None
    base_fingerprint: str = ""
    rank: int | None = None
    alpha: float | None = None
    target_modules: tuple[str, ...] = ()
    created: str = ""
    neuralforge_version: str = ""
    dataset_digest: str = ""
    evaluation: Evaluation | None = None
    privacy: PrivacyStatement | None = None
    federation_rounds: int | None = None
    parent: Predecessor | None = None
    composition: Composition | None = None
    allow_worse: bool = False
    digests: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (
            "name",
            "version",
            "base_model",
            "author",
            "license",
            "base_fingerprint",
            "created",
            "neuralforge_version",
            "dataset_digest",
        ):
            _check_text(name, getattr(self, name))
        _check_text("description", self.description, limit=65_536, multiline=True)
        if self.base_revision is not None:
            _check_text("base_revision", self.base_revision)
        if not self.name.strip():
            raise AdapterError("name: wanted a name, got an empty text")
        if not _VERSION.fullmatch(self.version):
            raise AdapterError(f"version: wanted one like 1.0.0, got {shortened(self.version)}")
        if self.created and not _is_utc(self.created):
            raise AdapterError(f"created: wanted a time like 2026-01-31T09:30:00Z, got {shortened(self.created)}")
        for name in ("training_samples", "rank", "federation_rounds"):
            _check_whole(self, name)
        if not isinstance(self.allow_worse, bool):
            raise AdapterError(f"allow_worse: wanted true or false, got {shortened(self.allow_worse)}")
        _check_number(self, "accuracy", low=0.0, high=1.0)
        _check_number(self, "size_mb", low=0.0)
        _check_number(self, "alpha", low=0.0)
        _check_names(self.target_modules)
        _check_digests(self.digests)


def encode_metadata(metadata: AdapterMetadata) -> bytes:
    """`metadata.json`: UTF-8, in the order of the fields; never NaN."""
    document = asdict(metadata)
    document["digests"] = dict(sorted(metadata.digests.items()))
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def decode_metadata(data: bytes) -> AdapterMetadata:
    """Reads `metadata.json`; unknown keys are ignored, missing ones are "not known", wrong types are refused.

    Raises:
        AdapterError: it is not such a file.
    """
    document = parse_json_object(data, what=_FILE, limit=MAX_METADATA_BYTES)
    known = {key: document[key] for key in (item.name for item in fields(AdapterMetadata)) if key in document}
    if "name" not in known:
        raise AdapterError(f"{_FILE}: name is missing")
    try:
        if "target_modules" in known:
            names = known["target_modules"]
            known["target_modules"] = tuple(names) if isinstance(names, list) else names
        if known.get("evaluation") is not None:
            known["evaluation"] = _evaluation(known["evaluation"])
        if known.get("privacy") is not None:
            known["privacy"] = _privacy(known["privacy"])
        if known.get("parent") is not None:
            known["parent"] = decode_predecessor(known["parent"])
        if known.get("composition") is not None:
            known["composition"] = decode_composition(known["composition"])
        return AdapterMetadata(**known)  # type: ignore[arg-type]  # __post_init__ checks every type
    except AdapterError as error:
        raise AdapterError(f"{_FILE}: {error.message}", hint=error.hint) from error


def _evaluation(value: object) -> Evaluation:
    document = _object("evaluation", value)
    sides = {}
    for side in ("base", "adapter"):
        scores = _object(f"evaluation.{side}", document.get(side, {}))
        known = {key: scores[key] for key in ("perplexity", "accuracy") if key in scores}
        sides[side] = Scores(**known)  # type: ignore[arg-type]  # __post_init__ checks every type
    return Evaluation(**sides, samples=document.get("samples"))  # type: ignore[arg-type]


def _privacy(value: object) -> PrivacyStatement:
    document = _object("privacy", value)
    known = {item.name: document[item.name] for item in fields(PrivacyStatement) if item.name in document}
    for name in ("note", "accountant", "unit"):
        _check_text(f"privacy.{name}", known.get(name, ""))
    for name in ("epsilon", "delta", "steps"):
        value = known.get(name, 0)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise AdapterError(f"privacy.{name}: wanted a number, got {shortened(value)}")
    try:
        return PrivacyStatement(**known)  # type: ignore[arg-type]  # the types were checked above
    except (PrivacyError, TypeError) as error:
        raise AdapterError(f"privacy: {error}") from error


def _object(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise AdapterError(f"{name}: wanted an object, got {shortened(value)}")
    return value


def _check_text(name: str, value: object, *, limit: int = 1024, multiline: bool = False) -> None:
    if not isinstance(value, str) or len(value) > limit or not is_plain_text(value, multiline=multiline):
        kind = "a text" if multiline else "one line of text"
        raise AdapterError(f"{name}: wanted {kind} of at most {limit:,} characters, got {shortened(value)}")


def _check_whole(owner: object, name: str) -> None:
    value = getattr(owner, name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53):
        raise AdapterError(f"{name}: wanted a whole number from 0 on, got {shortened(value)}")


def _check_number(owner: object, name: str, *, low: float, high: float = 1e300) -> None:
    """Checks an optional number of a frozen dataclass and makes it a float."""
    value = getattr(owner, name)
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:  # NaN fails, too
        bounds = f"from {low:g} to {high:g}" if high < 1e300 else f"from {low:g} on"
        raise AdapterError(f"{name}: wanted a finite number {bounds}, got {shortened(value)}")
    object.__setattr__(owner, name, float(value))


def _check_names(names: object) -> None:
    if not isinstance(names, tuple):
        raise AdapterError(f"target_modules: wanted a list of names, got {shortened(names)}")
    for name in names:
        _check_text("target_modules", name, limit=256)


def _check_digests(digests: object) -> None:
    if not isinstance(digests, Mapping):
        raise AdapterError(f"digests: wanted an object, got {shortened(digests)}")
    for name, digest in digests.items():
        _check_text("digests", name, limit=256)
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise AdapterError(f"digests: {shortened(name)}: wanted 64 hex digits, got {shortened(digest)}")


def _is_utc(text: str) -> bool:
    if not _CREATED.fullmatch(text):
        return False
    try:
        return datetime.fromisoformat(text).tzinfo == UTC
    except ValueError:  # the 31st of February
        return False
