"""A round under masks without a network or a model: the coordinator's tally and the clients' members, side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from neuralforge.federation.secagg.member import SecureMember
from neuralforge.federation.secagg.pins import Pins
from neuralforge_common.adapter import AdapterSpec, FloatArray
from neuralforge_common.plan import RoundPlan
from neuralforge_common.secagg.fixed_point import FixedPoint
from neuralforge_common.secagg.messages import (
    KEYS,
    SHARES,
    SURVIVORS,
    UNMASK,
    Survivors,
    adverts_from_json,
    adverts_to_json,
)
from neuralforge_server.secagg.tally import Tally
from neuralforge_server.secagg.terms import masking_terms

STAGES = (KEYS, SHARES, "train", SURVIVORS, UNMASK)
SPEC = AdapterSpec(base="b", base_fingerprint="sha256:1234", rank=2, alpha=4.0, target_modules=("up",))


def a_plan(clients: int, *, size: int, round_number: int = 1, nonce: str = "n1", **masking: Any) -> RoundPlan:
    terms = masking_terms(
        asked=clients, steps=20, learning_rate=3e-3, max_norm=100.0, threshold=0.5, neighbours=masking.pop("k", None)
    )
    return RoundPlan(
        federation="t", round=round_number, rounds=9, nonce=nonce, spec=SPEC, layout_digest="d" * 64, steps=20,
        batch_size=4, learning_rate=3e-3, max_length=64, weighting="uniform", trust="peers",
        masking=replace(terms, **masking),
    )  # fmt: skip


class Party:
    """`count` clients with an update each. `said` is all that a coordinator gets to hear, by stage and client."""

    def __init__(self, folder: Path, count: int, *, size: int = 257, seed: int = 0) -> None:
        self.size = size
        self.names = [f"c{number:03d}" for number in range(count)]
        self.pins = {name: Pins(folder / f"{name}.json") for name in self.names}
        self.identities = {name: Ed25519PrivateKey.generate() for name in self.names}
        self.members: dict[str, SecureMember] = {}
        for name in self.names:
            self.start_anew(name)
        random = np.random.default_rng(seed)
        self.updates = {name: (1e-4 * random.standard_normal(size)).astype(np.float32) for name in self.names}
        self.said: dict[str, dict[str, Any]] = {}
        self.begin(a_plan(count, size=size))

    def start_anew(self, name: str) -> None:
        """As a client that is started again: with its files, and nothing else."""
        self.members[name] = SecureMember(name, self.identities[name], self.pins[name])

    def begin(self, plan: RoundPlan, *, needed: int = 3) -> None:
        # What a client gets has been text on its way.
        self.plan = RoundPlan.from_json(plan.to_json())
        self.tally = Tally(plan, size=self.size, needed=needed, registered=None)
        self.said = {stage: {} for stage in STAGES}

    def keys(self, names: Iterable[str] | None = None) -> str:
        for name in names if names is not None else self.names:
            self._hear(KEYS, name, self.members[name].answer(KEYS, self.plan, "{}"))
        return adverts_to_json(self.tally.roster().adverts)

    def shares(self, everybody: str, names: Iterable[str] | None = None) -> None:
        known = [advert.name for advert in adverts_from_json(everybody)]
        for name in names if names is not None else known:
            self._hear(SHARES, name, self.members[name].answer(SHARES, self.plan, everybody))

    def train(self, names: Iterable[str] | None = None) -> None:
        for name in names if names is not None else sorted(self.said[SHARES]):
            self.members[name].collect(self.plan, self.tally.delivery(name).to_json())
            self.said["train"][name] = masked = self.members[name].mask(self.plan, self.updates[name])
            self.tally.add_masked(name, masked)

    def confirm(self, names: Iterable[str] | None = None) -> None:
        told = Survivors(names=self.tally.survivors).to_json()
        for name in names if names is not None else self.tally.survivors:
            self._hear(SURVIVORS, name, self.members[name].answer(SURVIVORS, self.plan, told))

    def unmask(self, names: Iterable[str] | None = None) -> FloatArray:
        request = self.tally.request().to_json()
        for name in names if names is not None else sorted(self.said[SURVIVORS]):
            self._hear(UNMASK, name, self.members[name].answer(UNMASK, self.plan, request))
        return self.tally.mean()

    def run(self, gone: Mapping[str, Collection[str]] | None = None) -> FloatArray:
        """The whole round; `gone` are those who drop out at a stage, before they answer it."""
        here = set(self.names)

        def left(stage: str) -> list[str]:
            here.difference_update((gone or {}).get(stage, ()))
            return sorted(here)

        everybody = self.keys(left(KEYS))
        self.shares(everybody, left(SHARES))
        self.train(left("train"))
        self.confirm(left(SURVIVORS))
        return self.unmask(left(UNMASK))

    def plain_mean(self, names: Iterable[str]) -> FloatArray:
        """What comes of the same fixed-point numbers when they are simply added up."""
        assert self.plan.masking is not None
        form, chosen = FixedPoint.of(self.plan.masking), sorted(names)
        total = sum(form.encode(self.updates[name]).astype(object) for name in chosen)
        wrapped = np.array([value % 2**form.bits for value in total], form.dtype)
        return (form.decode(wrapped) / len(chosen)).astype(np.float32)

    def _hear(self, stage: str, name: str, text: str) -> None:
        self.said[stage][name] = text
        add = {
            KEYS: self.tally.add_keys, SHARES: self.tally.add_shares, SURVIVORS: self.tally.add_confirmation,
            UNMASK: self.tally.add_unmasking,
        }[stage]  # fmt: skip
        add(name, text)
