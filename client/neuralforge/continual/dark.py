"""DER++: what an adapter answered when an example was stored, learnt again beside the example itself.

Buzzega et al. 2020, "Dark Experience for General Continual Learning: a Strong, Simple Baseline", eq. 6:
α · ‖h(x) − z‖² + β · cross-entropy, over replayed examples. The k largest logits stand for all of them: what is kept
of a token is 6k bytes and not the vocabulary's size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuralforge.continual.item import Answer
from neuralforge.data.batch import evaluation_batches
from neuralforge.data.example import Example
from neuralforge.data.tokens import TokenizedExample
from neuralforge_common.errors import DataError

if TYPE_CHECKING:
    from neuralforge.training.trainer import LoRATrainer

K = 16
BATCH_SIZE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Dark:
    """The two weights of DER++; `alpha` 0 and `beta` 1 are plain replay, to the last bit."""

    alpha: float = 0.5
    beta: float = 1.0


def answers(trainer: LoRATrainer, examples: Sequence[Example], *, k: int = K) -> list[Answer | None]:
    """The adapter's k largest logits at each target of the examples, as it stands; None where there is no target."""
    try:
        tokenized = trainer.tokenize(examples) if examples else []
    except DataError:  # none of them has a target
        tokenized = []
    k = min(k, int(trainer.base.model.get_output_embeddings().weight.shape[0]))
    found: list[Answer | None] = [None] * len(examples)
    by_index = {example.index: example for example in tokenized}
    for batch in evaluation_batches(tokenized, batch_size=BATCH_SIZE):
        for index, logits in trainer.engine.top_logits(batch, k=k).items():
            found[index] = Answer(logits=logits, of=asked(by_index[index], trainer.base.fingerprint))
    return found


def asked(example: TokenizedExample, base_fingerprint: str) -> str:
    """What an answer is an answer to: these tokens on this base. With another length or base it means nothing."""
    text = repr((base_fingerprint, example.tokens, example.context, example.start))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
