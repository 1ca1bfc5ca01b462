"""`IncrementalLearner`: an adapter that learns session after session, and keeps what the earlier ones taught it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from neuralforge.continual import history as places
from neuralforge.continual.dark import Dark, answers
from neuralforge.continual.ewc import EWCRegularizer
from neuralforge.continual.forgetting import Kept, forget_report
from neuralforge.continual.held_out import HeldOut, HeldOutItem
from neuralforge.continual.history import History, Record, Session, adapter_digest
from neuralforge.continual.keys import Key, choose_key
from neuralforge.continual.mix import SHARE, Mix, Replayed, replayed
from neuralforge.continual.replay import ReplayBuffer
from neuralforge.continual.sampling import Balance
from neuralforge.continual.state import EWCState
from neuralforge.continual.vault import read_header
from neuralforge.data.dataset import Dataset, dataset_from_examples
from neuralforge.data.dedup import Deduplicator, example_text
from neuralforge.data.example import Example
from neuralforge.data.jsonl import read_examples
from neuralforge.data.run_folder import HELD_OUT_FILE, REPLAY
from neuralforge.evaluation.metrics import Evaluation, score_all
from neuralforge.models.load import load_base_model
from neuralforge.training.engine import ExampleScore
from neuralforge.training.source import EpochSource, SourceMaker
from neuralforge.training.trainer import LoRATrainer, TrainResult, utc_now
from neuralforge_common import __version__, metadata
from neuralforge_common.adapter import AdapterState
from neuralforge_common.errors import AdapterError, DataError
from neuralforge_common.folder import (
    AdapterFolder,
    check_replaceable,
    read_adapter_folder,
    verify_base,
    write_adapter_folder,
)

NewData: TypeAlias = str | Path | Sequence[Example] | Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What a call of `learn_from_session` came to; `session` is None where training was asked to stop.

    `base` is the score of the untouched base on what was held out; `repeated` counts new examples that were left out
    because an earlier session holds them out.
    """

    result: TrainResult
    session: Session | None
    base: Evaluation | None
    repeated: int


