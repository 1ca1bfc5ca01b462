"""The audit finds nothing against the step as it is, and flags every step that is broken on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny import VOCABULARY, tiny_batch
from tiny_engines import engine_of

from neuralforge.data.example import Example
from neuralforge.models.base import BaseModel
from neuralforge.models.load import load_base_model
from neuralforge.privacy.audit.canaries import Remembering, adversarial_crowd
from neuralforge.privacy.audit.controls import CONTROLS
from neuralforge.privacy.audit.one_run import audit_run
from neuralforge.privacy.audit.parts import StepClaim, StepParts
from neuralforge.privacy.audit.report import Bound, Check, Findings, Report
from neuralforge.privacy.audit.white_box import audit_step
from neuralforge.privacy.sampling import PoissonSampler, Population
from neuralforge.privacy.step import Draw, Mechanism
from neuralforge.training.trainer import LoRATrainer
from neuralforge_common.errors import PrivacyError
from neuralforge_common.noise import standard_normal
from neuralforge_common.privacy import PrivacyStatement

CLAIM = StepClaim(noise_multiplier=1.0, clip=0.5, sample_rate=0.05, delta=1e-5)
CONFIDENCE = 0.999
"""Of tests that must not fail by chance."""


def parts_of(kind: str, family: str, *, claim: StepClaim = CLAIM, sides: str = "AB") -> StepParts:
    engine, flat = engine_of(kind, family, rank=1)
    return StepParts(
        engine=engine,
        flat=flat,
        mechanism=Mechanism(noise_multiplier=claim.noise_multiplier, clip=claim.clip, divisor=3.0),
        sampler=lambda population: PoissonSampler([population], max_unit_examples=4),
        noise=standard_normal,
        sides=sides,
        trainable=None if sides == "AB" else flat.mask(sides),
    )


def audited(
    parts: StepParts,
    *,
    draws: int,
    claim: StepClaim = CLAIM,
    seq2seq: bool = False,
    confidence: float = CONFIDENCE,
) -> Findings:
    crowd = adversarial_crowd(vocabulary=VOCABULARY, max_length=48, seq2seq=seq2seq)
    return audit_step(parts, claim, crowd=crowd, draws=draws, confidence=confidence)


@pytest.fixture(scope="module")
def llama() -> StepParts:
    return parts_of("fast", "llama")


def test_4000_draws_of_the_step_as_it_is_stay_below_the_claim_and_come_near(llama: StepParts) -> None:
    findings = audited(llama, draws=4000)
    assert findings.violations == ()
    anyhow, gaussian, sampled, sampled_gaussian = findings.bounds
    # A bound of nothing would be consistent with everything: the exact ε of this step is 4.38.
    assert 0.2 < anyhow.lower < 4.38
    assert 1 < gaussian.lower < 4.38
    assert gaussian.claimed == pytest.approx(4.38, abs=0.5)
    assert sampled.claimed < gaussian.claimed
    assert all(bound.power > bound.claimed for bound in (gaussian, sampled, sampled_gaussian))


FLAGGED_BY = {
    "no noise": {"the same, if its noise is Gaussian", "variance of the noise", "noise that came again"},
    "half the noise": {"variance of the noise"},
    "the same noise again": {"the same, if its noise is Gaussian", "noise that came again"},
    "no clipping": {"the same, if its noise is Gaussian", "sensitivity to a unit with a loud gradient"},
    "clipped by example": {"the same, if its noise is Gaussian", "sensitivity to a unit with a loud gradient"},
    "token-mean loss": {"the same, if its noise is Gaussian", "sensitivity to a unit with a loud gradient"},
    "fixed shuffled batches": {
        "spread of inclusions in a step",
        "spread of inclusions of a unit in an epoch",
        "spread of inclusions of a unit at one place of all epochs",
    },
    "batches shuffled each epoch": {
        "spread of inclusions in a step",
        "spread of inclusions of a unit in an epoch",
    },
}


def test_every_control_is_in_this_file() -> None:
    assert FLAGGED_BY.keys() == CONTROLS.keys()


@pytest.mark.parametrize("name", CONTROLS)
def test_a_step_that_is_broken_on_purpose_is_flagged(llama: StepParts, name: str) -> None:
    findings = audited(CONTROLS[name](llama), draws=480, confidence=0.95)
    assert FLAGGED_BY[name] <= {violation.name for violation in findings.violations}
    assert all("VIOLATION" in str(violation) for violation in findings.violations)


@pytest.mark.slow
def test_4000_draws_show_fixed_batches_by_epsilon_alone(llama: StepParts) -> None:
    findings = audited(CONTROLS["fixed shuffled batches"](llama), draws=4000, confidence=0.95)
    *always, sampled = findings.bounds
    assert all(bound.passed for bound in always)
    assert sampled.lower > sampled.claimed


@pytest.mark.parametrize(
    ("kind", "family", "sides"),
    [("general", "t5", "AB"), ("general", "starcoder2", "AB"), ("fast", "llama", "B"), ("opacus", "qwen2", "AB")],
)
def test_other_engines_families_and_a_frozen_a_are_consistent(kind: str, family: str, sides: str) -> None:
    findings = audited(parts_of(kind, family, sides=sides), draws=200, seq2seq=family == "t5")
    assert findings.violations == ()
    assert findings.audited["engine"] == kind
    sensitivity = {check.name: float(check.found.split()[0]) for check in findings.checks[:4]}
    assert sensitivity["sensitivity to a unit with a loud gradient"] == pytest.approx(1, abs=1e-5)
    assert all(0 < moved <= 1 + 1e-5 for moved in sensitivity.values())


def test_with_everybody_in_every_step_there_is_no_sampling_to_audit(llama: StepParts) -> None:
    claim = replace(CLAIM, sample_rate=1.0)
    findings = audited(llama, draws=200, claim=claim)
    assert findings.violations == ()
    assert len(findings.bounds) == 2
    assert not any("spread" in check.name for check in findings.checks)


def test_what_is_remembered_is_what_the_engine_says() -> None:
    engine, flat = engine_of("fast", "llama", rank=1)
    remembering = Remembering(engine)
    batch = tiny_batch(count=3)
    call = {"owners": [0, 1, 1], "scales": [0.5, 0.1, 2.0], "sides": "AB"}
    expected, found = torch.zeros(2, flat.vector.numel()), torch.ones(2, flat.vector.numel())
    losses = engine.accumulate_each(batch, expected, seed=0, **call)  # type: ignore[arg-type]
    for seed in (1, 2):
        assert remembering.accumulate_each(batch, found, seed=seed, **call) == losses  # type: ignore[arg-type]
    assert torch.allclose(found, 1 + 2 * expected)
    assert float(expected.abs().max()) > 1e-3


class Nobody:
    """A drawer that draws nobody, whoever there is."""

    def __init__(self, population: Population) -> None:
        self.population = population

    def draw(self, step: int) -> list[Draw]:
        return []


def test_a_step_that_hears_nobody_is_not_called_consistent(llama: StepParts) -> None:
    with pytest.raises(PrivacyError, match="the audit is blind"):
        audited(replace(llama, sampler=Nobody), draws=200)


def test_a_report_says_consistent_or_violation_and_never_verified(llama: StepParts) -> None:
    honest = audited(llama, draws=200)
    broken = audited(CONTROLS["no noise"](llama), draws=200)
    for parts, verdict in (((honest,), "consistent"), ((honest, broken), "violation")):
        report = Report(parts=parts, delta=CLAIM.delta, confidence=CONFIDENCE)
        text = json.dumps(report.to_json(), ensure_ascii=False)
        assert report.to_json()["verdict"] == verdict
        assert report.exit_code == (verdict == "violation")
        assert "verified" not in text
        assert "≤ claimed" in text


def test_a_bound_says_when_it_could_not_have_shown_a_violation() -> None:
    weak = Bound(name="weak", lower=0.5, claimed=8.0, power=3.0)
    assert str(weak) == (
        "lower bound 0.50 ≤ claimed 8.00: consistent "
        "(it could have shown 3.00 at most, less than is claimed: it could not have shown a violation)"
    )
    assert "could not" not in str(replace(weak, power=9.0))
    assert str(replace(weak, lower=8.5)) == "VIOLATION: lower bound 8.50 > claimed 8.00"
    assert str(Check(name="c", passed=False, found="2 C", wanted="at most C")) == "VIOLATION: 2 C, wanted at most C"


@pytest.mark.slow
def test_one_run_that_is_not_private_is_flagged_and_one_of_noise_is_not(nf_tiny: Callable[[], BaseModel]) -> None:
    def learn_plainly(trainer: LoRATrainer, examples: list[Example]) -> PrivacyStatement:
        trainer.train(examples, epochs=12, batch_size=4, warmup_steps=0)
        return PrivacyStatement(epsilon=0.5, delta=1e-5, unit="sample", steps=1)

    def learn_nothing(trainer: LoRATrainer, examples: list[Example]) -> PrivacyStatement:
        trainer.flat.load(torch.randn(trainer.flat.vector.shape) * 0.02)
        return PrivacyStatement(epsilon=0.5, delta=1e-5, unit="sample", steps=1)

    for learn, flagged in ((learn_plainly, True), (learn_nothing, False)):
        trainer = LoRATrainer(nf_tiny(), rank=8, max_length=32, learning_rate=1e-2)
        findings = audit_run(trainer, [], canaries=32, learn=learn, confidence=0.95)
        (bound,) = findings.bounds
        assert bool(findings.violations) == flagged
        assert bound.lower <= bound.power
        assert findings.audited["guessed"] == 16
        if flagged:
            assert bound.power > 0.5
            assert findings.audited["guessed right"] == 16


@pytest.fixture
def nf_tiny() -> Callable[[], BaseModel]:
    return lambda: load_base_model("nf-tiny", dtype="float32", device="cpu")
