"""What must hold between keys of a training run's configuration whose single values are fine."""

from collections.abc import Container, Iterator, Mapping

from neuralforge_common.config.document import Conflict, Document
from neuralforge_common.config.private_rules import private_conflicts, private_notices
from neuralforge_common.config.schema import TrainConfig

# A layer that sets the key on the left silences the keys on the right in the layers below it: `--from-git` on the
# command line replaces a file's `train_file`.
ALTERNATIVES: Mapping[str, tuple[str, ...]] = {
    "dataset.train_file": ("dataset.from_git", "dataset.sources", "dataset.since"),
    "dataset.from_git": ("dataset.train_file", "dataset.sources"),
    "dataset.sources": ("dataset.train_file", "dataset.from_git", "dataset.since"),
    "training.fp16": ("training.precision",),
    "training.precision": ("training.fp16",),
}


_OF_LOSSES: Mapping[str, tuple[str, ...]] = {
    "training.label_smoothing": ("label_smoothing",),
    "training.loss_weight": ("syntax_penalised", "style_consistent"),
}


def conflicts(config: TrainConfig) -> Iterator[Conflict]:
    """Yields every broken rule. Values alone decide, so that a configuration written out loads again."""
    data, training = config.dataset, config.training
    if data.train_file is not None and data.from_git is not None:
        yield ("dataset.from_git", "dataset.train_file"), "cannot be used together with dataset.train_file"
    if data.train_file is not None and data.sources:
        yield ("dataset.sources", "dataset.train_file"), "cannot be used together with dataset.train_file"
    if data.since is not None and data.from_git is None:
        yield ("dataset.since", "dataset.from_git"), "needs dataset.from_git: a file or a folder has no commits"
    if data.eval_file is not None and data.eval_file == data.train_file:
        yield (
            ("dataset.eval_file", "dataset.train_file"),
            "is the training file: examples that were trained on measure nothing",
        )
    if training.eval_steps is not None and data.eval_file is None and data.eval_fraction == 0:
        yield (
            ("training.eval_steps", "dataset.eval_fraction"),
            "there is nothing to evaluate on: dataset.eval_fraction is 0 and there is no dataset.eval_file",
        )
    if training.fp16 and training.precision not in ("auto", "fp16"):
        yield ("training.fp16", "training.precision"), f"contradicts training.precision: {training.precision}"
    keeping = config.optimization
    if keeping.continue_from is not None and config.federation.server is not None:
        yield (
            ("optimization.continue_from", "federation.server"),
            "cannot be used together with federation.server: a federation says which adapter is trained",
        )
    if keeping.der_alpha and keeping.replay_buffer_size == 0:
        yield (
            ("optimization.der_alpha", "optimization.replay_buffer_size"),
            "needs replayed examples, optimization.replay_buffer_size is 0",
        )
    if keeping.orthogonal_lambda > 0 and not keeping.progressive:
        yield (
            ("optimization.orthogonal_lambda", "optimization.progressive"),
            "there is no new block to hold at right angles to earlier ones, optimization.progressive is false",
        )
    if training.engine == "general" and training.int8 != "off":
        yield ("training.int8", "training.engine"), "needs the fast engine, training.engine is general"
    if training.loss_on_context and training.loss != "cross_entropy":
        yield (
            ("training.loss_on_context", "training.loss"),
            "is for cross_entropy: other losses look at completions",
        )
    if training.engine == "general" and not training.context_gradients:
        yield ("training.context_gradients", "training.engine"), "needs the fast engine, training.engine is general"
    if training.loss != "cross_entropy" and config.federation.server is not None:
        yield (
            ("training.loss", "federation.server"),
            "cannot be used together with federation.server: all clients of a federation make the same thing small",
        )
    yield from _task_conflicts(config)
    yield from _focus_conflicts(config)
    if config.privacy.enabled:
        yield from private_conflicts(config)


def _task_conflicts(config: TrainConfig) -> Iterator[Conflict]:
    if not config.tasks.shares:
        return
    key = f"tasks.{next(iter(config.tasks.shares))}"
    for other, stands, why in (
        ("federation.server", config.federation.server is not None, "all clients of a federation learn the same"),
        ("privacy.enabled", config.privacy.enabled, "a unit's examples would take part in several tasks, uncounted"),
        ("optimization.continue_from", config.optimization.continue_from is not None, "replay knows no tasks"),
        ("optimization.remember", config.optimization.remember, "replay knows no tasks"),
        ("training.focus_on", bool(config.training.focus_on), "both say how often an example is drawn"),
        ("dataset.features", bool(config.dataset.features), "both say how often an example is drawn"),
    ):
        if stands:
            yield (key, other), f"cannot be used together with {other}: {why}"


def _focus_conflicts(config: TrainConfig) -> Iterator[Conflict]:
    asked = {"training.focus_on": config.training.focus_on, "dataset.features": config.dataset.features}
    for key in (key for key, names in asked.items() if names):
        for other, stands, why in (
            ("federation.server", config.federation.server is not None, "all examples of a client weigh the same"),
            ("optimization.continue_from", config.optimization.continue_from is not None, "replay has its own shares"),
            ("optimization.remember", config.optimization.remember, "what a session keeps is weighed without it"),
        ):
            if stands:
                yield (key, other), f"cannot be used together with {other}: {why}"


def notices(config: TrainConfig, given: Container[str]) -> Iterator[str]:
    """Yields a line for each setting that has no effect or a surprising one; `given` holds the keys somebody set."""
    data, training = config.dataset, config.training
    # No fault: a file with `train_file` and `eval_file` may well be tried out with `--from-git`.
    if data.eval_file is not None and data.train_file is None:
        yield "dataset.eval_file is not used without dataset.train_file: a part of the source files is held out"
    # No fault: a file with the guide's 100 warm-up steps may well be tried out with `--max-steps 20`.
    warmup, most = training.warmup_steps, training.max_steps
    if most is not None and warmup is not None and warmup >= most:
        yield (f"training.warmup_steps ({warmup}) is not below training.max_steps ({most}): the warm-up will be cut")
    if "training.cache_prefix" in given and training.cache_prefix and config.lora.top_layers is None:
        yield "training.cache_prefix has no effect without lora.top_layers: there is no frozen prefix to cache"
    for key, losses in _OF_LOSSES.items():
        if key in given and training.loss not in losses:
            yield f"{key} has no effect with training.loss: {training.loss}"
    yield from private_notices(config, given)
    if config.model.trust_remote_code:
        yield f"model.trust_remote_code is on: {config.model.base} may run code of its own on this machine"


TRAIN = Document(
    root=TrainConfig,
    prefix="NF_",
    alternatives=ALTERNATIVES,
    conflicts=conflicts,
    notices=notices,
    # A file comes along with somebody else's repository; running their code is for a person to say.
    command_line_only={"model.trust_remote_code": "--trust-remote-code"},
)