class IncrementalLearner:
    """Learns from new data without forgetting, and leaves the adapter and its history in step.

        learner = IncrementalLearner("./my-adapter.lora")
        learner.learn_from_session("./this-week.jsonl", epochs=3)
        learner.forget_report()

    One in five examples of a batch is replayed (`replay_ratio`), EWC holds what mattered to earlier sessions
    (`ewc_lambda`, see `EWCRegularizer`); `der_alpha` above 0 adds DER++. `key` locks what is kept of the code, None
    takes the passphrase of the environment or the system's keyring; with a `replay_buffer_size` of 0 no code is kept
    and no key is needed. `trainer` may be given later (`use`), else one is made when it is first needed, of `base` and
    `options`, which are those of `LoRATrainer`. `anew` is for the first session of an adapter that has only been begun:
    what stands at the path, and its history, is replaced by what `use` brings.

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
        ewc_lambda: float = 0.5,
        replay_buffer_size: int = 1000,
        replay_ratio: float = SHARE,
        replay_balance: Balance | None = None,
        der_alpha: float = 0.0,
        key: Key | None = None,
        anew: bool = False,
        **options: Any,
    ) -> None:
        self.path = Path(adapter)
        self.history = History(self.path)
        self.replay_buffer_size = replay_buffer_size
        self.replay_ratio = replay_ratio
        self.der_alpha = der_alpha
        self._base, self._options = base, options
        self._anew = anew
        self._found = None if anew else read_adapter_folder(self.path)
        digest = adapter_digest(self._found.spec, self._found.state) if self._found else ""
        self.record = self.history.read(digest) if self._found else Record(adapter="")
        kept = None
        if self.record.ewc:
            kept = EWCState.load(self.history.folder / places.EWC)
        self.ewc = EWCRegularizer(ewc_lambda=ewc_lambda, state=kept)
        self.balance: Balance = replay_balance or self.record.balance or "uniform"
        self.replay_buffer = ReplayBuffer(replay_buffer_size, balance=self.balance)
        self._key: Key | None = None
        self._held_out: list[HeldOutItem] = []
        if replay_buffer_size > 0:
            folder = self.history.folder / REPLAY
            header = None if anew else read_header(folder)
            self._key = key or choose_key(header.kind if header else None)
            if header is not None:
                self.replay_buffer = self._open_buffer(folder)
            if not anew and read_header(self.history.folder / places.HELD_OUT) is not None:
                self._held_out = HeldOut.open(self.history.folder / places.HELD_OUT, self._key).items()
        self._trainer: LoRATrainer | None = None
        if trainer is not None:
            self.use(trainer)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The sessions that are known of."""
        return self.record.sessions

    @property
    def trainer(self) -> LoRATrainer:
        """The trainer, with the adapter on it; loads the base where there is none yet.

        Raises:
            ModelError, AdapterError: the base cannot be loaded, or is another one.
        """
        if self._trainer is None:
            if self._found is None:
                raise AdapterError("an adapter that is begun anew needs a trainer", hint="give one, or call use()")
            self._trainer = trainer_of(self._found, base=self._base, **self._options)
        return self._trainer

    def use(self, trainer: LoRATrainer) -> None:
        """Take this trainer, its weights those of the adapter; raises AdapterError for one of another adapter."""
        if self._found is not None:
            check_fits(self._found, trainer)
            trainer.load_state(self._found.state)
        self._trainer = trainer

    def learn_from_session(self, new_data: NewData, **training: Any) -> Learnt:
        """Train on new data beside replayed examples, under EWC; then put adapter and history down, both or neither.

        `new_data` is a JSONL file, examples, or a `Dataset` whose held-out side is kept for the forget report; of the
        other two a tenth is held out, by file. `training` goes to `LoRATrainer.train`.

        Raises:
            DataError: there is nothing to learn from.
            TrainingError, CheckpointError: see `LoRATrainer.train`.
            StorageError: the disk refuses; adapter and history are then as they were.
        """
        data = as_dataset(new_data)
        trainer = self.trainer
        check_replaceable(self.path)
        with self.history.learning():
            if not self._anew:
                self._check_unchanged()
            train = self._unseen(data.train)
            old = self._replayed(train, data.evaluation)
            base = self._base_scores(data.evaluation)
            source: SourceMaker = EpochSource
            if old.examples and self.replay_ratio > 0:
                source = Mix(replayed=old, share=self.replay_ratio)
            result = trainer.train(
                train,
                data.evaluation or None,
                penalties=self.ewc.penalties(trainer),
                source=source,
                **training,
            )
            session = None
            if result.completed:
                session = self._keep(data, train, old, result, base)
        return Learnt(result=result, session=session, base=base, repeated=len(data.train) - len(train))

    def forget_report(self) -> list[Kept]:
        """How the adapter does on what each session has held out, then and now; oldest first."""
        return forget_report(self._held_out, self._score)

    def _keep(
        self, data: Dataset, train: Sequence[Example], old: Replayed, result: TrainResult, base: Evaluation | None
    ) -> Session:
        trainer = self.trainer
        name, now = str(len(self.sessions) + 1), utc_now()
        length = trainer.max_length
        if self.ewc.ewc_lambda > 0:
            self.ewc.consolidate(trainer, train, seed=len(self.sessions))
        else:
            # With the anchor of an older session a later one would be pulled back behind this one.
            self.ewc.state = None
        # 1. All of it into `next/`.
        place = self.history.stage(anew=self._anew)
        made = tuple(name for name in places.VAULTS if self._key and not (place / name).is_dir())
        held = 0
        self.ewc.save(place / places.EWC)
        if self._key is not None:
            buffer = self._open_buffer(place / REPLAY)
            given = answers(trainer, train) if self.der_alpha > 0 else None
            buffer.add(train, session=name, answers=given)
            held_out = HeldOut.open(place / places.HELD_OUT, self._key)
            then = self._score(data.evaluation, length) if data.evaluation else []
            held = held_out.add(name, data.evaluation, then, max_length=length)
        session = Session(
            name=name,
            learnt=now,
            examples=len(train),
            replayed=len(old.examples),
            held_out=held,
            max_length=length,
            ewc_lambda=self.ewc.ewc_lambda,
        )
        state = trainer.state()
        record = Record(
            adapter=adapter_digest(trainer.spec, state),
            sessions=(*self.sessions, session),
            balance=self.balance if self._key else self.record.balance,
            ewc=self.ewc.state is not None,
            made=made,
        )
        self.history.write_next(record)
        # 2. The adapter: from here on the session has happened.
        if self._key is not None:
            # What a plain training has held out, in the clear: it may well have been learnt now.
            (self.history.folder.parent / HELD_OUT_FILE).unlink(missing_ok=True)
        self._write_adapter(data, train, state, result, base, now)
        # 3. and 4. The history after it.
        self.history.settle(record)
        self.record, self._anew = record, False
        self._found = read_adapter_folder(self.path)
        if self._key is not None:
            self.replay_buffer = self._open_buffer(self.history.folder / REPLAY)
            self._held_out = held_out.items()
        return session

    def _write_adapter(
        self,
        data: Dataset,
        train: Sequence[Example],
        state: AdapterState,
        result: TrainResult,
        base: Evaluation | None,
        now: str,
    ) -> None:
        trainer, found = self.trainer, self._found
        facts = (
            found.metadata
            if found
            else metadata.AdapterMetadata(
                name=self.path.name.removesuffix(".lora"),
                description=f"LoRA adapter of rank {trainer.spec.rank} on {trainer.base.name}",
            )
        )
        after = result.after
        scores = None
        if base is not None and after is not None:
            scores = metadata.Evaluation(
                base=metadata.Scores(perplexity=base.perplexity, accuracy=base.accuracy),
                adapter=metadata.Scores(perplexity=after.perplexity, accuracy=after.accuracy),
                samples=after.examples,
            )
        write_adapter_folder(
            self.path,
            spec=trainer.spec,
            state=state,
            metadata=replace(
                facts,
                training_samples=(facts.training_samples or 0) + len(train),
                accuracy=after.accuracy if after else None,
                created=now,
                dataset_digest=data.digest,
                base_model=trainer.base.name,
                neuralforge_version=__version__,
                evaluation=scores,
                digests={},
            ),
            tokenizer_json=found.tokenizer_path.read_bytes() if found and found.tokenizer_path else None,
        )

    def _check_unchanged(self) -> None:
        found = read_adapter_folder(self.path)
        digest = adapter_digest(found.spec, found.state)
        self.history.recover(digest)
        if digest != self.record.adapter:
            raise AdapterError(
                f"{self.path} was changed since it was opened", hint="open it anew: another session has been learnt"
            )

    def _unseen(self, train: Sequence[Example]) -> Sequence[Example]:
        """Without what earlier sessions hold out, or nearly: the forget report must not judge what was learnt."""
        if not self._held_out:
            return train
        alike = Deduplicator()
        for item in self._held_out:
            alike.add(example_text(item.example))
        kept = [example for example in train if not alike.add(example_text(example))]
        if not kept:
            raise DataError("nothing new: every example is one that an earlier session holds out")
        return kept

    def _replayed(self, train: Sequence[Example], evaluation: Sequence[Example]) -> Replayed:
        without = {example.id for example in (*train, *evaluation)} | {item.example.id for item in self._held_out}
        dark = Dark(alpha=self.der_alpha) if self.der_alpha > 0 else None
        return replayed(self.replay_buffer.items, self.trainer, dark=dark, without=without)

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

    def _score(self, examples: Sequence[Example], max_length: int) -> list[ExampleScore]:
        tokenized = self.trainer.tokenize(examples, max_length=max_length)
        return score_all(self.trainer.engine, tokenized)

    def _open_buffer(self, folder: Path) -> ReplayBuffer:
        if self._key is None:
            raise ValueError("no key")
        return ReplayBuffer.open(folder, self._key, max_size=self.replay_buffer_size, balance=self.balance)


