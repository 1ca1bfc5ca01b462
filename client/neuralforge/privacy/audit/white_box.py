"""The white-box audit of one private step: lower bounds on its ε, and what it has by its construction."""

from __future__ import annotations

from dataclasses import replace

from neuralforge.privacy.audit.attack import Attack, Halves, Noise
from neuralforge.privacy.audit.bounds import (
    ToEpsilon,
    any_mechanism,
    gaussian_mechanism,
    highest_bound,
    threshold_bound,
)
from neuralforge.privacy.audit.canaries import Crowd
from neuralforge.privacy.audit.parts import StepClaim, StepParts
from neuralforge.privacy.audit.report import Bound, Check, Findings, each_confidence
from neuralforge.privacy.audit.sampling import FAR, sampling_checks

ROUNDING = 1e-5


def audit_step(parts: StepParts, claim: StepClaim, *, crowd: Crowd, draws: int, confidence: float) -> Findings:
    """Take `draws` steps with everybody drawn, and as many with the real sampler, half of each with the canary.

    Gradients are computed once for each set of drawn units: the weights do not change between the steps.

    Raises:
        PrivacyError: the canary changes nothing at all.
    """
    attack = Attack(parts, claim, crowd)
    always, noise = attack.always(draws)
    each = each_confidence(confidence)
    anyhow, gaussian = any_mechanism(claim.delta), gaussian_mechanism(claim.delta)
    once = claim.epsilon(sample_rate=1)
    bounds = [
        _bound("a step that draws the canary", always, once, each, anyhow, anyhow),
        _bound("the same, if its noise is Gaussian", always, once, each, gaussian, gaussian),
    ]
    if claim.sample_rate < 1:
        at_rate = claim.epsilon(sample_rate=claim.sample_rate)
        place = attack.watch(draws)
        bounds.append(_bound("a sampled step", attack.sampled(draws, place), at_rate, each, anyhow, anyhow))
        # Three rates are bounded here instead of two: each may be missed by a third.
        miss = (1 - each) / 3
        seen = gaussian_mechanism(claim.delta, rate=place.rate(miss=miss))
        best = gaussian_mechanism(claim.delta, rate=replace(place, hits=place.trials).rate(miss=miss))
        bounds.append(_bound("a sampled step, if its noise is Gaussian", always, at_rate, 1 - 2 * miss, seen, best))
    return Findings(
        title="white-box audit of one step",
        audited={
            "engine": parts.engine.name,
            "unit": f"one of {len(crowd.canary)} texts, added or removed",
            "values trained": attack.trained,
            "σ": claim.noise_multiplier,
            "C": claim.clip,
            "q": claim.sample_rate,
            "draws": draws,
        },
        bounds=tuple(bounds),
        checks=(
            *_sensitivity_checks(attack.moves()),
            *_noise_checks(noise, attack.trained),
            *sampling_checks(parts.sampler, sample_rate=claim.sample_rate, steps=draws),
        ),
    )


def _bound(
    name: str, halves: Halves, claimed: float, confidence: float, to_epsilon: ToEpsilon, at_best: ToEpsilon
) -> Bound:
    lower = threshold_bound(*halves, confidence=confidence, to_epsilon=to_epsilon)
    power = highest_bound(halves[1].without.size, confidence=confidence, to_epsilon=at_best)
    return Bound(name=name, lower=lower, claimed=claimed, power=power)


def _sensitivity_checks(moves: dict[str, float]) -> list[Check]:
    return [
        Check(
            name=f"sensitivity to a unit {what}",
            passed=moved <= 1 + ROUNDING,
            found=f"{moved:.6f} C",
            wanted="at most C",
        )
        for what, moved in moves.items()
    ]


def _noise_checks(noise: Noise, values: int) -> list[Check]:
    # Of n squared normals the mean has a variance of 2 / n. More noise than claimed is nobody's loss.
    least = 1 - FAR * (2 / (noise.draws * values)) ** 0.5
    return [
        Check(
            name="variance of the noise",
            passed=noise.variance >= least,
            found=f"{noise.variance:.6f} (σC)²",
            wanted=f"at least {least:.6f} (σC)²",
        ),
        Check(
            name="noise that came again",
            passed=noise.repeated == 0,
            found=f"{noise.repeated:,} times",
            wanted="never",
        ),
    ]
