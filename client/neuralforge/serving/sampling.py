"""Which token comes next, and how likely it was."""

from __future__ import annotations

import torch


def choose(logits: torch.Tensor, *, temperature: float, top_p: float, generator: torch.Generator | None) -> int:
    """The next token, given logits of shape (vocabulary,); `temperature` 0 takes the likeliest.

    With `top_p` below 1 only the likeliest tokens that together reach it are drawn from (Holtzman et al. 2020, nucleus
    sampling).
    """
    if temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        # The token that crosses the bound is kept, so there always is one.
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
        return int(order[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))


def most_likely(logits: torch.Tensor, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The natural logarithm of a token's probability, and the `count` likeliest tokens with theirs.

    They are the model's own: temperature and `top_p` do not change them.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    values, tokens = logprobs.topk(count)
    return float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True))
