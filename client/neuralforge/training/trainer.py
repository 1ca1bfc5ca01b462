"""`LoRATrainer`: one adapter on one base, trained on examples, saved as a `.lora` folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

import torch

from neuralforge.data.example import Example
from neuralforge.data.jsonl import read_examples
from neuralforge.data.tokens import TokenizedExample, tokenize, with_context_counted
from neuralforge.evaluation.metrics import Evaluation, score_all, summarize
from neuralforge.models.base import BaseModel
from neuralforge.models.lora import attach_lora, detach_lora, read_state, top_layers, write_state
from neuralforge.models.targets import resolve_targets
from neuralforge.training.checkpoint import CheckpointFolder, Counters
from neuralforge.training.choose import make_engine
from neuralforge.training.engine import Attention, EngineName, EngineOptions, Int8
from neuralforge.training.events import Observer, RunStarted, tell
from neuralforge.training.flat import FlatParameters
from neuralforge.training.gradient import BatchGradient, GradientMaker, GradientSource
from neuralforge.training.loop import Loop, Plan
from neuralforge.training.losses.context import ExampleLoss, Loss, loss_name
from neuralforge.training.penalty import Penalty
from neuralforge.training.schedule import ScheduleName, Scheduler, default_learning_rate, make_scheduler
from neuralforge.training.source import BatchSource, EpochSource, SourceMaker, examples_digest
from neuralforge_common import __version__, metadata
from neuralforge_common.adapter import AdapterSpec, AdapterState
from neuralforge_common.errors import CheckpointError
from neuralforge_common.folder import write_adapter_folder
from neuralforge_common.privacy import PrivacyStatement

Dataset = str | Path | Sequence[Example] | Sequence[TokenizedExample]
DEFAULT_CACHE_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a call of `train` came to. `completed` is False where it was asked to stop and can be resumed.

    `before` and `after` are held-out scores of the untrained and of the saved adapter, None with nothing held out.
    """

    completed: bool
    steps: int
    best_step: int
    tokens: int
    reason: str
    before: Evaluation | None
    after: Evaluation | None