def as_dataset(new_data: NewData) -> Dataset:
    """Examples or a file of them as a dataset: cleaned, a tenth held out by file; raises DataError."""
    if isinstance(new_data, Dataset):
        return new_data
    examples = read_examples(Path(new_data)) if isinstance(new_data, str | Path) else new_data
    return dataset_from_examples(examples, max_eval_samples=100)


def trainer_of(found: AdapterFolder, *, base: str | None = None, **options: Any) -> LoRATrainer:
    """A trainer of the same kind of adapter on its own base (or `base`, which must be the same), with its weights.

    Raises:
        ModelError, AdapterError: the base cannot be loaded, or is another one.
    """
    spec = found.spec
    loaded = load_base_model(
        base or spec.base,
        revision=None if base else spec.base_revision,
        device=options.pop("device", "auto"),
    )
    verify_base(spec, loaded.fingerprint, loaded.name)
    return LoRATrainer(
        loaded,
        rank=spec.rank,
        alpha=spec.alpha,
        target_modules=spec.target_modules,
        dropout=options.pop("dropout", spec.dropout),
        top_layers_only=None if spec.layers is None else len(spec.layers),
        state=found.state,
        **options,
    )


def check_fits(found: AdapterFolder, trainer: LoRATrainer) -> None:
    """Raises AdapterError, with both values, for a trainer of another base or kind of adapter."""
    verify_base(found.spec, trainer.base.fingerprint, trainer.base.name)
    for name in ("rank", "alpha", "target_modules", "layers", "task"):
        has, wanted = getattr(trainer.spec, name), getattr(found.spec, name)
        if name == "target_modules":
            has, wanted = sorted(has), sorted(wanted)
        if has != wanted:
            raise AdapterError(f"{found.path}: its {name.replace('_', ' ')} is {wanted}, the trainer's is {has}")
