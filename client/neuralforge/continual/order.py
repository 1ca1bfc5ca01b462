"""Between the order in which a model trains its adapter and the one in which it is kept and sent."""

from __future__ import annotations

import numpy as np
import torch

from neuralforge.training.flat import FlatParameters, Place
from neuralforge_common.adapter import FloatArray
from neuralforge_common.layout import AdapterLayout


def layout_of(flat: FlatParameters) -> AdapterLayout:
    """The layout of what `flat` trains."""
    blank = np.zeros(1, np.float32)
    return AdapterLayout.of(
        {_saved_name(name): np.broadcast_to(blank, place.shape) for name, place in flat.places.items()}
    )


def to_layout(flat: FlatParameters, vector: torch.Tensor) -> FloatArray:
    """A vector in the model's order, as one in that of `layout_of(flat)`."""
    values = vector.detach().to("cpu", torch.float32)
    return layout_of(flat).flatten({_saved_name(name): place.of(values).numpy() for name, place in flat.places.items()})


def to_flat(flat: FlatParameters, layout: AdapterLayout, vector: FloatArray) -> torch.Tensor:
    """A vector in the order of `layout`, in the model's own and on its device."""
    state = layout.unflatten(vector)
    values = torch.empty(flat.vector.shape)
    for name, place in flat.places.items():
        place.of(values).copy_(torch.from_numpy(state[_saved_name(name)].copy()))
    return values.to(flat.vector.device)


def pairs(flat: FlatParameters) -> list[tuple[Place, Place]]:
    """Where A and B of every module stand, in the model's order."""
    return [
        (place, flat.places[name.replace(".lora_A.", ".lora_B.")])
        for name, place in flat.places.items()
        if ".lora_A." in name
    ]


def _saved_name(name: str) -> str:
    return name.replace(".default.", ".")
