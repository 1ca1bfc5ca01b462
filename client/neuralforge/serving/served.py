"""A base and the adapters that it is served with: loaded once, checked, swapped without loading the base again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peft import PeftModel

from neuralforge.models.base import BaseModel
from neuralforge.models.load import load_base_model
from neuralforge.models.lora import attach_lora, detach_lora, write_state
from neuralforge.serving.names import CURRENT, ModelName
from neuralforge.serving.prompt import suffix_mark
from neuralforge.serving.request import CompletionRequest, Finish, Piece, SuffixUse
from neuralforge.serving.writer import Writer
from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.errors import AdapterError, ModelError
from neuralforge_common.folder import AdapterFolder, read_adapter_folder, verify_base
from neuralforge_common.strict_json import shortened

MOST_ADAPTERS = 16
"""Adapters that are kept at a time; the one that was loaded first makes room."""

DEFAULT_CONTEXT = 2048


class ServedModel:
    """One base in memory and the states of its adapters; used by one thread, `names` by any.

    Raises:
        ModelError: the base is an encoder-decoder.
    """

    def __init__(self, base: BaseModel, *, max_context: int = DEFAULT_CONTEXT, reuse_prefix: bool = True) -> None:
        if base.is_encoder_decoder:
            raise ModelError(
                f"{base.name} is an encoder-decoder: the editor's server continues text, which takes a causal base",
                hint="neuralforge test-adapter shows what its adapter writes",
            )
        self.base = base
        limit = int(getattr(base.model.config, "max_position_embeddings", 0) or max_context)
        self.max_context = min(max_context, limit)
        self.writer = Writer(base, max_context=self.max_context, reuse_prefix=reuse_prefix)
        self._adapters: dict[str, AdapterFolder] = {}
        self._current = ""
        self._peft: PeftModel | None = None
        self._attached: AdapterSpec | None = None
        self._active: AdapterFolder | None = None

    @property
    def notices(self) -> tuple[str, ...]:
        """Lines for the person who serves it."""
        return (*self.base.notices, *(line for folder in self._adapters.values() for line in folder.notices))

    @property
    def current(self) -> str:
        """The name of the adapter that was loaded last; the base's where none was."""
        return self._current or self.base.name

    @property
    def names(self) -> tuple[ModelName, ...]:
        """Every name that `model` may have."""
        adapters = self._adapters  # replaced, never changed: safe from any thread
        return (
            ModelName(CURRENT, self._current or None),
            *(ModelName(name, name) for name in adapters if name != CURRENT),
            *(() if self.base.name in adapters else (ModelName(self.base.name, None),)),
        )

    def suffix_use(self, suffix: str) -> SuffixUse:
        """What becomes of a suffix: it is shown to the model, ends a completion that repeats it, or neither."""
        if not suffix:
            return "none"
        return "fim" if self.writer.has_fim else "cut" if suffix_mark(suffix) else "none"

    def load(self, path: Path) -> str:
        """Check an adapter, put it on the base, make it the current one; returns its name.

        Raises:
            AdapterError: it is not sound, or made for another base; everything is then as it was.
        """
        folder = read_adapter_folder(path)
        verify_base(folder.spec, self.base.fingerprint, self.base.name)
        name = folder.metadata.name or path.name.removesuffix(".lora")
        before = self._active
        try:
            self._put_on(folder)
        except AdapterError:
            self._active = folder  # whatever is on the base now, it is not what was there before
            self._put_on(before)
            raise
        others = {key: value for key, value in self._adapters.items() if key != name}
        while len(others) >= MOST_ADAPTERS:
            others.pop(next(iter(others)))
        self._adapters = {**others, name: folder}
        self._current = name
        return name

    def write(self, request: CompletionRequest, cancelled: Callable[[], bool]) -> Iterator[Piece | Finish]:
        """Write a completion with the adapter that the request names.

        Raises:
            ModelError: there is none of that name.
        """
        self._put_on(self._chosen(request.model))
        yield from self.writer.write(request, cancelled)

    def _chosen(self, name: str) -> AdapterFolder | None:
        if name in ("", CURRENT):
            return self._adapters.get(self._current)
        if name in self._adapters:
            return self._adapters[name]
        if name == self.base.name:
            return None
        raise ModelError(
            f"the model {shortened(name)} is not loaded", hint=f"loaded: {', '.join(n.id for n in self.names)}"
        )

    def _put_on(self, folder: AdapterFolder | None) -> None:
        if folder is self._active:
            return
        self._active = None
        self.writer.forget()
        if folder is None:
            self._switch(on=False)
            return
        if self._peft is None or not _same_shape(self._attached, folder.spec):
            self._attach(folder)
        if self._peft is not None:
            self._switch(on=True)
            write_state(self._peft, folder.state)
        self._active = folder

    def _attach(self, folder: AdapterFolder) -> None:
        if self._peft is not None:
            detach_lora(self._peft)
            self._peft = self._attached = None
        try:
            self._peft = attach_lora(self.base.model, folder.spec, seed=0)
        except ValueError as error:  # PEFT: no module of the base has such a name
            raise AdapterError(f"{folder.path}: it does not fit {self.base.name} ({str(error)[:200]})") from error
        self._peft.eval()
        self._peft.requires_grad_(False)
        self._attached = folder.spec

    def _switch(self, *, on: bool) -> None:
        if self._peft is not None:
            inside: Any = self._peft.base_model
            (inside.enable_adapter_layers if on else inside.disable_adapter_layers)()


def _same_shape(one: AdapterSpec | None, other: AdapterSpec) -> bool:
    return one is not None and (one.rank, one.alpha, one.target_modules, one.layers) == (
        other.rank,
        other.alpha,
        other.target_modules,
        other.layers,
    )


def open_served(
    adapters: list[Path],
    *,
    base: str | None = None,
    device: str = "auto",
    max_context: int = DEFAULT_CONTEXT,
    trust_remote_code: bool = False,
) -> ServedModel:
    """Load the base that the first adapter names (or `base`) and put the adapters on it, the first one as current.

    Raises AdapterError and ModelError.
    """
    folders = [read_adapter_folder(path) for path in adapters]  # before a base is loaded for nothing
    if base is None and not folders:
        raise ModelError("there is neither an adapter nor a base to serve", hint="--adapter ./my-adapter.lora")
    spec = folders[0].spec if folders else None
    loaded = load_base_model(
        base or (spec.base if spec else ""),
        revision=None if base or spec is None else spec.base_revision,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    served = ServedModel(loaded, max_context=max_context)
    for path in reversed(adapters):
        served.load(path)
    return served
