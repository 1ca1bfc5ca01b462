"""What a model once answered, kept beside an example: its largest logits, and how much they weigh when learnt again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TopLogits:
    """The k largest logits at each target token of an example: token ids (n, k) and their values (n, k)."""

    ids: NDArray[np.int32]
    values: NDArray[np.float16]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SoftTargets:
    """How one example is learnt: `hard` · cross-entropy + `soft` · mean over k of (logit − stored logit)², a token.

    This is DER++ (Buzzega et al. 2020, "Dark Experience for General Continual Learning", eq. 6), where `soft` is α
    and `hard` is β, with the k largest logits in the place of all of them. `logits` None: nothing was stored.
    """

    logits: TopLogits | None
    soft: float
    hard: float
