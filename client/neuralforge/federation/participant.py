"""One developer's part in a federation: the model and the code stay here, a delta of the adapter leaves.

plan, state → allowed? → this base, this order of values? → own matrices in → train → after − before → what was
left unsent added → delta, report
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import numpy as np

from neuralforge.continual.fisher import Fisher, compute_fisher_information
from neuralforge.data.dataset import Dataset
from neuralforge.data.example import Example
from neuralforge.data.tokens import TokenizedExample
from neuralforge.evaluation.metrics import Evaluation
from neuralforge.federation import policy as site
from neuralforge.federation.finished import before_and_after, write_finished
from neuralforge.federation.memory import Binding, Memory
from neuralforge.federation.parts import add_unsent, client_state
from neuralforge.federation.private_rounds import PrivateRounds
from neuralforge.federation.remembering import Remembering
from neuralforge.federation.resident import ResidentModel
from neuralforge.federation.secagg.member import SecureMember
from neuralforge.privacy.fisher import private_fisher
from neuralforge.privacy.release import release
from neuralforge.privacy.run import PrivateTraining
from neuralforge.training.events import Event, Observer, StepDone
from neuralforge.training.penalty import Penalty, Proximal
from neuralforge.training.schedule import ConstantScheduler
from neuralforge.training.trainer import LoRATrainer
from neuralforge_common.adapter import MAX_RANK, AdapterSpec, FloatArray
from neuralforge_common.config.policy import SitePolicy
from neuralforge_common.config.schema import ModelSection
from neuralforge_common.errors import FederationError
from neuralforge_common.layout import AdapterLayout
from neuralforge_common.metadata import Evaluation as BeforeAndAfter
from neuralforge_common.plan import RoundPlan, TrainReport
from neuralforge_common.strict_json import shortened

DEFAULT_BASE = str(ModelSection().base)
DEFAULT_LENGTH = 256
UNSENT = "unsent"
FISHER_EXAMPLES = 64
"""Examples that a round's Fisher is the mean of: a round is short."""


class RoundStopped(Exception):
    """Training was asked to stop: there is nothing to send."""


