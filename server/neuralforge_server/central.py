"""Differential privacy of whole clients, by noise that the coordinator adds once a round (DP-FedAvg).

McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models" (ICLR), for the sum of a round:

    Σᵢ min(1, S/‖Δᵢ‖)·Δᵢ + N(0, (z·S)²), then divided by a number that no data decides

Neighbours are two federations in which one client's updates are what they are, or zero: what anybody can tell from the
adapter of that client's whole data is bounded. Who belongs to the federation, who is asked and who answers is not kept
secret, and the coordinator sees every update. All that follows from the noised sum (a server optimizer's moments, the
next rounds) is post-processing.

`adaptive` moves S after Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping" (NeurIPS),
algorithm 1: the count of the updates shorter than S is noised as well, and both together cost what z says. Their noise
on the count, n/20, is made for thousands of clients; ours is a fixed share of the cost, whatever n is.

Where clients are drawn, each independently with a public probability q that others cannot foresee, the accountant is
that of the sampled Gaussian; a round counts then however many were drawn, even none: repeating rounds that drew too
few would be another distribution. Without such draws nothing is amplified.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from neuralforge_common.errors import FederationError, PrivacyError
from neuralforge_common.layout import AdapterLayout, Part
from neuralforge_common.noise import Noise, add_noise, standard_normal
from neuralforge_server.aggregation.exact_sum import ExactSum
from neuralforge_server.aggregation.exactness import norm_of
from neuralforge_server.aggregation.kept import at_full_rank
from neuralforge_server.aggregation.method import Aggregate, Fold, GlobalState, Method, Update
from neuralforge_server.ledger import Ledger
from neuralforge_server.spending import Spending
from neuralforge_server.terms import CentralTerms

COUNT_SHARE = 0.05
"""Of an adaptive round's cost (1/z²), what the noised count takes."""

CLIP_RATE = 0.2
"""η of Andrew et al. 2021."""

CLIP_FIGURE = "next_clip"
_LEAST_CLIP, _MOST_CLIP = 1e-6, 1e9
_SLACK = 1 - 2.0**-22
"""Rounding in float32 must not make a clipped update longer than S."""


class Central:
    """The mechanism over a federation's rounds; budget and S are in its ledger. `noise(n)` gives standard normals."""

    def __init__(self, terms: CentralTerms, ledger: Ledger, *, noise: Noise = standard_normal) -> None:
        self.terms = terms
        self.spending = Spending(
            ledger, unit="client", steps=terms.steps, target_epsilon=terms.target_epsilon, delta=terms.delta
        )
        self._ledger = ledger
        self._noise = noise
        self._coins = random.SystemRandom()

    def check(self, done: int) -> None:
        """Refuses to go on after `done` rounds where what they have cost is not known any more; raises PrivacyError."""
        if done and not self._ledger.spent("client"):
            raise PrivacyError(
                f"{done} rounds are committed, and what they have cost the clients' privacy is not in rounds.db",
                hint="restore rounds.db from a backup, or begin anew in another state folder",
            )

    def notices(self, size: int, clients: int) -> tuple[str, ...]:
        """What to know before the first round, where `size` values are trained and so many clients wait."""
        times = _spreads(self.terms)[0] * math.sqrt(size) / (self.terms.client_rate * clients)
        if times <= 1:
            return ()
        return (
            f"central: with {clients} clients a round's noise is about {times:,.0f} times as long as what they can "
            "move the adapter by: little or nothing will be learnt",
        )

    def drawn(self, population: Collection[str]) -> list[str]:
        """Those of the population that a round asks, each by a coin of its own."""
        return sorted(name for name in population if self._coins.random() < self.terms.client_rate)

    def begin(self, method: Method, state: GlobalState, round_number: int, *, divisor: float) -> CentralFold:
        """Start a round that asks, or expects to ask, `divisor` clients."""
        found = self._ledger.figure(CLIP_FIGURE) if self.terms.adaptive else None
        return CentralFold(
            method.begin(state, round_number),
            state.layout,
            method.part(round_number),
            terms=self.terms,
            clip=self.terms.clip if found is None else found,
            divisor=max(1.0, divisor),
            noise=self._noise,
        )


class CentralFold:
    """A round's updates, clipped and summed; `inner` sees one update, the noised mean."""

    def __init__(
        self,
        inner: Fold,
        layout: AdapterLayout,
        part: Part,
        *,
        terms: CentralTerms,
        clip: float,
        divisor: float,
        noise: Noise,
    ) -> None:
        self._inner = inner
        self._layout = layout
        self._part = part
        self._terms = terms
        self._clip = clip
        self._divisor = divisor
        self._noise = noise
        self._sum = ExactSum(layout.part_size(part))
        self._clients: set[str] = set()
        self._within = 0

    def add(self, update: Update) -> None:
        """Take one in, no longer than S; raises FederationError for a client's second one."""
        if update.client in self._clients:
            raise FederationError(f"{update.client} has an update in this round already")
        delta = at_full_rank(update, self._layout, self._part)
        norm = norm_of(delta)
        if norm > self._clip * _SLACK:
            delta = delta * np.float32(self._clip / norm * _SLACK)
        self._within += norm <= self._clip
        self._sum.add(delta)
        self._clients.add(update.client)

    def finish(self) -> Aggregate:
        """Noise, once, and the method's own step. With nobody's update it is noise alone."""
        spread, count_spread = _spreads(self._terms)
        total = self._sum.precise_mean() * len(self._clients) if self._clients else np.zeros(self._sum.size)
        mean = add_noise(total, spread * self._clip, noise=self._noise) / np.float32(self._divisor)
        self._inner.add(Update(client="all", rank=self._layout.rank, part=self._part, delta=mean))
        figures: Mapping[str, float] = {"clip": self._clip}
        if self._terms.adaptive:
            exact = np.array([self._within - len(self._clients) / 2])
            count = float(add_noise(exact, count_spread, noise=self._noise)[0])
            figures = {"clip": self._clip, CLIP_FIGURE: self._moved(0.5 + count / self._divisor)}
        # The method compares with the mean that it is given; there is none without noise to compare with.
        return replace(self._inner.finish(), clients=len(self._clients), exactness_error=None, figures=figures)

    def _moved(self, within: float) -> float:
        """S for the next round, `within` being the noised share of updates that were shorter."""
        moved = self._clip * math.exp(-CLIP_RATE * (within - self._terms.quantile))
        return min(max(moved, _LEAST_CLIP), _MOST_CLIP)


def _spreads(terms: CentralTerms) -> tuple[float, float]:
    """Standard deviations of the noise on the sum, over S, and on the count (of ±½ a client, so its cost is 1/(2σ)²).

    Andrew et al. 2021, theorem 1: both together are one Gaussian with the noise multiplier z.
    """
    z = terms.noise_multiplier
    if not terms.adaptive:
        return z, 0.0
    return z / math.sqrt(1 - COUNT_SHARE), z / math.sqrt(COUNT_SHARE) / 2
