"""The privacy budgets of a federation's clients, all of those that its terms promise to keep."""

from __future__ import annotations

from collections.abc import Iterable

from neuralforge_common.errors import PrivacyError
from neuralforge_common.privacy import PrivacyStatement
from neuralforge_server.central import Central
from neuralforge_server.ledger import Ledger
from neuralforge_server.spending import Spending, of_training
from neuralforge_server.terms import Terms


class Budgets:
    """Of private training on the clients, of the coordinator's noise (`central`), of both or of neither."""

    def __init__(self, terms: Terms, ledger: Ledger, central: Central | None) -> None:
        self._needed = terms.min_clients
        private, steps = terms.privacy, terms.steps
        self._training = of_training(private, steps, ledger) if private is not None and steps is not None else None
        self._all: list[Spending] = [self._training] if self._training is not None else []
        self._all += [central.spending] if central is not None else []

    def with_enough(self, here: Iterable[str], round_number: int) -> list[str]:
        """Those who can afford the round, in order; raises PrivacyError where they are too few."""
        names = everybody = sorted(here)
        for spending in self._all:
            names = sorted(spending.affordable(names))
        if len(names) < len(everybody) and len(names) < self._needed:
            raise PrivacyError(
                f"round {round_number} would exceed the privacy budget of {len(everybody) - len(names)} of the "
                f"{len(everybody)} clients here, and {self._needed} are needed",
                hint="what is committed stays; new clients bring a budget of their own",
            )
        return names

    def charge_training(self, round_number: int, clients: Iterable[str]) -> None:
        """Charge the newest attempt at a round for the private steps that these clients are asked for."""
        if self._training is not None:
            self._training.charge(round_number, clients)

    def statements(self) -> tuple[PrivacyStatement, ...]:
        """What the client has spent that has spent most, for each kind of budget."""
        return tuple(spending.statement() for spending in self._all)
