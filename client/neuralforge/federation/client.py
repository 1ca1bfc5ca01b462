"""`FederatedClient`: a federation's rounds from Python, one at a time or all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from flwr.app import Context

from neuralforge.data.dataset import Dataset, dataset_from_examples
from neuralforge.data.example import Example
from neuralforge.data.gather import gather
from neuralforge.federation.app import make_client_app
from neuralforge.federation.connection import TRAIN, Answer, Observer, Resident
from neuralforge.federation.flower import DAY, Fleet, Stopped, error_reply
from neuralforge.federation.home import client_home
from neuralforge.federation.memory import Memory
from neuralforge.federation.participant import Participant
from neuralforge.federation.prepare import resident_model
from neuralforge.federation.private_rounds import PrivateRounds
from neuralforge.federation.secagg.member import member_of
from neuralforge.federation.session import find_federation, open_session
from neuralforge.privacy.scope import federation_scope
from neuralforge.privacy.spending import Spending
from neuralforge_common.adapter import MAX_RANK
from neuralforge_common.config.load import resolve_train_config
from neuralforge_common.config.policy import SitePolicy, load_site_policy
from neuralforge_common.errors import FederationError
from neuralforge_common.plan import TrainReport
from neuralforge_common.secagg.messages import SURVIVORS


class FederatedClient:
    """This machine's part in a federation that it has joined (`nf-client join`).

        with FederatedClient("nf://build-box:8470") as client:
            report = client.train_local("./my-project")   # waits for the next round, trains on it
            client.share_gradients()                      # only now the delta leaves this machine

    What leaves: the difference that training made to the adapter's matrices, and the report beside it (how many
    examples, steps and tokens; loss and time unless the site policy keeps them). What stays: code, examples, file
    names, the base model. A delta can still give away things about the code that it was learnt from; what bounds that
    is differential privacy, which a federation and a site policy may demand: `spent` says then how much was told, and
    the report says nothing that the federation did not know.

    Args:
        server: `nf://host:port`, or the name of a federation that this machine has joined.
        base: the base model to train; None takes the one that the federation asks for where the policy allows it.
        policy: a site policy file: what this machine agrees to.
        max_rank: train at most at this rank, whatever the federation's is.
        adapter: where the finished adapter goes (a `.lora` folder); None for nowhere.
        home: keys and memories; None is `$NEURALFORGE_HOME` or `~/.neuralforge`.
        patience: seconds to wait for a server that goes away.
        tell: hears lines for a person about waits and refusals.
        stop: ends waiting and training when it is true.

    Raises:
        FederationError: not joined, unreachable, revoked, or of another version.
        ConfigError: the site policy is not sound.
    """

    def __init__(
        self,
        server: str,
        *,
        base: str | None = None,
        policy: str | Path | None = None,
        max_rank: int = MAX_RANK,
        adapter: str | Path | None = None,
        home: str | Path | None = None,
        patience: float = DAY,
        tell: Callable[[str], None] = lambda line: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        place = Path(home) if home is not None else client_home()
        self._joined = find_federation(server, home=place)
        self._resident = resident_model(resolve_train_config(None, {"model.base": base} if base else {}, os.environ))
        self._policy = load_site_policy(Path(policy)) if policy is not None else SitePolicy()
        self._max_rank = max_rank
        self._adapter = Path(adapter) if adapter is not None else None
        self._tell = tell
        self._stop = stop
        self._member = member_of(self._joined)
        record = self._joined.record
        scope = federation_scope(record.federation, record.address.endpoint)
        self._private = PrivateRounds(home=place, scope=scope, tell=tell)
        self._data: Dataset | None = None
        self._participant: Participant | None = None
        self._faults: list[Exception] = []
        self._held: Answer | None = None
        self._app = make_client_app(self._participant_of, on_fault=self._faults.append)
        self._stack = ExitStack()
        self._fleet: Fleet = self._stack.enter_context(
            open_session(self._joined, tell=tell, stop=stop, patience=patience)
        )
        self._rounds = Resident(self._fleet, self._app, stop=stop, tell=tell)

    @property
    def finished(self) -> bool:
        """Whether the coordinator has said that the federation is over."""
        return self._rounds.finished

    @property
    def spent(self) -> Spending | None:
        """What private rounds of this federation have cost the data here; None where there was none."""
        return self._private.spent()

    def train_local(self, local_data: str | Path | Iterable[Example]) -> TrainReport:
        """Wait for the next round and train on it; nothing of what was learnt leaves this machine yet.

        `local_data` is a JSONL file, a repository or a folder of source code, or examples. Other questions of the
        coordinator (what this base's adapter is like, held-out scores where the policy allows them) are answered
        meanwhile. A round that was trained before and not shared is given up.

        Raises:
            DataError: there is nothing to learn from.
            FederationError: the site policy refuses the round, the federation is over, or the server is gone.
        """
        self._learn_from(local_data)
        self._give_up()
        while not self.finished:
            self._faults.clear()
            try:
                answer = self._rounds.next_answer()
            except Stopped as error:
                raise FederationError("stopped before a round was trained") from error
            if answer.kind == TRAIN and answer.report is not None:
                self._held = answer
                return answer.report
            self._rounds.send(answer)
            if answer.kind == TRAIN and self._faults:
                raise self._faults[-1]
        raise FederationError(f"the federation {self._joined.record.federation} is over")

    def share_gradients(self) -> int:
        """Send the delta of the round that `train_local` has trained; returns how many bytes went out.

        Under secure aggregation it goes out under masks, and this waits until the sum with it in is unmasked.

        Raises:
            FederationError: there is none; it came too late; the server is gone.
        """
        if self._held is None:
            raise FederationError("there is nothing to share", hint="call train_local first, once for each round")
        held, self._held = self._held, None
        sent = self._rounds.send(held)
        if sent.lost:
            raise FederationError(f"round {held.plan.round if held.plan else '?'}: {sent.lost}")
        if held.plan is not None and held.plan.trust == "peers":
            self._help_unmask()
        return sent.bytes_sent

    def take_part(
        self, local_data: str | Path | Iterable[Example], *, observe: Observer = lambda event: None
    ) -> Path | None:
        """Train and share every round until the federation is over or `stop` says so; returns the adapter's folder.

        Raises:
            DataError: there is nothing to learn from.
            FederationError: the server is gone for too long, or this node was revoked.
        """
        self._learn_from(local_data)
        self._give_up()
        rounds = Resident(self._fleet, self._app, observe=observe, tell=self._tell, stop=self._stop)
        self._faults.clear()
        if rounds.stay() == "stopped":
            return None
        if rounds.failure:
            raise self._faults[-1] if self._faults else FederationError(rounds.failure)
        return self._adapter

    def close(self) -> None:
        """Say goodbye to the server; a round that was not shared is lost."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _learn_from(self, local_data: str | Path | Iterable[Example]) -> None:
        data = _read(local_data)
        if self._participant is not None and self._data is not None and data.digest == self._data.digest:
            return  # with everything tokenised and cached
        self._data = data
        self._participant = Participant(
            self._resident,
            data,
            memory=Memory(self._joined.memory, tell=self._tell),
            policy=self._policy,
            max_rank=self._max_rank,
            adapter_path=self._adapter,
            member=self._member,
            private=self._private,
            stop=self._stop,
        )

    def _participant_of(self, context: Context) -> Participant:
        if self._participant is None:
            raise FederationError("this client has not said yet what it learns from")
        return self._participant

    def _help_unmask(self) -> None:
        """Answer until the sum with this client's update in it is unmasked, or something else has begun."""
        while True:
            answer = self._rounds.next_answer()
            if answer.kind == TRAIN:
                self._held = answer  # another round, which nobody has shared yet
                return
            self._rounds.send(answer)
            if answer.kind != f"query.{SURVIVORS}":
                return

    def _give_up(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            self._rounds.send(held.with_reply(error_reply(held.message, "the developer has not shared this round")))


def _read(local_data: str | Path | Iterable[Example]) -> Dataset:
    if not isinstance(local_data, str | Path):
        return dataset_from_examples(local_data)
    path = Path(local_data).expanduser()
    if path.is_file():
        return gather(train_file=path)
    return gather(from_git=path) if (path / ".git").exists() else gather(sources=[path])