class LoRATrainer:
    """Trains LoRA (Hu et al. 2021) on a frozen base, on a CPU or an accelerator.

    The same trainer serves alone and inside a federation. `alpha` None means 2 · rank; `learning_rate` None is
    chosen from the base's size; `target_modules` "auto" means every linear map of the blocks. `int8`,
    `context_gradients` and `top_layers` trade accuracy for speed, see docs/performance.md. `loss` takes the place of
    cross-entropy, see `neuralforge.training.losses`; what is held out is scored by cross-entropy all the same, and on
    completions alone, also where `loss_on_context` has a causal base learn the code in front of them, too.
    """

    def __init__(
        self,
        model: BaseModel,
        rank: int = 8,
        alpha: float | None = None,
        target_modules: str | Sequence[str] = "auto",
        *,
        dropout: float = 0.0,
        learning_rate: float | None = None,
        batch_size: int = 4,
        gradient_accumulation_steps: int = 1,
        gradient_checkpointing: bool = False,
        fp16: bool = False,
        gradient_scaling: bool = True,
        max_length: int = 256,
        max_grad_norm: float = 1.0,
        weight_decay: float = 0.0,
        seed: int = 0,
        top_layers_only: int | None = None,
        engine: EngineName = "auto",
        int8: Int8 = "off",
        attention: Attention = "auto",
        context_gradients: bool = True,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        state: AdapterState | None = None,
        loss: Loss | None = None,
        loss_on_context: bool = False,
    ) -> None:
        self.base = model
        targets = resolve_targets(model.model, target_modules)
        self.spec = AdapterSpec(
            base=model.name,
            base_revision=model.revision,
            base_fingerprint=model.fingerprint,
            rank=rank,
            alpha=2.0 * rank if alpha is None else alpha,
            dropout=dropout,
            target_modules=targets.names,
            task="seq2seq" if model.is_encoder_decoder else "causal",
            layers=top_layers(model.model, top_layers_only, is_encoder_decoder=model.is_encoder_decoder),
        )
        self._options = EngineOptions(
            engine=engine,
            int8=int8,
            attention=attention,
            context_gradients=context_gradients,
            gradient_checkpointing=gradient_checkpointing,
            cache_bytes=cache_bytes,
        )
        self._learning_rate = learning_rate
        self._batch_size = batch_size
        self._accumulation = gradient_accumulation_steps
        self.max_length = max_length
        self._max_grad_norm = max_grad_norm
        self._weight_decay = weight_decay
        self._seed = seed
        self._fp16 = (fp16, gradient_scaling)
        self.peft = attach_lora(model.model, self.spec, seed=seed)
        if state is not None:
            write_state(self.peft, state)
        self.flat = FlatParameters(self.peft)
        made = make_engine(
            self.peft,
            self.flat,
            self._options,
            base=model,
            max_length=max_length,
            fp16=fp16,
            gradient_scaling=gradient_scaling,
        )
        self.engine = made.engine
        self._loss_on_context = loss_on_context
        self._loss = loss
        if loss is not None:
            self.engine.loss = ExampleLoss(loss, model.tokenizer)
        unread = "loss_on_context has no effect: what an encoder reads is not predicted"
        unread = unread if loss_on_context and model.is_encoder_decoder else ""
        self.notices = tuple(n for n in (targets.notice, *made.notices, unread) if n)
        self._result: TrainResult | None = None
        self._trained_on = 0
        self._created = ""

    def train(
        self,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        *,
        epochs: int = 3,
        batch_size: int | None = None,
        lr_scheduler: Scheduler | None = None,
        schedule: ScheduleName = "linear",
        warmup_steps: int | None = None,
        max_steps: int | None = None,
        eval_steps: int | None = None,
        early_stopping_patience: int = 3,
        checkpoint_dir: str | Path | None = None,
        checkpoint_steps: int = 50,
        resume: bool = False,
        observers: Sequence[Observer] = (),
        stop: Callable[[], bool] = lambda: False,
        track_gradients: bool = False,
        seed: int | None = None,
        max_grad_norm: float | None = None,
        penalties: Sequence[Penalty] = (),
        trainable: torch.Tensor | None = None,
        source: SourceMaker = EpochSource,
        gradient: GradientMaker | None = None,
        keeps: Literal["best", "last"] = "best",
    ) -> TrainResult:
        """Learn from `train_dataset`, a JSONL file or examples; `eval_dataset` is held out and never learnt from.

        Learning begins with the adapter as it stands and with a fresh optimizer. `trainable` is a mask of the flat
        vector (see `FlatParameters.mask`): the rest stays as it is, to the last bit. `source` makes the batches, see
        `neuralforge.continual.Mix` for one that joins replayed examples to them. Where `gradient` makes the gradients,
        see `neuralforge.privacy`, there are no batches of `source`. `keeps` "last" ends with the last weights, whatever
        the held-out examples say. With `resume` a run in
        `checkpoint_dir` goes on where it stopped and ends with the same bytes as if it had not. Raises DataError,
        TrainingError, CheckpointError, StorageError.
        """
        size = batch_size or self._batch_size
        train = self.tokenize(train_dataset)
        if self._loss_on_context:
            train = with_context_counted(train)
        held_out = self.tokenize(eval_dataset) if eval_dataset is not None else []
        drawn = self._seed if seed is None else seed
        made: GradientSource
        batches = None
        if gradient is None:
            batches = source(train, batch_size=size, accumulation=self._accumulation, seed=drawn)
            made = BatchGradient(self.engine, self.flat, batches, seed=drawn)
        else:
            made = gradient(self.engine, self.flat, examples=train, batch_size=size, trainable=trainable)
        per_epoch = made.steps_per_epoch
        total = min(epochs * per_epoch, max_steps or epochs * per_epoch)
        rate = self._learning_rate or default_learning_rate(self.base.parameters)
        scheduler = lr_scheduler or make_scheduler(schedule, base_lr=rate, warmup_steps=warmup_steps, total_steps=total)
        plan = Plan(
            total_steps=total,
            batch_size=size,
            accumulation=self._accumulation,
            seed=drawn,
            max_grad_norm=self._max_grad_norm if max_grad_norm is None else max_grad_norm,
            weight_decay=self._weight_decay,
            evaluation_steps=eval_steps,
            patience=early_stopping_patience,
            checkpoint_steps=checkpoint_steps,
            track_gradients=track_gradients,
            keeps=keeps,
        )
        checkpoints = CheckpointFolder(Path(checkpoint_dir)) if checkpoint_dir is not None else None
        terms = tuple(penalties)
        # Only a checkpoint asks for the digest, and the rounds of a federation write none.
        mixed = None if source is EpochSource and gradient is None else made
        digest = self._run_digest(plan, scheduler, train, held_out, terms, trainable, mixed) if checkpoints else ""
        loop = Loop(
            self.engine,
            self.flat,
            plan,
            scheduler,
            gradient=made,
            evaluation=held_out,
            counters=Counters(run=digest, created=utc_now(), step=0),
            checkpoints=checkpoints,
            observers=tuple(observers),
            penalties=terms,
            trainable=trainable,
        )
        latest = checkpoints.latest() if checkpoints is not None and resume else None
        if latest is not None:
            if latest.counters.run != digest:
                raise CheckpointError(
                    f"the checkpoints in {checkpoint_dir} belong to another run: "
                    "data, configuration, base or thread count differ",
                    hint="leave --resume out to begin anew, or name another --checkpoint-dir",
                )
            loop.restore(latest)
        cache = getattr(self.engine, "cache_prefix", None)
        if cache is not None:
            # Always told: what an earlier call has cached belongs to other examples with the same indices.
            cache(made.examples if total - loop.counters.step > per_epoch else ())
        tell(
            tuple(observers),
            RunStarted(
                step=loop.counters.step,
                total_steps=total,
                examples=len(train),
                evaluation_examples=len(held_out),
                trainable=self.flat.vector.numel(),
                engine=self.engine.name,
                precision=self.engine.precision,
                padding=0.0 if batches is None else self._padding(batches),
                notices=self.notices,
            ),
        )
        completed = loop.run(stop)
        self._trained_on = len(train)
        self._created = loop.counters.created
        self._result = _result(loop.counters, completed=completed, held_out=held_out)
        return self._result

    def evaluate(self, dataset: Dataset) -> Evaluation:
        """Score the adapter as it stands on a JSONL file or examples."""
        return summarize(score_all(self.engine, self.tokenize(dataset)))

    def tokenize(self, dataset: Dataset, *, max_length: int | None = None) -> list[TokenizedExample]:
        """A dataset as token ids of this base, cut to `max_length`; one of token ids is taken as it is.

        `max_length` None is the trainer's own.
        """
        examples = list(read_examples(Path(dataset)) if isinstance(dataset, str | Path) else dataset)
        if examples and isinstance(examples[0], TokenizedExample):
            return cast(list[TokenizedExample], examples)
        return tokenize(
            cast(list[Example], examples),
            self.base.tokenizer,
            max_length=max_length or self.max_length,
            end_token_id=self.base.end_token_id,
            is_encoder_decoder=self.base.is_encoder_decoder,
        )

    def state(self) -> AdapterState:
        """The adapter's matrices as they stand."""
        return read_state(self.peft)

    def load_state(self, state: AdapterState) -> None:
        """Overwrite the adapter's matrices; raises AdapterError where names or shapes differ."""
        write_state(self.peft, state)

    def resized(self, spec: AdapterSpec, state: AdapterState) -> LoRATrainer:
        """This trainer with an adapter of another rank and alpha on the same modules; this one is spent."""
        fp16, gradient_scaling = self._fp16
        detach_lora(self.peft)
        return LoRATrainer(
            self.base,
            rank=spec.rank,
            alpha=spec.alpha,
            target_modules=self.spec.target_modules,
            dropout=self.spec.dropout,
            top_layers_only=None if self.spec.layers is None else len(self.spec.layers),
            learning_rate=self._learning_rate,
            batch_size=self._batch_size,
            gradient_accumulation_steps=self._accumulation,
            fp16=fp16,
            gradient_scaling=gradient_scaling,
            max_length=self.max_length,
            max_grad_norm=self._max_grad_norm,
            weight_decay=self._weight_decay,
            seed=self._seed,
            state=state,
            loss=self._loss,
            loss_on_context=self._loss_on_context,
            **asdict(self._options),
        )

    def save_adapter(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        description: str = "",
        license_name: str = "",
        author: str = "",
        dataset_digest: str = "",
        privacy: PrivacyStatement | None = None,
    ) -> Path:
        """Write the `.lora` folder, whole or not at all; raises StorageError and AdapterError.

        With `privacy` there is nothing in it about the data but this: no count, no digest and no score, all of which
        are functions of the data without noise.
        """
        target = Path(path)
        result = self._result
        facts = metadata.AdapterMetadata(
            name=name or target.name.removesuffix(".lora"),
            description=description or f"LoRA adapter of rank {self.spec.rank} on {self.base.name}",
            author=author,
            license=license_name,
            created=self._created or utc_now(),
            base_model=self.base.name,
            neuralforge_version=__version__,
            privacy=privacy,
        )
        if privacy is None:
            facts = replace(
                facts,
                training_samples=self._trained_on,
                accuracy=result.after.accuracy if result and result.after else None,
                dataset_digest=dataset_digest,
                evaluation=_evaluation_record(result),
            )
        write_adapter_folder(target, spec=self.spec, state=self.state(), metadata=facts)
        return target

    def _run_digest(
        self,
        plan: Plan,
        scheduler: Scheduler,
        train: Sequence[TokenizedExample],
        held_out: Sequence[TokenizedExample],
        penalties: tuple[Penalty, ...],
        trainable: torch.Tensor | None,
        source: GradientSource | None,
    ) -> str:
        facts = {
            "adapter": asdict(self.spec),
            "plan": {k: v for k, v in asdict(plan).items() if k not in ("checkpoint_steps", "track_gradients")},
            "rates": [scheduler(step) for step in range(plan.total_steps)],
            "engine": [self.engine.name, self.engine.precision, asdict(self._options)],
            "device": [str(self.flat.vector.device), torch.get_num_threads(), torch.__version__],
            "data": examples_digest(train, held_out),
        }
        if self._loss is not None:
            facts["loss"] = loss_name(self._loss)
        if penalties:
            facts["penalties"] = [penalty.digest() for penalty in penalties]
        if source is not None:
            facts["source"] = source.digest()
        if trainable is not None:
            facts["trainable"] = hashlib.blake2b(trainable.cpu().numpy().tobytes(), digest_size=16).hexdigest()
        return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def _padding(self, source: BatchSource) -> float:
        """Share of the computed positions that are padding, over the first epoch."""
        if self.engine.name == "fast":
            return 0.0
        batches = [batch for step in range(source.steps_per_epoch) for batch in source.batches(step)]
        return 1 - sum(b.tokens for b in batches) / max(1, sum(b.padded_tokens for b in batches))


