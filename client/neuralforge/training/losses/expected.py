"""The expectation of what cannot be differentiated: a judgement of text, under the model's own probabilities.

Whether code parses is a step function of which tokens were written: no gradient goes through it. What is smooth is how
probable each text is. At a few positions of the completion the model's likeliest tokens are tried in the place of the
right one, everything else left as a person wrote it, and the judgement of each text is weighed with its probability:

    E = mean over positions t of  Σ_k p_t(k) · judgement(… , k, …)  /  Σ_k p_t(k)

Its gradient is exact for these positions and tokens: it moves probability from tokens that are judged ill to those that
are judged well. It is the policy gradient (Williams 1992, REINFORCE; here with the sum over actions in the place of a
draw, as in Asadi et al. 2017, "Mean actor-critic") of a policy that writes a single token; errors that come about over
several tokens are not seen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from neuralforge.training.losses.context import LossContext

POSITIONS = 4
"""Tokens of a completion that are tried otherwise, drawn anew in every step."""

ALTERNATIVES = 4
"""Likeliest tokens at each of them."""


def expected_judgement(
    predictions: torch.Tensor,
    context: LossContext,
    judge: Callable[[str], float],
    *,
    positions: int = POSITIONS,
    alternatives: int = ALTERNATIVES,
) -> torch.Tensor:
    """The expectation of `judge`, a function of the completion's text, from logits (N, V); a scalar."""
    code = context.code_targets
    if not code:
        return predictions.sum() * 0.0
    generator = torch.Generator().manual_seed(context.seed)
    drawn = torch.randperm(len(code), generator=generator)[:positions].sort().values.to(predictions.device)
    probabilities = torch.softmax(predictions[drawn], dim=-1)
    likely, tokens = probabilities.topk(min(alternatives, probabilities.shape[1]), dim=-1)
    judged = torch.tensor(
        [
            [judge(context.decode([*code[:at], token, *code[at + 1 :]])) for token in row]
            for at, row in zip(drawn.tolist(), tokens.tolist(), strict=True)
        ],
        device=predictions.device,
        dtype=predictions.dtype,
    )
    return ((likely * judged).sum(1) / likely.sum(1)).mean()
