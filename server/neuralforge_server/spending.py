"""What a federation's attempts have cost its clients' privacy, as the coordinator's ledger has it.

An attempt is charged to everybody whose data it may have touched, before anything of it is released, and never
refunded: one that came to nothing and one that a crash repeats have cost what they cost. Of private training each
client's own ledger is the authority, and it may know better (data that came later has spent less); of noise that the
coordinator adds there is no other ledger than this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from operator import itemgetter

from neuralforge_common.accounting import Steps, epsilon
from neuralforge_common.privacy import Level, PrivacyStatement, PrivacyTerms
from neuralforge_server.ledger import Ledger


class Spending:
    """The budget (`target_epsilon`, `delta`) of every client for one unit; an attempt costs `steps`."""

    def __init__(self, ledger: Ledger, *, unit: Level, steps: Steps, target_epsilon: float, delta: float) -> None:
        self.unit = unit
        self._ledger = ledger
        self._steps = steps
        self._target = target_epsilon
        self._delta = delta

    def affordable(self, clients: Iterable[str]) -> set[str]:
        """Those whose budget allows another attempt."""
        spent = self._ledger.spent(self.unit)
        return {name for name in clients if self._after(spent.get(name, ())) <= self._target}

    def charge(self, round_number: int, clients: Iterable[str]) -> None:
        """Charge the newest attempt at a round; it is on the disk before this returns."""
        self._ledger.charge(round_number, self.unit, self._steps, clients)

    def statement(self) -> PrivacyStatement:
        """What the client has spent that has spent most."""
        return worst(self._ledger.spent(self.unit), unit=self.unit, delta=self._delta)

    def _after(self, history: tuple[Steps, ...]) -> float:
        return _epsilon((*history, self._steps), self._delta)


def of_training(terms: PrivacyTerms, steps: int, ledger: Ledger) -> Spending:
    """The spending of rounds of so many private steps."""
    cost = Steps(sample_rate=terms.sample_rate, noise_multiplier=terms.noise_multiplier, count=steps)
    return Spending(ledger, unit=terms.unit, steps=cost, target_epsilon=terms.target_epsilon, delta=terms.delta)


def worst(spent: Mapping[str, tuple[Steps, ...]], *, unit: Level, delta: float) -> PrivacyStatement:
    """The statement for the client with the highest ε, from `Ledger.spent`."""
    costs = [(_epsilon(history, delta), history) for history in spent.values()]
    most, history = max(costs, key=itemgetter(0), default=(0.0, ()))
    return PrivacyStatement(epsilon=most, delta=delta, unit=unit, steps=sum(steps.count for steps in history))


@lru_cache(maxsize=1024)
def _epsilon(history: tuple[Steps, ...], delta: float) -> float:
    return epsilon(history, delta)