def _result(counters: Counters, *, completed: bool, held_out: Sequence[TokenizedExample]) -> TrainResult:
    tokens = sum(e.targets - int(e.ended) for e in held_out)

    def evaluation(loss: float | None, accuracy: float | None) -> Evaluation | None:
        if loss is None or accuracy is None:
            return None
        return Evaluation(loss=loss, accuracy=accuracy, tokens=tokens, examples=len(held_out))

    return TrainResult(
        completed=completed,
        steps=counters.step,
        best_step=counters.best_step,
        tokens=counters.tokens,
        reason=counters.finished,
        before=evaluation(counters.first_loss, counters.first_accuracy),
        after=evaluation(counters.best_loss, counters.best_accuracy),
    )


def _evaluation_record(result: TrainResult | None) -> metadata.Evaluation | None:
    if result is None or result.before is None or result.after is None:
        return None
    return metadata.Evaluation(
        base=metadata.Scores(perplexity=result.before.perplexity, accuracy=result.before.accuracy),
        adapter=metadata.Scores(perplexity=result.after.perplexity, accuracy=result.after.accuracy),
        samples=result.after.examples,
    )


def utc_now() -> str:
    """The time in UTC; SOURCE_DATE_EPOCH (reproducible-builds.org) stands in for it where it is set."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    moment = datetime.fromtimestamp(int(fixed), UTC) if fixed.isdigit() else datetime.now(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
