"""A site's policy, held against what a coordinator asks for, before anything is loaded or learnt."""

from __future__ import annotations

from datetime import datetime

from neuralforge_common.config.policy import RequireSection, SitePolicy
from neuralforge_common.errors import FederationError
from neuralforge_common.plan import RoundPlan
from neuralforge_common.privacy import LEVELS, PrivacyTerms
from neuralforge_common.strict_json import shortened

_UNITS = ("sample", "file", "repository")
_HINT = "agree with the coordinator, or change the site policy of this machine"


def check(plan: RoundPlan, policy: SitePolicy, now: datetime, *, steps: int | None = None) -> None:
    """Checks a round against the policy; `now` is local time, `steps` what the plan's epochs come to on this data.

    Raises:
        FederationError: with what is asked and what is allowed.
    """
    allow = policy.allow
    check_adapter(plan, policy)
    for name, asked, most in (
        ("steps", plan.steps if plan.steps is not None else steps, allow.max_steps),
        ("epochs", plan.epochs, allow.max_epochs),
        ("rounds", plan.rounds, allow.max_rounds),
    ):
        if asked is not None and most is not None and asked > most:
            raise _refusal(f"{asked:,} {name}", f"at most {most:,}")
    if allow.window is not None:
        begin, end = allow.window
        time = now.time()
        inside = begin <= time < end if begin < end else time >= begin or time < end
        if not inside:
            raise _refusal(f"a round at {time:%H:%M}", f"{allow.hours} local time")
    if policy.require.secure_aggregation and plan.trust != "peers":
        raise _refusal("a round whose coordinator sees this client's update by itself", "secure aggregation alone")
    check_privacy(plan.privacy, policy.require)


def check_privacy(asked: PrivacyTerms | None, require: RequireSection, *, who: str = "the site policy") -> None:
    """Holds a round's privacy against what is required; the ledger does so with `max_epsilon`.

    Raises:
        FederationError: with what is asked and what is required.
    """
    if not require.demands_privacy:
        return
    if asked is None:
        raise _refusal("a round without differential privacy", "private rounds alone", who=who)
    if require.max_delta is not None and asked.delta > require.max_delta:
        raise _refusal(f"δ = {asked.delta:g}", f"at most {require.max_delta:g}", who=who)
    if require.unit is not None and _UNITS.index(asked.unit) < _UNITS.index(require.unit):
        more = "" if require.unit == _UNITS[-1] else " or above"
        raise _refusal(f"{LEVELS[asked.unit]} privacy", f"{LEVELS[require.unit]}{more}", who=who)


def check_adapter(plan: RoundPlan, policy: SitePolicy) -> None:
    """The part of `check` that needs no time: which adapter it is; raises FederationError."""
    check_base(plan.spec.base, policy)
    most = policy.allow.max_rank
    if most is not None and plan.spec.rank > most:
        raise _refusal(f"rank {plan.spec.rank}", f"at most {most}")


def check_base(base: str, policy: SitePolicy) -> None:
    """Whether a base of this name may be trained at all; raises FederationError."""
    if policy.allow.bases and base not in policy.allow.bases:
        raise _refusal(f"the base {shortened(base)}", ", ".join(policy.allow.bases))


def _refusal(asked: str, allowed: str, *, who: str = "the site policy") -> FederationError:
    return FederationError(f"{who} refuses: asked for {asked}, allowed: {allowed}", hint=_HINT)
