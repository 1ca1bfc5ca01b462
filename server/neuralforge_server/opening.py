"""How a federation agrees on its adapter: the coordinator has no base model, so clients describe what theirs takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from flwr.app import ConfigRecord, RecordDict

from neuralforge_common import __version__
from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.errors import FederationError, NeuralForgeError
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.plan import PROTOCOL
from neuralforge_common.strict_json import parse_json_object, shortened
from neuralforge_server.exchange import Answer
from neuralforge_server.terms import AdapterRequest

DESCRIBE = "query.describe"
MAX_ANSWER_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What one client's base makes of the request."""

    spec: AdapterSpec
    layout: AdapterLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The description that most clients gave, and who gave another one or none (name → reason)."""

    description: Description
    agreed: tuple[str, ...]
    others: Mapping[str, str]


def describe_request(request: AdapterRequest) -> RecordDict:
    """The question."""
    text = json.dumps(asdict(request) | {"protocol": PROTOCOL, "version": __version__}, sort_keys=True)
    return RecordDict({"request": ConfigRecord({"json": text})})


def agree(answers: Iterable[Answer], request: AdapterRequest, *, needed: int) -> Agreement:
    """The one description that at least `needed` clients, and more than half of those that answered, agree on.

    No single client decides what everybody trains. Raises FederationError where there is no such description.
    """
    described: dict[str, Description] = {}
    others: dict[str, str] = {}
    for answer in answers:
        try:
            if answer.content is None:
                raise FederationError(answer.message)
            described[answer.client] = _read(answer.content, request)
        except NeuralForgeError as fault:
            others[answer.client] = fault.message
    votes = Counter(_identity(description) for description in described.values())
    best, count = max(votes.items(), key=lambda item: (item[1], item[0]), default=("", 0))
    if count < needed or 2 * count <= len(described):
        said = "; ".join(f"{name}: {why}" for name, why in sorted(others.items())) or "they hold different bases"
        raise FederationError(
            f"wanted {needed} clients that agree on the base {request.base}, got {count} of {len(described)} ({said})",
            hint="give every client the same base and revision, or start from an adapter (federation.start_from)",
        )
    agreed = tuple(sorted(name for name, found in described.items() if _identity(found) == best))
    chosen = described[agreed[0]]
    for name, found in described.items():
        if name not in agreed:
            others[name] = (
                f"holds {shortened(found.spec.base)} with the fingerprint {found.spec.base_fingerprint[:19]}…, "
                f"the others {chosen.spec.base_fingerprint[:19]}…"
            )
    return Agreement(description=chosen, agreed=agreed, others=others)


def _read(content: RecordDict, request: AdapterRequest) -> Description:
    record = content.get("answer")
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str):
        raise FederationError("the answer is no description of an adapter")
    document = parse_json_object(text.encode(), what="the description", limit=MAX_ANSWER_BYTES)
    found, layout = AdapterSpec.from_document(document.get("spec")), document.get("layout")
    if not isinstance(layout, str):
        raise FederationError("the description says nothing of the adapter's shapes")
    description = Description(spec=found, layout=AdapterLayout.from_json(layout))
    if found.rank != request.rank or description.layout.rank != request.rank:
        raise FederationError(f"asked for rank {request.rank}, got {found.rank}")
    return description


def _identity(description: Description) -> str:
    # The name and revision of a base are what a person calls it; its fingerprint is what it is.
    facts = asdict(description.spec) | {"base": "", "base_revision": None}
    return json.dumps(facts, sort_keys=True) + description.layout.digest
