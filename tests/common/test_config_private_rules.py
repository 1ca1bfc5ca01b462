"""Of a private run: what makes no sense together is one fault, what means something else under privacy a notice."""

from __future__ import annotations

import pytest

from neuralforge_common.config.load import resolve_train_config
from neuralforge_common.errors import ConfigError

REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "prv and resumed": (
        {"privacy.accountant": "prv", "output.resume": "auto"},
        "privacy.accountant: prv counts a schedule that was fixed in advance, and a resumed run repeats steps: use rdp",
    ),
    "prv in a federation": (
        {"privacy.accountant": "prv", "federation.server": "nf://host:1"},
        "privacy.accountant: prv counts a schedule that was fixed in advance, and a federation's rounds are not: "
        "use rdp",
    ),
    "A frozen by one member": (
        {"privacy.freeze_a": "true", "federation.server": "nf://host:1"},
        "privacy.freeze_a: is for a federation to say: its plan names what is trained",
    ),
    "opacus and the fast engine": (
        {"privacy.engine": "opacus", "training.engine": "fast"},
        "privacy.engine: opacus cannot do training.engine: fast",
    ),
    "opacus and checkpointing": (
        {"privacy.engine": "opacus", "training.gradient_checkpointing": "true"},
        "privacy.engine: opacus cannot do training.gradient_checkpointing: true",
    ),
}

TOLD: dict[str, tuple[dict[str, str], str]] = {
    "a seed": ({"training.seed": "3"}, "training.seed has no say in a private run"),
    "a batch": ({"training.batch_size": "8"}, "privacy.sample_rate says who is drawn"),
    "early stopping": ({"training.early_stopping_patience": "2"}, "all steps are taken"),
    "the wrong clipping": ({"training.max_grad_norm": "2"}, "privacy.max_grad_norm clips each unit's gradient"),
    "a unit of one": ({"privacy.max_unit_examples": "2"}, "privacy.max_unit_examples has no effect"),
    "one repository": ({"privacy.unit": "repository", "dataset.from_git": "."}, "a single unit is hidden by the noise"),
    "losses on a board": ({"output.tensorboard": "logs"}, "not to be published with the adapter"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_together_is_refused_in_one_line(name: str) -> None:
    given, line = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        resolve_train_config(None, {"privacy.enabled": "true", **given}, {})
    assert caught.value.faults == (f"command line: {line}",)
    resolve_train_config(None, given, {})  # none of it is wrong without privacy


@pytest.mark.parametrize("name", TOLD)
def test_what_a_private_run_reads_otherwise_is_told(name: str) -> None:
    given, part = TOLD[name]
    (notice,) = resolve_train_config(None, {"privacy.enabled": "true", **given}, {}).notices
    assert part in notice
    assert resolve_train_config(None, given, {}).notices in ((), _half(given))


def test_privacy_that_is_asked_for_by_half_is_said_not_to_be() -> None:
    (notice,) = resolve_train_config(None, {"privacy.target_epsilon": "3"}, {}).notices
    assert notice == _half({"privacy.target_epsilon": "3"})[0]
    assert resolve_train_config(None, {"privacy.enabled": "true", "privacy.target_epsilon": "3"}, {}).notices == ()


def _half(given: dict[str, str]) -> tuple[str, ...]:
    named = next((key for key in given if key.startswith("privacy.")), None)
    return (f"{named} is set and privacy.enabled is not: this run is NOT private, --private makes it so",)