class Participant:
    """Answers what a coordinator asks, within what the site's policy allows.

    `data` was gathered on this machine; nothing that a plan says can change what is read. A client with less than the
    plan's rank at its disposal (`max_rank`) trains the first components and holds the others at zero, so that the
    adapter's scaling stays what it is. `adapter_path` is where the finished adapter goes, None for nowhere.
    `remembering` holds what this client has learnt before. `member` is this machine in rounds under masks, `private` in
    rounds with differential privacy, None where it takes part in none. `now` is local time. `stop` is asked before each
    step.
    """

    def __init__(
        self,
        resident: ResidentModel,
        data: Dataset,
        *,
        memory: Memory,
        policy: SitePolicy | None = None,
        max_rank: int = MAX_RANK,
        adapter_path: Path | None = None,
        remembering: Remembering | None = None,
        member: SecureMember | None = None,
        private: PrivateRounds | None = None,
        now: Callable[[], datetime] = datetime.now,
        observers: Sequence[Observer] = (),
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.resident = resident
        self.data = data
        self.memory = memory
        self.policy = policy or SitePolicy()
        self.max_rank = max_rank
        self.adapter_path = adapter_path
        self.remembering = remembering or Remembering()
        self.member = member
        self.private = private
        self.scores: BeforeAndAfter | None = None
        """Held-out figures of the base and of the finished adapter, for this machine's owner."""
        self._now = now
        self._observers = tuple(observers)
        self._stop = stop
        self._tokens: dict[tuple[str, int], tuple[list[TokenizedExample], list[TokenizedExample]]] = {}

    def describe(
        self, base: str, *, rank: int, alpha: float | None, target_modules: str | Sequence[str], dropout: float
    ) -> tuple[AdapterSpec, AdapterLayout]:
        """What such an adapter is on this machine's base.

        Raises:
            FederationError: the base is not allowed or not the configured one, or has no such modules.
        """
        self._check_base(base)
        spec = self.resident.spec(base, rank=rank, alpha=alpha, target_modules=target_modules, dropout=dropout)
        # The length decides the engine alone, no layout depends on it.
        _, layout = self.resident.trainer(spec, max_length=DEFAULT_LENGTH)
        return spec, layout

    def check(self, plan: RoundPlan) -> None:
        """Holds a plan against the site's policy, before anything is loaded; raises FederationError."""
        steps = None if plan.epochs is None else plan.epochs * math.ceil(len(self.data.train) / plan.batch_size)
        site.check(plan, self.policy, self._now(), steps=steps)
        if self.private is not None:
            self.private.check(plan, self.policy)
        if plan.privacy is not None:
            self.remembering.check_private()

    def layout(self, plan: RoundPlan) -> AdapterLayout:
        """The order of the values in the state that comes with a plan, once base and modules are found to be the same.

        Raises:
            FederationError: they are not, or the site's policy refuses the plan.
        """
        return self._open(plan)[1]

    def train(self, plan: RoundPlan, state: FloatArray) -> tuple[TrainReport, FloatArray]:
        """Train from `state` (total rank's size,); returns the report and the float32 delta, to be sent as `plan.wire`.

        The delta is `plan.part` at the reported rank. The optimizer is fresh in each round. The same plan, state, data
        and memory give the same bytes on one CPU, but for a private round, of which never two are alike.

        Raises:
            FederationError: the plan is not allowed, or for another base or adapter, or its privacy costs too much.
            PrivacyError: the ledger of what privacy has cost is damaged or in use.
            TrainingError: the loss is not finite.
            RoundStopped: `stop` said so; nothing was changed.
        """
        began = time.perf_counter()
        self.check(plan)
        if plan.personal != "none" and plan.part in (plan.personal, "both"):
            raise FederationError(
                f"the plan asks to send {plan.part}, and says that {plan.personal} is kept by the client"
            )
        trainer, layout, rank = self._open(plan)
        binding = self._binding(plan, layout, rank)
        kept = self.memory.recall(binding, before=plan.round)
        before = client_state(plan, layout, state, kept, rank=rank)
        private, receipt = None, None
        with ExitStack() as stack:
            if plan.privacy is not None:
                ledger = self._ledger(plan)
                private, receipt = stack.enter_context(ledger.round(plan, self.data.train, self.policy))
            steps, tokens, loss = self._learn(plan, trainer, layout, before, rank, kept, private)
        after = layout.flatten(trainer.state())

        delta = layout.resized((after - before)[layout.part_slice(plan.part)], rank, part=plan.part)
        delta, arrives, unsent = add_unsent(plan, layout.with_rank(rank), delta, kept.get(UNSENT))
        remembered: dict[str, FloatArray] = {UNSENT: unsent} if unsent.any() else {}
        if plan.personal != "none":
            own = after[layout.part_slice(plan.personal)]
            remembered[plan.personal] = layout.resized(own, rank, part=plan.personal)
        remembered |= self.remembering.consolidated(
            plan, trainer, lambda: self._fisher(plan, trainer, private), kept, rank=rank
        )
        if kept or remembered:  # nothing left to remember is worth an entry, too: it replaces an older one
            self.memory.keep(binding, plan.round, remembered)

        tells = self.policy.allow.report_metrics
        report = TrainReport(
            round=plan.round,
            nonce=plan.nonce,
            base_fingerprint=trainer.base.fingerprint,
            rank=rank,
            alpha=plan.spec.scaling * rank,
            part=plan.part,
            examples=len(self._tokenized(plan, trainer)[0]) if plan.weighting == "examples" else 1,
            steps=steps,
            tokens=tokens,
            loss=loss if tells else None,
            norm=float(np.linalg.norm(arrives)),
            seconds=time.perf_counter() - began if tells else 0.0,
        )
        return (report, delta) if receipt is None else release(plan, report, delta, receipt)

    def evaluate(self, plan: RoundPlan, state: FloatArray) -> Evaluation | None:
        """Scores of a state on this client's held-out code, with its own matrices where it has any.

        None where nothing is held out, or privacy, masks or the site's policy keep figures here: of any state that the
        coordinator likes to ask about, they would tell what this client's code is.

        Raises:
            FederationError: the plan is not allowed, or for another base or adapter.
        """
        self.check(plan)
        open_plan = plan.privacy is None and plan.trust == "server"
        if not (open_plan and self.policy.allow.report_metrics and self.data.evaluation):
            return None
        trainer, layout, rank = self._open(plan)
        trainer.load_state(layout.unflatten(self._own(plan, layout, state, rank)))
        return trainer.evaluate(self._tokenized(plan, trainer)[1])

    def finish(self, plan: RoundPlan, state: FloatArray) -> Path | None:
        """Write the federation's adapter, with this client's own matrices where it has any, as a `.lora` folder.

        `scores` are then the held-out figures; after private rounds they are not in the folder, which may be passed on.

        Raises:
            FederationError: the plan is for another base or adapter.
            StorageError: the folder cannot be written.
        """
        if self.adapter_path is None:
            return None
        trainer, layout, rank = self._open(plan)
        vector = self._own(plan, layout, state, rank)
        self.scores = before_and_after(trainer, layout, vector, self._tokenized(plan, trainer)[1])
        spent = self.private.statement(plan) if self.private is not None else None
        told = self.scores if spent is None and plan.privacy is None else None
        write_finished(self.adapter_path, plan, trainer, scores=told, privacy=spent)
        return self.adapter_path

    def _check_base(self, base: str) -> None:
        site.check_base(base, self.policy)
        configured = self.resident.name
        if configured is not None:
            if base != configured:
                raise FederationError(
                    f"the federation trains on the base {shortened(base)}, this client is configured for "
                    f"{_public(configured)}",
                    hint="set model.base to that base, or leave it out",
                )
        # A coordinator's word alone must not make this machine load a folder or download a model.
        elif not self.policy.allow.bases and base != DEFAULT_BASE:
            raise FederationError(
                f"the federation trains on the base {shortened(base)}, which this client was not told to load "
                f"(wanted {DEFAULT_BASE})",
                hint="set model.base, or allow.bases in the site policy",
            )

    def _open(self, plan: RoundPlan) -> tuple[LoRATrainer, AdapterLayout, int]:
        """The trainer that a plan asks for, its layout, and the rank that this client trains at."""
        site.check_adapter(plan, self.policy)
        if self.resident.name is None:
            self._check_base(plan.spec.base)
        found = self.resident.base(plan.spec.base)
        if found.fingerprint != plan.spec.base_fingerprint:
            raise FederationError(
                f"another base: the federation trains {shortened(plan.spec.base)} with the fingerprint "
                f"{_short(plan.spec.base_fingerprint)}, this client holds one with {_short(found.fingerprint)}",
                hint="install the same base at the same revision",
            )
        trainer, layout = self.resident.trainer(plan.full_spec, max_length=plan.max_length)
        if layout.digest != plan.layout_digest:
            raise FederationError(
                f"another adapter: the order of the plan's values is {plan.layout_digest[:12]}, on this client's base "
                f"it is {layout.digest[:12]} ({layout.summary()})",
                hint="bring client and coordinator to the same version of neuralforge",
            )
        return trainer, layout, min(plan.spec.rank, self.max_rank)

    def _learn(
        self,
        plan: RoundPlan,
        trainer: LoRATrainer,
        layout: AdapterLayout,
        before: FloatArray,
        rank: int,
        kept: Mapping[str, FloatArray],
        private: PrivateTraining | None,
    ) -> tuple[int, int, float | None]:
        """Train the plan's part, and what is personal, from `before`: steps, tokens read, mean loss of the steps."""
        trainer.load_state(layout.unflatten(before))
        sides = "AB" if plan.part == "both" else "".join(sorted({plan.part, plan.personal} - {"none"}))
        whole = sides == "AB" and rank == layout.rank
        penalties: list[Penalty] = []
        if plan.proximal_mu > 0:
            penalties.append(Proximal(mu=plan.proximal_mu, anchor=trainer.flat.vector.detach().clone()))
        penalties += self.remembering.penalties(plan, trainer, kept, before, rank=rank)
        losses: list[float] = []

        def listen(event: Event) -> None:
            if isinstance(event, StepDone) and event.loss is not None:
                losses.append(event.loss)

        result = trainer.train(
            self._tokenized(plan, trainer)[0],
            epochs=plan.epochs or plan.steps or 1,  # an epoch has a step at least: max_steps is what counts
            max_steps=plan.steps,
            batch_size=plan.batch_size,
            lr_scheduler=ConstantScheduler(base_lr=plan.learning_rate, warmup_steps=plan.warmup_steps),
            seed=round_seed(plan),
            # In private rounds each unit's gradient is clipped, and the noised sum is taken as it is.
            max_grad_norm=plan.max_grad_norm if private is None else 0.0,
            penalties=penalties,
            source=self.remembering.source(trainer, self.data),
            gradient=None if private is None else private.gradient,
            keeps="last",
            trainable=None if whole else trainer.flat.mask(sides, components=rank),
            observers=(listen, *self._observers),
            stop=self._stop,
        )
        if not result.completed:
            raise RoundStopped
        return result.steps, result.tokens, math.fsum(losses) / len(losses) if losses else None

    def _fisher(self, plan: RoundPlan, trainer: LoRATrainer, private: PrivateTraining | None) -> Fisher:
        """What matters to the round that has just ended; of a private one as its noised gradients tell."""
        if private is None:
            examples = self._tokenized(plan, trainer)[0]
            return compute_fisher_information(trainer, examples, limit=FISHER_EXAMPLES, seed=round_seed(plan))
        return private_fisher(trainer, private.noised, private.terms)

    def _ledger(self, plan: RoundPlan) -> PrivateRounds:
        if self.private is None:
            raise FederationError(
                f"round {plan.round} is a private one, and this client keeps no ledger of what privacy costs",
                hint="take part with nf-client train --server",
            )
        return self.private

    def _own(self, plan: RoundPlan, layout: AdapterLayout, state: FloatArray, rank: int) -> FloatArray:
        """A committed state with this client's own matrices, where a plan has personal ones and there are any yet."""
        if plan.personal == "none":
            return state
        kept = self.memory.recall(self._binding(plan, layout, rank), before=plan.round + 1)
        return client_state(plan, layout, state, kept, rank=rank)

    def _binding(self, plan: RoundPlan, layout: AdapterLayout, rank: int) -> Binding:
        # At this client's rank: frozen components come and go from round to round. Nothing that was learnt without
        # privacy enters a round with it.
        return Binding(
            federation=plan.federation if plan.privacy is None else f"{plan.federation} (private)",
            base_fingerprint=plan.spec.base_fingerprint,
            layout_digest=layout.with_rank(rank).digest,
        )

    def _tokenized(
        self, plan: RoundPlan, trainer: LoRATrainer
    ) -> tuple[list[TokenizedExample], list[TokenizedExample]]:
        key = (trainer.base.fingerprint, plan.max_length)
        if key not in self._tokens:
            sides: list[Sequence[Example]] = [self.data.train, self.data.evaluation]
            train, held_out = (trainer.tokenize(side) if side else [] for side in sides)
            self._tokens = {key: (train, held_out)}
        return self._tokens[key]


def round_seed(plan: RoundPlan) -> int:
    """The seed of a round, the same on every client: 31 bits of a hash of the plan's seed and the round."""
    return int.from_bytes(hashlib.sha256(f"{plan.seed} {plan.round}".encode()).digest()[:4], "big") >> 1


def _short(fingerprint: str) -> str:
    return shortened(fingerprint.removeprefix("sha256:")[:12])


def _public(base: str) -> str:
    """The name of a base for somebody else's eyes: a path of this machine is none of theirs."""
    return "a model of its own" if base.startswith(("/", ".", "~")) or base.endswith(".gguf") else shortened(base)
