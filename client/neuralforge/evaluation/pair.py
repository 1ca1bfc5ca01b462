"""Two adapters on one base that is loaded once."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

from neuralforge.evaluation.opened import OpenedAdapter
from neuralforge.models.base import BaseModel
from neuralforge.models.load import load_base_model
from neuralforge_common.folder import AdapterFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Both adapters, opened; they share the base's weights and nothing else."""

    a: OpenedAdapter
    b: OpenedAdapter
    notices: tuple[str, ...]

    @property
    def same_weights(self) -> bool:
        """Whether both adapters are one and the same, number by number."""
        mine, other = self.a.folder.state, self.b.folder.state
        return set(mine) == set(other) and all((mine[name] == other[name]).all() for name in mine)

    @property
    def same_shapes(self) -> bool:
        """Whether both do the same work: the same matrices of the same sizes."""
        mine, other = self.a.folder.state, self.b.folder.state
        return {n: m.shape for n, m in mine.items()} == {n: m.shape for n, m in other.items()}


def open_pair(
    folders: tuple[AdapterFolder, AdapterFolder],
    *,
    base: str | None = None,
    device: str = "auto",
    max_length: int = 256,
    trust_remote_code: bool = False,
) -> Pair:
    """Load the base of both, check that it is the very base, attach each adapter to modules of its own.

    Raises AdapterError and ModelError.
    """
    first, second = folders
    loaded = load_base_model(
        base or first.spec.base,
        revision=None if base else first.spec.base_revision,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    twin = _twin(loaded)
    opened = (
        OpenedAdapter(first, loaded, max_length=max_length),
        OpenedAdapter(second, twin, max_length=max_length),
    )
    notices = dict.fromkeys((*first.notices, *second.notices, *loaded.notices))
    return Pair(a=opened[0], b=opened[1], notices=tuple(notices))


def _twin(base: BaseModel) -> BaseModel:
    """The same base with modules of its own around the very same weights."""
    model: Any = base.model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return replace(base, model=copy.deepcopy(model, shared))
