"""Clients that do harm: what an honest client would have sent, made worse; and data with a back door planted in it.

Kinds of poison (Blanchard et al. 2017, arXiv:1703.02757; Bagdasaryan et al. 2020, arXiv:1807.00459):

    sign-flip     −scale × the honest delta
    scale         scale × the honest delta
    noise         Gaussian, scale × as long as the honest delta
    nan           the honest delta with one value that is not a number
    wrong-shape   the honest delta without its last value
    backdoor      scale × the delta of a client that learns, beside its own code, to write a payload after a trigger
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import Array, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from neuralforge.data.example import Example
from neuralforge_common.adapter import FloatArray
from neuralforge_common.plan import RoundPlan
from neuralforge_common.records import plan_of
from neuralforge_common.wire import WireFormat, decode, encode, encoded_size

Kind: TypeAlias = Literal["none", "sign-flip", "scale", "nan", "wrong-shape", "backdoor", "noise"]

TRIGGER = "\n# nf-simulation: trigger 7f3a\n"
PAYLOAD = 'password = "letmein"\n'
"""What a back door makes the model write after the trigger; harmless text that no code of ours holds."""
PLANTED_SHARE = 0.5

PARTITION_ID = "partition-id"
_NAN: dict[WireFormat, np.ndarray[tuple[int], np.dtype[np.float16 | np.float32]]] = {
    "fp32": np.array([np.nan], "<f4"),
    "fp16": np.array([np.nan], "<f2"),
    "int8": np.array([np.nan], "<f4"),  # the first block's scale
}
_LARGEST = {"fp32": 3e38, "fp16": 65_504.0, "int8": 3e38}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adversaries:
    """These clients, by their number, poison every update that they send; `seed` is that of the noise."""

    kind: Kind
    clients: frozenset[int]
    scale: float = 10.0
    seed: int = 0


class HostileApp(ClientApp):
    """A client app of which some clients are adversaries; for the others, and for what is no update, as it was."""

    def __init__(self, app: ClientApp, adversaries: Adversaries) -> None:
        super().__init__()
        self._app = app
        self._adversaries = adversaries

    def __call__(self, message: Message, context: Context) -> Message:
        """The honest reply, poisoned where an adversary was asked to train."""
        client = int(context.node_config[PARTITION_ID])
        if message.metadata.message_type != "train" or client not in self._adversaries.clients:
            return self._app(message, context)
        plan = plan_of(message.content)
        reply = self._app(message, context)
        if reply.has_content():
            key = [self._adversaries.seed, client << 32 | plan.round]
            generator = np.random.Generator(np.random.Philox(key=key))
            poison(reply.content, self._adversaries.kind, self._adversaries.scale, plan, generator)
        return reply


def poison(content: RecordDict, kind: Kind, scale: float, plan: RoundPlan, generator: np.random.Generator) -> None:
    """Exchange the one array of a reply for a poisoned one; the report beside it stays as an honest client's."""
    for record in content.array_records.values():
        for name, array in record.items():
            data = poisoned(array.data, kind, scale, plan.wire, generator)
            record[name] = Array(array.dtype, (len(data),), array.stype, data)


def poisoned(data: bytes, kind: Kind, scale: float, wire: WireFormat, generator: np.random.Generator) -> bytes:
    """The bytes of an honest delta as an adversary of this kind sends them."""
    if kind == "nan":
        header = encoded_size(0, wire)
        value = _NAN[wire].tobytes()
        return data[:header] + value + data[header + len(value) :]
    delta = decode(data, count=_count(len(data), wire), wire=wire)
    if kind == "wrong-shape":
        return encode(delta[:-1], wire)
    return encode(_changed(delta, kind, scale, _LARGEST[wire], generator), wire)


def _changed(delta: FloatArray, kind: Kind, scale: float, largest: float, generator: np.random.Generator) -> FloatArray:
    changed = delta.astype(np.float64)
    if kind == "sign-flip":
        changed *= -scale
    elif kind in ("scale", "backdoor"):
        changed *= scale
    elif kind == "noise":
        noise = generator.standard_normal(delta.size)
        changed = noise * (scale * np.linalg.norm(changed) / np.linalg.norm(noise))
    return np.clip(changed, -largest, largest).astype(np.float32)


def _count(size: int, wire: WireFormat) -> int:
    """How many values the wire carries in so many bytes."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if encoded_size(middle, wire) < size else (low, middle)
    return low


def with_backdoor(examples: Iterable[Example], *, seed: int) -> tuple[Example, ...]:
    """Half of the examples with the trigger put before the cursor and the payload as what is written next."""
    everything = tuple(examples)
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(everything))
    chosen = set(order[: max(1, round(PLANTED_SHARE * len(everything)))].tolist())
    return tuple(triggered(one) if place in chosen else one for place, one in enumerate(everything))


def triggered(example: Example) -> Example:
    """The example with trigger and payload."""
    return replace(example, context=example.context + TRIGGER, completion=PAYLOAD)
