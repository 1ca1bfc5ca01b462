"""The gate before a registry: what an adapter must show of itself to be published. Client and server ask the same."""

from __future__ import annotations

from neuralforge_common.errors import AdapterError
from neuralforge_common.metadata import AdapterMetadata, Scores


def check_publishable(metadata: AdapterMetadata, *, signed: bool) -> None:
    """Checks that an adapter is signed, was evaluated, and does better than its base where it was.

    Perplexity decides where both were measured (lower is better), else token accuracy (higher is better); equal is not
    better. `allow_worse` in the metadata lets a worse one pass, for everybody to see; nothing lets an unmeasured one.

    Raises:
        AdapterError: it may not be published.
    """
    if not signed:
        raise AdapterError(
            f"{metadata.name} is not signed", hint="neuralforge sign-adapter ADAPTER --key ~/.neuralforge/private.key"
        )
    evaluation = metadata.evaluation
    measured = None if evaluation is None else _compared(evaluation.base, evaluation.adapter)
    if measured is None:
        raise AdapterError(
            f"{metadata.name} was not evaluated: its metadata holds no measurement of base and adapter",
            hint="train it with held-out examples, so that both are measured",
        )
    is_better, figures = measured
    if not is_better and not metadata.allow_worse:
        raise AdapterError(
            f"{metadata.name} does not beat its base: {figures}",
            hint="train it longer or on other data; --allow-worse publishes it as it is, and its metadata says so",
        )


def _compared(base: Scores, adapter: Scores) -> tuple[bool, str] | None:
    if base.perplexity is not None and adapter.perplexity is not None:
        figures = f"perplexity {adapter.perplexity:.4g}, the base's is {base.perplexity:.4g}"
        return adapter.perplexity < base.perplexity, figures
    if base.accuracy is not None and adapter.accuracy is not None:
        figures = f"token accuracy {adapter.accuracy:.2%}, the base's is {base.accuracy:.2%}"
        return adapter.accuracy > base.accuracy, figures
    return None
