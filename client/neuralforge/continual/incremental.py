"""`IncrementalLearner`: an adapter that learns session after session, and keeps what the earlier ones taught it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralforge.continual.blocks import Merged, learn_block
from neuralforge.continual.dark import Dark
from neuralforge.continual.ewc import EWCRegularizer
from neuralforge.continual.forgetting import Kept, forget_report, score_with
from neuralforge.continual.history import Session
from neuralforge.continual.keeping import Taught, keep
from neuralforge.continual.keys import Key
from neuralforge.continual.mix import SHARE, Mix, Replayed, replayed
from neuralforge.continual.opening import NewData, as_dataset, check_fits, trainer_of
from neuralforge.continual.remembered import Remembered
from neuralforge.continual.replay import ReplayBuffer
from neuralforge.continual.sampling import Balance
from neuralforge.data.dataset import Dataset
from neuralforge.data.dedup import Deduplicator, example_text
from neuralforge.data.example import Example
from neuralforge.evaluation.metrics import Evaluation
from neuralforge.training.source import EpochSource, SourceMaker
from neuralforge.training.trainer import LoRATrainer, TrainResult
from neuralforge_common.errors import AdapterError, DataError
from neuralforge_common.folder import check_replaceable

if TYPE_CHECKING:
    from neuralforge.privacy.run import PrivateTraining
    from neuralforge.privacy.session import PrivateSession

DER_ALPHA = 0.5
EWC_BESIDE_REPLAY, EWC_ALONE = 0.1, 0.5
"""Chosen by benchmarks/forgetting.py, see docs/continual.md: beside replayed answers a firmer hold costs more than it
keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What a call of `learn_from_session` came to; `session` is None where training was asked to stop.

    `base` is the score of the untouched base on what was held out; `repeated` counts new examples that were left out
    because an earlier session holds them out; `merged` is there where it was learnt in a block of its own.
    """

    result: TrainResult
    session: Session | None
    base: Evaluation | None
    repeated: int
    merged: Merged | None = None


class IncrementalLearner:
    """Learns from new data without forgetting, and leaves the adapter and its history in step.

        learner = IncrementalLearner("./my-adapter.lora")
        learner.learn_from_session("./this-week.jsonl", epochs=3)
        learner.forget_report()

    One in five examples of a batch is replayed (`replay_ratio`), with what the adapter answered when it was stored
    (`der_alpha`, DER++), and EWC holds what mattered to earlier sessions (`ewc_lambda`, see `EWCRegularizer`). None is
    0.5 and 0.1; without replay EWC is alone, at 0.5. `progressive` has each session learn in a block of its own, in
    place of EWC (see `blocks`), with an `orthogonal_lambda` above 0 at right angles to the earlier ones.

    `key` locks what is kept of the code, None takes the passphrase of the environment or the system's keyring; with a
    `replay_buffer_size` of 0 no code is kept and no key is needed. `trainer` may be given later (`use`), else one is
    made when it is first needed, of `base` and `options`, which are those of `LoRATrainer`. `anew` is for the first
    session of an adapter that has only been begun: what stands at the path, and its history, is replaced by what `use`
    brings.

    Raises:
        AdapterError: there is no such adapter.
        CheckpointError: its history is damaged, or that of another adapter.
        VaultError: no key, or another one.
        StorageError: others may look into the history, or a session is being learnt just now.
    """

    def __init__(
        self,
        adapter: str | Path,
        *,
        trainer: LoRATrainer | None = None,
        base: str | None = None,
        ewc_lambda: float | None = None,
        replay_buffer_size: int = 1000,
        replay_ratio: float = SHARE,
        replay_balance: Balance | None = None,
        der_alpha: float | None = None,
        progressive: bool = False,
        orthogonal_lambda: float = 0.0,
        key: Key | None = None,
        anew: bool = False,
        **options: Any,
    ) -> None:
        self.path = Path(adapter)
        self.replay_ratio = replay_ratio
        replays = replay_buffer_size > 0 and replay_ratio > 0
        self.der_alpha = der_alpha if der_alpha is not None else DER_ALPHA if replays else 0.0
        self.progressive = progressive
        self.orthogonal_lambda = orthogonal_lambda
        self._base, self._options = base, options
        self.remembered = Remembered(self.path, size=replay_buffer_size, balance=replay_balance, key=key, anew=anew)
        strength = ewc_lambda if ewc_lambda is not None else EWC_BESIDE_REPLAY if replays else EWC_ALONE
        self.ewc = EWCRegularizer(ewc_lambda=strength, state=self.remembered.ewc)
        self._trainer: LoRATrainer | None = None
        if trainer is not None:
            self.use(trainer)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The sessions that are known of."""
        return self.remembered.record.sessions

    @property
    def replay_buffer(self) -> ReplayBuffer:
        """The earlier examples that are kept; empty where there are none."""
        return self.remembered.buffer

    @property
    def trainer(self) -> LoRATrainer:
        """The trainer, with the adapter on it; loads the base where there is none yet.

        Raises:
            ModelError, AdapterError: the base cannot be loaded, or is another one.
        """
        if self._trainer is None:
            found = self.remembered.found
            if found is None:
                raise AdapterError("an adapter that is begun anew needs a trainer", hint="give one, or call use()")
            self._trainer = trainer_of(found, base=self._base, **self._options)
        return self._trainer

    def use(self, trainer: LoRATrainer) -> None:
        """Take this trainer, its weights those of the adapter; raises AdapterError for one of another adapter."""
        found = self.remembered.found
        if found is not None:
            check_fits(found, trainer)
            trainer.load_state(found.state)
        self._trainer = trainer

    def learn_from_session(
        self, new_data: NewData, *, private: PrivateSession | None = None, **training: Any
    ) -> Learnt:
        """Train on new data beside replayed examples, under EWC; then put adapter and history down, both or neither.

        `new_data` is a JSONL file, examples, or a `Dataset` whose held-out side is kept for the forget report; of the
        other two a tenth is held out, by file. `private` makes it a private session. `training` goes to
        `LoRATrainer.train`.

        Raises:
            DataError: there is nothing to learn from.
            TrainingError, CheckpointError: see `LoRATrainer.train`.
            StorageError: the disk refuses; adapter and history are then as they were.
        """
        data = as_dataset(new_data)
        trainer = self.trainer
        check_replaceable(self.path)
        with self.remembered.history.learning():
            self.remembered.check_unchanged()
            train = self._unseen(data.train)
            if private is not None:
                train = private.unseen(train)
            base = self._base_scores(data.evaluation)
            merged = None
            if private is not None:
                earlier = self._earlier(train, data.evaluation) if private.replays else []
                counted = len(earlier)
                result = self._train_privately(private.begin(train, earlier), data, **training)
            else:
                old = self._replayed(train, data.evaluation)
                counted = len(old.examples)
                result, merged = self._train(trainer, data, train, old, **training)
            session = None
            if result.completed:
                taught = Taught(
                    data=data,
                    examples=train,
                    replayed=counted,
                    result=result,
                    base=base,
                    merged=merged,
                    private=private,
                )
                session = self._keep(taught)
        return Learnt(result=result, session=session, base=base, repeated=len(data.train) - len(train), merged=merged)

    def forget_report(self) -> list[Kept]:
        """How the adapter does on what each session has held out, then and now; oldest first."""
        return forget_report(self.remembered.held_out, score_with(self.trainer))

    def _train(
        self, trainer: LoRATrainer, data: Dataset, train: Sequence[Example], old: Replayed, **training: Any
    ) -> tuple[TrainResult, Merged | None]:
        source: SourceMaker = EpochSource
        if old.examples and self.replay_ratio > 0:
            source = Mix(replayed=old, share=self.replay_ratio)
        blocks = self.remembered.blocks() if self.progressive else None
        if blocks is None:
            penalties = self.ewc.penalties(trainer)
            return trainer.train(train, data.evaluation or None, penalties=penalties, source=source, **training), None
        self._trainer = None  # spent, whatever comes of it
        self._trainer, result, merged = learn_block(
            trainer,
            blocks,
            trainer.tokenize(train),
            trainer.tokenize(data.evaluation) if data.evaluation else (),
            earlier=old.examples,
            orthogonal_lambda=self.orthogonal_lambda,
            seed=len(self.sessions),
            source=source,
            **training,
        )
        return result, merged

    def _train_privately(self, session: PrivateTraining, data: Dataset, **training: Any) -> TrainResult:
        return self.trainer.train(
            session.examples,
            data.evaluation or None,
            penalties=self.ewc.penalties(self.trainer),
            gradient=session.gradient,
            **training,
        )

    def _keep(self, taught: Taught) -> Session:
        return keep(self.remembered, self.trainer, self.ewc, taught, der_alpha=self.der_alpha)

    def _unseen(self, train: Sequence[Example]) -> Sequence[Example]:
        """Without what earlier sessions hold out, or nearly: the forget report must not judge what was learnt."""
        if not self.remembered.held_out:
            return train
        alike = Deduplicator()
        for item in self.remembered.held_out:
            alike.add(example_text(item.example))
        kept = [example for example in train if not alike.add(example_text(example))]
        if not kept:
            raise DataError("nothing new: every example is one that an earlier session holds out")
        return kept

    def _replayed(self, train: Sequence[Example], evaluation: Sequence[Example]) -> Replayed:
        dark = Dark(alpha=self.der_alpha) if self.der_alpha > 0 else None
        without = self._not_replayed(train, evaluation)
        return replayed(self.replay_buffer.items, self.trainer, dark=dark, without=without)

    def _earlier(self, train: Sequence[Example], evaluation: Sequence[Example]) -> list[Example]:
        without = self._not_replayed(train, evaluation)
        return [item.example for item in self.replay_buffer.items if item.example.id not in without]

    def _not_replayed(self, train: Sequence[Example], evaluation: Sequence[Example]) -> set[str]:
        held_out = {item.example.id for item in self.remembered.held_out}
        return {example.id for example in (*train, *evaluation)} | held_out

    def _base_scores(self, evaluation: Sequence[Example]) -> Evaluation | None:
        if not evaluation:
            return None
        flat = self.trainer.flat
        stands = flat.vector.detach().clone()
        flat.load(stands * ~flat.mask("B"))
        try:
            return self.trainer.evaluate(evaluation)
        finally:
            flat.load(stands)
