"""What cannot be private, what makes no sense together with it, and which settings mean something else under it."""

from collections.abc import Container, Iterator

from neuralforge_common.config.document import Conflict
from neuralforge_common.config.schema import TrainConfig

_WITHOUT_EFFECT = {
    "training.seed": "noise, sampling and dropout are the system's; it still makes the untrained A and the split",
    "training.batch_size": "as many examples go through the model at once; privacy.sample_rate says who is drawn",
    "training.gradient_accumulation_steps": "a step is one draw, however many go through the model at once",
    "training.early_stopping_patience": "when to stop would tell of the held-out examples: all steps are taken",
    "training.max_grad_norm": "privacy.max_grad_norm clips each unit's gradient",
}
"""Keys that a private run reads otherwise, or not at all, and why."""


def private_conflicts(config: TrainConfig) -> Iterator[Conflict]:
    """Yields every broken rule of a run with privacy."""
    privacy, keeping = config.privacy, config.optimization
    if privacy.accountant == "prv" and config.output.resume == "auto":
        yield (
            ("privacy.accountant", "output.resume"),
            "prv counts a schedule that was fixed in advance, and a resumed run repeats steps: use rdp",
        )
    if privacy.accountant == "prv" and config.federation.server is not None:
        yield (
            ("privacy.accountant", "federation.server"),
            "prv counts a schedule that was fixed in advance, and a federation's rounds are not: use rdp",
        )
    if privacy.freeze_a and config.federation.server is not None:
        yield ("privacy.freeze_a", "federation.server"), "is for a federation to say: its plan names what is trained"
    if privacy.engine == "opacus":
        for key, value, without in (
            ("engine", config.training.engine, ("auto", "general")),
            ("int8", config.training.int8, ("off",)),
            ("gradient_checkpointing", config.training.gradient_checkpointing, (False,)),
        ):
            if value not in without:
                yield ("privacy.engine", f"training.{key}"), f"opacus cannot do training.{key}: {_shown(value)}"
    if config.federation.server is not None:
        return
    for key, names in (("training.focus_on", config.training.focus_on), ("dataset.features", config.dataset.features)):
        if names:
            yield (
                (key, "privacy.enabled"),
                "cannot be private: an example that is drawn more often is hidden by less noise than the budget counts",
            )
    if keeping.progressive:
        yield (
            ("optimization.progressive", "privacy.enabled"),
            "cannot be private: the weights of the blocks are learnt from earlier and new code without noise",
        )
    if keeping.replay_balance not in (None, "uniform"):
        yield (
            ("optimization.replay_balance", "privacy.enabled"),
            "cannot be private: which examples are kept would depend on all others; uniform keeps each by its own coin",
        )
    if keeping.der_alpha:
        yield (
            ("optimization.der_alpha", "privacy.enabled"),
            "has no part in a private run: each example is learnt by itself, without the answers of that time",
        )


def private_notices(config: TrainConfig, given: Container[str]) -> Iterator[str]:
    """Yields a line for each setting that a private run reads otherwise, and for privacy that is asked for by half."""
    privacy = config.privacy
    if not privacy.enabled:
        named = next((f"privacy.{name}" for name in type(privacy).model_fields if f"privacy.{name}" in given), None)
        if named is not None and named != "privacy.enabled":
            yield f"{named} is set and privacy.enabled is not: this run is NOT private, --private makes it so"
        return
    for key, why in _WITHOUT_EFFECT.items():
        if key in given:
            yield f"{key} has no say in a private run: {why}"
    if privacy.unit == "repository" and config.dataset.from_git is not None:
        yield (
            "privacy.unit is repository and dataset.from_git is one: a single unit is hidden by the noise, "
            "and hardly anything is learnt"
        )
    if "privacy.max_unit_examples" in given and privacy.unit == "sample":
        yield "privacy.max_unit_examples has no effect: with privacy.unit: sample a unit is one example"
    if config.output.tensorboard is not None:
        yield "output.tensorboard will hold losses without noise: for your eyes, not to be published with the adapter"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
