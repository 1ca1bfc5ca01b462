"""What the coordinator asks for in a round (`RoundPlan`), and what a client says beside its delta (`TrainReport`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.errors import FederationError, PrivacyError
from neuralforge_common.layout import Part
from neuralforge_common.privacy import PrivacyTerms
from neuralforge_common.secagg.terms import MaskingTerms
from neuralforge_common.strict_json import parse_json_object, shortened
from neuralforge_common.wire import WireFormat

PROTOCOL = 2
"""Of plans and reports; a client and a coordinator that speak different ones refuse each other."""

MAX_PLAN_BYTES = 2**20
MAX_REPORT_BYTES = 16 * 1024
MAX_STEPS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """One round as every client of it sees it.

    `layout_digest` names the order of the flat vector (see `layout.AdapterLayout`) at `spec.rank` + `frozen_rank`: the
    state that comes with a plan holds `spec.rank` components to train, and then `frozen_rank` that are applied and
    never changed. `part` is what is trained and sent back; `personal` what a client keeps to itself and the state of
    the coordinator does not overwrite. `steps` or `epochs`: the other is None. `proximal_mu` is FedProx's μ
    (Li et al. 2020). `nonce` is new with every attempt at a round. `privacy` is what every client must do
    before its delta may leave, None for nothing; `trust` "peers" means that the coordinator learns the sum of the
    deltas alone, and `masking` how: a plan to train has it then, one to score has not.
    """

    protocol: int = PROTOCOL
    federation: str
    round: int
    rounds: int
    nonce: str
    spec: AdapterSpec
    layout_digest: str
    frozen_rank: int = 0
    part: Part = "both"
    personal: Literal["none", "A", "B"] = "none"
    steps: int | None
    epochs: int | None = None
    batch_size: int
    learning_rate: float
    warmup_steps: int = 0
    max_length: int
    max_grad_norm: float = 1.0
    proximal_mu: float = 0.0
    wire: WireFormat = "fp32"
    weighting: Literal["examples", "uniform"] = "examples"
    seed: int = 0
    privacy: PrivacyTerms | None = None
    trust: Literal["server", "peers"] = "server"
    masking: MaskingTerms | None = None

    @property
    def digest(self) -> bytes:
        """SHA-256 of all that the plan says, the same for whoever wrote it and whoever read it."""
        return hashlib.sha256(RoundPlan.from_json(self.to_json()).to_json().encode()).digest()

    @property
    def total_rank(self) -> int:
        """Rank of the state that comes with the plan."""
        return self.spec.rank + self.frozen_rank

    @property
    def full_spec(self) -> AdapterSpec:
        """The adapter as it is applied: trained and frozen components with one scaling."""
        return replace(self.spec, rank=self.total_rank, alpha=self.spec.scaling * self.total_rank)

    def to_json(self) -> str:
        """The plan as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RoundPlan:
        """Reads a plan, and refuses one that it does not understand whole.

        Raises:
            FederationError: another protocol, an unknown or missing field, a value out of its bounds.
            AdapterError: an impossible adapter.
        """
        document = parse_json_object(_utf8(text), what="the round plan", limit=MAX_PLAN_BYTES)
        _same_protocol(document)
        spec = AdapterSpec.from_document(document.pop("spec", None))
        privacy = _privacy(document.pop("privacy", None))
        masking = _masking(document.pop("masking", None))
        values = _known_fields(cls, document, "the round plan", but=("spec", "privacy", "masking"))
        try:
            plan = cls(spec=spec, privacy=privacy, masking=masking, **values)
        except TypeError as fault:
            raise FederationError(f"the round plan is not complete: {fault}") from fault
        _check_plan(plan)
        return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a client says about its work: `examples` is its weight, `loss` its mean loss in nats a token (None: kept).

    `rank` is the rank that it trains at, `seconds` wall time, `norm` the Euclidean norm of its delta.
    """

    protocol: int = PROTOCOL
    round: int
    nonce: str
    base_fingerprint: str
    rank: int
    alpha: float
    part: Part
    examples: int
    steps: int
    tokens: int
    loss: float | None = None
    norm: float = 0.0
    seconds: float = 0.0

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=True)

    @classmethod
    def from_json(cls, text: str, *, limit: int = MAX_REPORT_BYTES) -> TrainReport:
        """Reads a report; what the values mean is for admission to judge.

        Raises:
            FederationError: not a report, too long, or with fields of the wrong kind.
        """
        document = parse_json_object(_utf8(text), what="the report", limit=limit)
        _same_protocol(document)
        try:
            return cls(**_known_fields(cls, document, "the report"))
        except TypeError as fault:
            raise FederationError(f"the report is not complete: {fault}") from fault


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "str": (str,),
    "Literal[32, 64]": (int,),
}


def _utf8(text: str) -> bytes:
    # A lone surrogate is let through here, for the parser to refuse.
    return text.encode(errors="surrogatepass")


def _same_protocol(document: Mapping[str, Any]) -> None:
    protocol = document.get("protocol")
    if protocol != PROTOCOL or isinstance(protocol, bool):
        raise FederationError(
            f"the other side speaks protocol {shortened(protocol)}, this one {PROTOCOL}",
            hint="bring client and coordinator to the same version of neuralforge",
        )


def _known_fields(cls: type, document: Mapping[str, Any], what: str, *, but: tuple[str, ...] = ()) -> dict[str, Any]:
    kinds = {field.name: str(field.type) for field in fields(cls) if field.name not in but}
    for name, value in document.items():
        if name not in kinds:
            raise FederationError(f"{what} has an unknown field: {shortened(name)}")
        wanted = _KINDS.get(kinds[name], (str,))
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise FederationError(f"{what}: {name}: got {shortened(value)}")
        if isinstance(value, str) and len(value) > 1024:
            raise FederationError(f"{what}: {name} is longer than 1,024 characters")
        # `abs` and not math.isfinite, which overflows on the whole numbers that JSON can hold.
        if isinstance(value, int | float) and not abs(value) < 2**63:
            raise FederationError(f"{what}: {name} is no number that can be used: {shortened(value)}")
    return dict(document)


def _privacy(document: object) -> PrivacyTerms | None:
    if document is None:
        return None
    if not isinstance(document, dict):
        raise FederationError(f"the round plan: privacy: got {shortened(document)}")
    try:
        return PrivacyTerms(**_known_fields(PrivacyTerms, document, "the round plan's privacy"))
    except (TypeError, PrivacyError) as fault:
        raise FederationError(f"the round plan's privacy cannot be used: {fault}") from fault


def _masking(document: object) -> MaskingTerms | None:
    if document is None:
        return None
    if not isinstance(document, dict):
        raise FederationError(f"the round plan: masking: got {shortened(document)}")
    try:
        return MaskingTerms(**_known_fields(MaskingTerms, document, "the round plan's masking"))
    except TypeError as fault:
        raise FederationError(f"the round plan's masking is not complete: {fault}") from fault


def _check_plan(plan: RoundPlan) -> None:
    def wanted(holds: bool, name: str, what: str) -> None:
        if not holds:
            raise FederationError(f"the round plan: {name}: wanted {what}, got {shortened(getattr(plan, name))}")

    wanted(1 <= plan.round <= plan.rounds <= MAX_STEPS, "round", "a round from 1 to the last")
    wanted(0 < len(plan.nonce) <= 64, "nonce", "1 to 64 characters")
    wanted(len(plan.layout_digest) == 64, "layout_digest", "a SHA-256")
    wanted(0 <= plan.frozen_rank <= 256 - plan.spec.rank, "frozen_rank", "0 to 256 with the rank")
    wanted(plan.part in get_args(Part), "part", "both, A or B")
    wanted(plan.personal in ("none", "A", "B"), "personal", "none, A or B")
    wanted((plan.steps is None) != (plan.epochs is None), "steps", "either steps or epochs")
    wanted(plan.steps is None or 1 <= plan.steps <= MAX_STEPS, "steps", f"1 to {MAX_STEPS:,}")
    wanted(plan.epochs is None or 1 <= plan.epochs <= 1000, "epochs", "1 to 1,000")
    wanted(1 <= plan.batch_size <= 4096, "batch_size", "1 to 4,096")
    wanted(0 < plan.learning_rate <= 1, "learning_rate", "a number above 0, at most 1")
    wanted(0 <= plan.warmup_steps <= MAX_STEPS, "warmup_steps", "a whole number ≥ 0")
    wanted(8 <= plan.max_length <= 2**20, "max_length", "8 or more tokens")
    wanted(0 < plan.max_grad_norm < 1e9, "max_grad_norm", "a number above 0")
    wanted(0 <= plan.proximal_mu < 1e9, "proximal_mu", "a number ≥ 0")
    wanted(plan.wire in get_args(WireFormat), "wire", "fp32, fp16 or int8")
    wanted(plan.weighting in ("examples", "uniform"), "weighting", "examples or uniform")
    wanted(0 <= plan.seed < 2**63, "seed", "a whole number ≥ 0")
    wanted(plan.trust in ("server", "peers"), "trust", "server or peers")
    if plan.privacy is not None:
        wanted(plan.weighting == "uniform", "weighting", "uniform, as counts of examples are private")
        wanted(plan.steps is not None, "steps", "steps, as the length of an epoch is private")
    if plan.trust == "peers":
        wanted(plan.weighting == "uniform", "weighting", "uniform, as nothing but a sum is seen")
        wanted(plan.wire == "fp32", "wire", "fp32, as masked values are not rounded once more")
        wanted(plan.steps is not None, "steps", "steps, from which the range of an update follows")
        wanted(plan.frozen_rank == 0, "frozen_rank", "0: only methods that add up can be masked")
    else:
        wanted(plan.masking is None, "masking", "nothing, as trust is server")
