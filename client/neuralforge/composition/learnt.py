"""The weights of a composition, learnt on a few held-out samples (progressive composition).

The search is that of the gates of blocks (`continual/gates.py`): the parts stand side by side in one adapter, and the
gradient of the mean loss in their weights costs no more than a gradient in the factors. As in LoraHub (Huang et al.
2023, arXiv 2307.13269) nothing but one number for each adapter is learnt, so that a few samples are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from neuralforge.composition.compose import compose
from neuralforge.composition.exact import Cat
from neuralforge.composition.parents import Part
from neuralforge.continual.gates import gated, search_gates
from neuralforge.data.example import Example
from neuralforge.data.tokens import tokenize
from neuralforge.evaluation.metrics import score_all, summarize
from neuralforge.models.base import BaseModel
from neuralforge.models.lora import attach_lora, detach_lora, write_state
from neuralforge.training.choose import make_engine
from neuralforge.training.engine import EngineOptions
from neuralforge.training.flat import FlatParameters
from neuralforge_common.errors import DataError
from neuralforge_common.folder import verify_base


@dataclass(frozen=True, slots=True, kw_only=True)
class LearntWeights:
    """The weights, and losses in nats a code token on the samples: with them, with equal weights, of each part alone.

    `loss` is never above the others: the best of all that were met is taken.
    """

    weights: tuple[float, ...]
    loss: float
    equal: float
    alone: tuple[float, ...]
    samples: int


def learn_weights(
    parts: Sequence[Part], base: BaseModel, examples: Sequence[Example], *, max_length: int, steps: int = 10
) -> LearntWeights:
    """Weights of the parts whose weighted sum serves the examples best; the parts' own weights are not looked at.

    Raises:
        AdapterError: the parts do not fit together, or not the base.
        DataError: no example is left.
    """
    if not examples:
        raise DataError("no samples to learn the weights on", hint="a JSONL file of examples, 16 to 64 are enough")
    count = len(parts)
    start = [1 / count] * count
    whole = compose([replace(part, weight=weight) for part, weight in zip(parts, start, strict=True)], Cat())
    verify_base(whole.spec, base.fingerprint, base.name)
    ranks = tuple(part.spec.rank for part in parts)
    tokenized = tokenize(
        examples,
        base.tokenizer,
        max_length=max_length,
        end_token_id=base.end_token_id,
        is_encoder_decoder=base.is_encoder_decoder,
    )
    peft = attach_lora(base.model, whole.spec, seed=0)
    try:
        write_state(peft, whole.state)
        flat = FlatParameters(peft)
        engine = make_engine(peft, flat, EngineOptions(), base=base, max_length=max_length).engine
        found = search_gates(engine, flat, ranks, tokenized, steps=steps)

        def loss(factors: Sequence[float]) -> float:
            write_state(peft, gated(whole.state, ranks, tuple(factors)))
            return summarize(score_all(engine, tokenized)).loss

        # In units of the start: a factor of `count` on one part and 0 on the others is that part alone.
        single = [[float(count * (i == k)) for i in range(count)] for k in range(count)]
        tried = [[1.0] * count, *single, list(found.weights)]
        losses = [loss(factors) for factors in tried]
    finally:
        detach_lora(peft)
    best = min(range(len(tried)), key=losses.__getitem__)
    return LearntWeights(
        weights=tuple(factor / count for factor in tried[best]),
        loss=losses[best],
        equal=losses[0],
        alone=tuple(losses[1 : 1 + count]),
        samples=len(tokenized),
    )
