"""The base model of a machine, loaded once and kept, with the trainer that is on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from neuralforge.models.base import BaseModel
from neuralforge.models.lora import detach_lora
from neuralforge.models.targets import resolve_targets
from neuralforge.training.engine import EngineOptions
from neuralforge.training.trainer import LoRATrainer
from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.errors import FederationError, ModelError, TrainingError
from neuralforge_common.layout import AdapterLayout


class ResidentModel:
    """One base in memory for as many participants as share it: a simulation of a hundred clients holds one.

    `load` loads a base by its name; `name` is the base that this machine is configured for, None where the plan says
    it. A base carries one adapter at a time, so the last trainer alone is kept: rounds ask for the same one again, and
    another one is made in about a second. Not for two threads at once.
    """

    def __init__(
        self,
        load: Callable[[str], BaseModel],
        *,
        name: str | None = None,
        options: EngineOptions | None = None,
        fp16: bool = False,
    ) -> None:
        self.name = name
        self._load = load
        self._options = options or EngineOptions()
        self._fp16 = fp16
        self._base: tuple[str, BaseModel] | None = None
        self._trainer: tuple[AdapterSpec, int, LoRATrainer, AdapterLayout] | None = None
        self._targets: dict[str | tuple[str, ...], tuple[str, ...]] = {}

    def base(self, asked: str) -> BaseModel:
        """The base of this machine, or the one that is asked for where none is configured; raises ModelError."""
        name = self.name or asked
        if self._base is None or self._base[0] != name:
            self._drop()
            self._base = None  # never two at once
            self._targets.clear()
            self._base = (name, self._load(name))
        return self._base[1]

    def spec(
        self, base: str, *, rank: int, alpha: float | None, target_modules: str | Sequence[str], dropout: float
    ) -> AdapterSpec:
        """What an adapter is called on this base: its own names of the target modules, its own fingerprint.

        Raises:
            FederationError: the base has no such modules.
            ModelError: the base cannot be loaded.
        """
        model = self.base(base)
        asked = target_modules if isinstance(target_modules, str) else tuple(target_modules)
        if asked not in self._targets:
            self._drop()  # PEFT's wrappers would hide the names
            try:
                self._targets[asked] = resolve_targets(model.model, asked).names
            except ModelError as fault:
                raise FederationError(fault.message, hint=fault.hint) from fault
        return AdapterSpec(
            base=base,
            base_revision=model.revision,
            base_fingerprint=model.fingerprint,
            rank=rank,
            alpha=2.0 * rank if alpha is None else alpha,
            dropout=dropout,
            target_modules=self._targets[asked],
            task="seq2seq" if model.is_encoder_decoder else "causal",
        )

    def trainer(self, spec: AdapterSpec, *, max_length: int) -> tuple[LoRATrainer, AdapterLayout]:
        """A trainer of such an adapter, and the order of its flat vector; whatever state it has, load another.

        Raises:
            FederationError: the base has no such modules.
            ModelError: the base cannot be loaded.
            TrainingError: an engine was asked for that cannot train it.
        """
        base = self.base(spec.base)
        wanted = replace(spec, base="", base_revision=None, base_fingerprint="")
        if self._trainer is not None and self._trainer[:2] == (wanted, max_length):
            return self._trainer[2:]
        self._drop()
        options = self._options
        try:
            trainer = LoRATrainer(
                base,
                rank=spec.rank,
                alpha=spec.alpha,
                target_modules=spec.target_modules,
                dropout=spec.dropout,
                top_layers_only=None if spec.layers is None else len(spec.layers),
                max_length=max_length,
                fp16=self._fp16,
                **asdict(options),
            )
        except ModelError as fault:
            raise FederationError(fault.message, hint=fault.hint) from fault
        except TrainingError:
            self._base = None  # the adapter that no engine can train is still on it
            raise
        self._trainer = (wanted, max_length, trainer, AdapterLayout.of(trainer.state()))
        return self._trainer[2:]

    def _drop(self) -> None:
        if self._trainer is not None:
            detach_lora(self._trainer[2].peft)
            self._trainer = None
