"""LoRA's parameters as one flat vector.

Every A stands before every B, each in the model's own order. One vector means one norm to clip, one optimizer
update, one cast to the compute type, one array to send; and a block of layers that share an input finds its A
matrices already stacked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from neuralforge_common.errors import ModelError


@dataclass(frozen=True, slots=True)
class Place:
    """Where one matrix stands in the vector."""

    offset: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def of(self, vector: torch.Tensor) -> torch.Tensor:
        """The matrix as a view of `vector`."""
        return vector[self.offset : self.offset + self.size].view(self.shape)


class FlatParameters:
    """The trainable parameters of a PEFT model, moved into one fp32 vector that they become views of.

    `vector` is the parameter an optimizer sees and `vector.grad` its gradient; the model's own parameters and
    their `.grad` are views of both, so autograd and hand-written backward passes write to the same place.
    """

    def __init__(self, model: nn.Module) -> None:
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        strangers = [name for name in trainable if ".lora_A." not in name and ".lora_B." not in name]
        if strangers or not trainable:
            found = ", ".join(strangers[:3]) or "none"
            raise ModelError(f"only LoRA's A and B may be trainable, found: {found}")
        ordered = [n for n in trainable if ".lora_A." in n] + [n for n in trainable if ".lora_B." in n]
        places: dict[str, Place] = {}
        offset = 0
        for name in ordered:
            places[name] = Place(offset, tuple(trainable[name].shape))
            offset += places[name].size
        device = trainable[ordered[0]].device
        self.places: Mapping[str, Place] = MappingProxyType(places)
        self.vector = nn.Parameter(torch.empty(offset, dtype=torch.float32, device=device))
        self.vector.grad = torch.zeros_like(self.vector)
        with torch.no_grad():
            for name, place in places.items():
                parameter = trainable[name]
                view = place.of(self.vector.data)
                view.copy_(parameter)
                parameter.data = view
                parameter.grad = place.of(self.vector.grad)

    @property
    def gradient(self) -> torch.Tensor:
        """The flat gradient; written in place, never replaced."""
        if self.vector.grad is None:
            raise ModelError("the flat gradient was dropped: zero it in place, not with set_to_none=True")
        return self.vector.grad

    def mask(self, sides: str = "AB", *, components: int | None = None, skip: int = 0) -> torch.Tensor:
        """Of the vector's size: True at the matrices of these sides, at their first `components` of the rank alone.

        Of those the first `skip` are left out: what earlier tasks have learnt.
        """
        mask = torch.zeros(self.vector.shape, dtype=torch.bool, device=self.vector.device)
        for name, place in self.places.items():
            matrix = place.of(mask)
            if ".lora_A." in name and "A" in sides:
                matrix[skip:components] = True
            elif ".lora_B." in name and "B" in sides:
                matrix[:, skip:components] = True
        return mask

    def load(self, values: torch.Tensor) -> None:
        """Overwrite all parameters with `values`, a vector of the same size."""
        with torch.no_grad():
            self.vector.copy_(values)
