"""A federation's rounds, as a Flower strategy that nothing a client does can stop.

    1  wait until enough clients are here
    2  choose whom to ask
    3  send the plan and the state, with a nonce that is new with every attempt
    4  take each reply as it comes: admission, then into the sum; what is refused is written down by name
    5  close when all have answered, enough have, or time is up
    6  below quorum nothing is committed, and the round is tried again
    7  commit: the state to the disk, then the row that makes it count
    8  ask for held-out scores; go on

A coordinator that dies anywhere resumes after the last committed round. The result does not depend on the order in
which replies come.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from neuralforge_common.adapter import AdapterSpec
from neuralforge_common.errors import FederationError
from neuralforge_common.plan import RoundPlan
from neuralforge_common.records import plan_to_records
from neuralforge_server import events
from neuralforge_server.admission import Expectation, Refused, admit, norm_bound
from neuralforge_server.aggregation.method import Aggregate, Fold, GlobalState, Method
from neuralforge_server.aggregation.serve import served
from neuralforge_server.aggregation.state_file import decode_state, encode_state
from neuralforge_server.attempt import Attempt
from neuralforge_server.budgets import Budgets
from neuralforge_server.central import Central
from neuralforge_server.clients import Clients, Stopped
from neuralforge_server.events import Observer, tell
from neuralforge_server.exchange import (
    Clock,
    Roster,
    SystemClock,
    answer_of,
    askers,
    everyone,
    questions,
)
from neuralforge_server.ledger import Ledger
from neuralforge_server.opening import DESCRIBE, agree, describe_request
from neuralforge_server.scores import read_score
from neuralforge_server.secagg.masked import Masked
from neuralforge_server.secagg.tally import TooFew
from neuralforge_server.terms import Terms

TRAIN, EVALUATE, FINISH = "train", "evaluate", "query.finish"
RETRY_SECONDS = 5.0
SCORE_SECONDS = 600.0
REMEMBERED_ROUNDS = 5
UNKNOWN_STEPS = 10_000


class FederatedLoRA(Strategy):
    """Flower's seam to everything above: `start` runs the whole federation on a grid.

    `start_from` is an adapter to begin with instead of a fresh one. `roster` says who may take part at this very
    moment; it is asked again when a reply arrives, so that a revoked client's last update does not count. `identities`
    are what clients sign with under secure aggregation, as they joined with them.
    """

    def __init__(
        self,
        terms: Terms,
        method: Method,
        ledger: Ledger,
        *,
        roster: Roster = everyone,
        identities: Callable[[], Mapping[str, bytes]] | None = None,
        start_from: tuple[AdapterSpec, GlobalState] | None = None,
        observers: tuple[Observer, ...] = (),
        clock: Clock | None = None,
        chooser: random.Random | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.terms = terms
        self._method = method
        self._ledger = ledger
        self._masked = Masked(terms, identities) if terms.trust == "peers" else None
        self._start_from = start_from
        self._observers = observers
        self._clock = clock or SystemClock()
        # Who takes part in a round is nobody's to foresee; a simulation wants the same choice every time.
        self._chooser = chooser or random.SystemRandom()
        self._stop = stop
        self._clients = Clients(
            terms=terms, roster=roster, ledger=ledger, observers=observers, clock=self._clock, stop=stop
        )
        self._central = Central(terms.central, ledger) if terms.central is not None else None
        self._budgets = Budgets(terms, ledger, self._central)
        self._spec: AdapterSpec | None = None
        self._state: GlobalState | None = None
        self._attempt: Attempt | None = None
        self._scoring: tuple[Mapping[int, str], Sequence[Message]] = ({}, ())
        self._began = self._clock.now()

    @property
    def spec(self) -> AdapterSpec:
        """The adapter of this federation, as agreed upon; raises FederationError before that."""
        if self._spec is None:
            raise FederationError("the federation has not begun: its adapter is not agreed upon yet")
        return self._spec

    @property
    def state(self) -> GlobalState:
        """Where the federation stands; raises FederationError before its adapter is agreed upon."""
        if self._state is None:
            raise FederationError("the federation has not begun: it has no state yet")
        return self._state

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds that are left; the arguments of Flower's own signature are terms here and not used.

        Raises FederationError where a federation cannot begin or go on, Stopped when asked to stop.
        """
        done = self._resume(grid)
        result = Result()
        for round_number in range(done + 1, self.terms.rounds + 1):
            result.train_metrics_clientapp[round_number] = self._round(grid, round_number)
            # Under privacy, and under masks, nobody answers.
            answers = self.terms.privacy is None and self.terms.trust == "server"
            every = self.terms.evaluate_every if answers else 0
            if every and (round_number % every == 0 or round_number == self.terms.rounds):
                self._score(grid, round_number)
        self._finish(grid)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Steps 1 to 3 of a new attempt; `arrays` and `config` are the state and the terms, which this object holds."""
        # 1. Wait until enough clients are here.
        online = self._clients.wait(grid, server_round)
        # 2. Choose whom to ask: by name, so that node numbers, which differ from run to run, decide nothing.
        here = self._budgets.with_enough(online.values(), server_round)
        count = self.terms.asked(len(here))
        nonce = self._ledger.begin_attempt(server_round)
        if self._central is not None and self._central.terms.draws:
            names = self._central.drawn(here)
        else:
            names = here = sorted(self._chooser.sample(here, count)) if count < len(here) else here
        clients = {node: name for node, name in online.items() if name in set(names)}
        self._budgets.charge_training(server_round, names)
        # 3. A nonce of its own for every attempt.
        plan = self._plan(server_round, nonce, asked=len(names))
        content = self._content(plan)
        messages = questions(clients, content, kind=TRAIN, group=str(server_round), deadline=self.terms.deadline)
        self._attempt = Attempt(clients=clients, messages=messages, plan=plan, population=tuple(here))
        size = 4 * served(self.state)[0].size
        tell(self._observers, events.RoundBegan(round=server_round, clients=tuple(names), bytes_down=size))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Steps 4 to 7: replies through admission into the sum, then to the disk; (None, None) below quorum."""
        attempt = self._running(server_round)
        # 4. One reply in memory at a time, where the method allows it.
        fold = self._fold(attempt)
        expectation = self._expectation(attempt.plan, attempt.clients)
        seen: set[str] = set()
        for reply in replies:
            client = attempt.client_of(reply)
            answer = answer_of(client, reply)
            try:
                if answer.content is None:
                    raise Refused(answer.reason, answer.message)
                if not self._clients.is_welcome(attempt, client):
                    raise Refused("revoked", "this client may not take part any more")
                update, report = admit(answer.content, expectation, client=client, seen=seen)
            except Refused as refusal:
                self._clients.turn(server_round, client, refusal.reason, refusal.message)
                continue
            fold.add(update)
            attempt.accept(update, report)
            size = sum(len(array.data) for record in answer.content.array_records.values() for array in record.values())
            norm = attempt.norms[client]
            tell(
                self._observers,
                events.Accepted(round=server_round, client=client, report=report, norm=norm, bytes_up=size),
            )
            # 5. Enough have answered; or all, or time is up, which whoever fetches the replies sees to.
            if self.terms.sample is not None and len(attempt.norms) >= self.terms.sample:
                break
        # 6. Below quorum nothing is committed; a round that drew its clients counts whatever it drew.
        if len(attempt.norms) < (0 if self.terms.draws_clients else self.terms.needed) or self._stop():
            return None, None
        # 7. The state to the disk, then the row that makes it count; before both, what it costs.
        if self._central is not None:
            self._central.spending.charge(server_round, attempt.population)
        figures = self._commit(attempt, fold.finish())
        return self._content(attempt.plan).array_records["state"], figures

    def _commit(self, attempt: Attempt, aggregate: Aggregate) -> MetricRecord:
        number = attempt.plan.round
        spent = self._budgets.statements()
        figures = attempt.figures(aggregate) | {f"epsilon_{found.unit}": found.epsilon for found in spent}
        self._ledger.commit(
            number,
            encode_state(aggregate.state),
            figures | {"norms": [*attempt.norms.values()], "part": attempt.plan.part},
        )
        self._state = aggregate.state
        tell(
            self._observers,
            events.RoundCommitted(
                round=number,
                rounds=self.terms.rounds,
                clients=aggregate.clients,
                loss=figures.get("loss"),
                exactness_error=aggregate.exactness_error,
                seconds=self._clock.now() - self._began,
                figures=aggregate.figures,
                privacy=tuple(str(found) for found in spent),
            ),
        )
        return MetricRecord(dict(figures))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Step 8: whoever is here is asked for held-out scores of the state as it stands."""
        clients = self._clients.online(grid)
        content = self._content(self._plan(server_round, nonce=f"score-{server_round}"))
        messages = questions(clients, content, kind=EVALUATE, group=str(server_round), deadline=self._score_deadline)
        self._scoring = clients, messages
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Mean held-out loss over all tokens of the clients that answered; for people: nothing depends on it."""
        clients, messages = self._scoring
        found: list[events.Score] = []
        for reply in replies:
            answer = answer_of(askers(messages, clients).get(reply.metadata.reply_to_message_id, ""), reply)
            if answer.content is not None and (score := read_score(answer.client, answer.content)) is not None:
                found.append(score)
        if not found:
            return None
        found.sort(key=lambda score: score.client)
        self._ledger.note_scores(server_round, [asdict(score) for score in found])
        tell(self._observers, events.Scored(round=server_round, scores=tuple(found)))
        return MetricRecord({"loss": sum(s.loss * s.tokens for s in found) / sum(s.tokens for s in found)})

    def summary(self) -> None:
        """Flower prints what a strategy is; ours tells its observers instead."""

    # Opening

    def _resume(self, grid: Grid) -> int:
        """The committed round to go on from; 0 after agreeing on an adapter."""
        notices: tuple[str, ...] = ()
        latest = self._ledger.latest()
        if latest is None:
            self._open(grid)
            done = 0
        else:
            facts = self._ledger.facts()
            self._check_same(facts)
            self._spec = AdapterSpec.from_document(facts.get("spec"))
            self._state = decode_state(latest.state)
            done, notices = latest.round, latest.notices
        layout = self.state.layout
        if self._central is not None:
            self._central.check(done)
            size = layout.part_size(self._method.part(done + 1))
            notices = (*notices, *self._central.notices(size, self.terms.min_clients))
        tell(
            self._observers,
            events.Opened(
                done=done,
                rounds=self.terms.rounds,
                summary=f"{self.spec.base}: {layout.summary()}, {self.terms.method}{_trust(self.terms)}",
                notices=notices,
            ),
        )
        return done

    def _open(self, grid: Grid) -> None:
        if self._start_from is not None:
            self._spec, self._state = self._start_from
        else:
            clients = self._clients.wait(grid, 0)
            agreement = agree(
                self._clients.ask(grid, clients, describe_request(self.terms.adapter), kind=DESCRIBE, group="0"),
                self.terms.adapter,
                needed=self.terms.needed,
            )
            for name, why in sorted(agreement.others.items()):
                self._clients.turn(0, name, "base", why)
            self._spec = agreement.description.spec
            self._state = self._method.initial(agreement.description.layout, seed=self.terms.seed)
        self._ledger.open_with(self.terms.fixed() | {"spec": asdict(self._spec)})
        self._ledger.commit(0, encode_state(self._state), {})

    def _check_same(self, facts: Mapping[str, object]) -> None:
        for name, wanted in json.loads(json.dumps(self.terms.fixed())).items():
            if facts.get(name) != wanted:
                raise FederationError(
                    f"this state folder belongs to a federation with {name} {_short(facts.get(name))}, "
                    f"the configuration says {_short(wanted)}",
                    hint="restore the configuration, or begin anew in another state folder",
                )

    # A round, and the end

    def _round(self, grid: Grid, round_number: int) -> MetricRecord:
        for attempt in range(1, self.terms.max_attempts + 1):
            self._began = self._clock.now()
            messages = self.configure_train(round_number, ArrayRecord(), ConfigRecord(), grid)
            if self._masked is not None:
                figures = self._aggregate_masked(grid, self._running(round_number), self._masked)
            else:
                _, figures = self.aggregate_train(
                    round_number, self._clients.replies(grid, messages, self.terms.deadline)
                )
            if figures is not None:
                return figures
            if self._stop():
                raise Stopped
            running = self._running(round_number)
            here, wanted = running.short or (len(running.norms), self.terms.needed)
            tell(
                self._observers,
                events.BelowQuorum(round=round_number, attempt=attempt, clients=here, wanted=wanted),
            )
            self._clock.sleep(RETRY_SECONDS)
        raise FederationError(
            f"round {round_number} stayed below its quorum of {self.terms.needed} clients "
            f"in {self.terms.max_attempts} attempts",
            hint="the record says who was refused and why; another start goes on from the committed rounds",
        )

    def _score(self, grid: Grid, round_number: int) -> MetricRecord | None:
        messages = self.configure_evaluate(round_number, ArrayRecord(), ConfigRecord(), grid)
        return self.aggregate_evaluate(round_number, self._clients.replies(grid, messages, self._score_deadline))

    @property
    def _score_deadline(self) -> float:
        return min(SCORE_SECONDS, self.terms.deadline)

    def _finish(self, grid: Grid) -> None:
        content = self._content(self._plan(self.terms.rounds, nonce="finish"))
        answers = self._clients.ask(
            grid, self._clients.online(grid), content, kind=FINISH, group=str(self.terms.rounds)
        )
        have_it = tuple(sorted(answer.client for answer in answers if answer.content is not None))
        tell(self._observers, events.Finished(rounds=self.terms.rounds, clients=have_it))

    def _expectation(self, plan: RoundPlan, clients: Mapping[int, str]) -> Expectation:
        bound = self.terms.max_norm
        if bound is None:
            # Passes over data whose size only the client knows: nothing can be derived from steps.
            steps = plan.steps if plan.steps is not None else UNKNOWN_STEPS
            size = self.state.layout.part_size(plan.part)
            # Where one client's data may change little, they do not change whether another one's update counts.
            history = self._ledger.norms(REMEMBERED_ROUNDS, part=plan.part) if self._central is None else ()
            bound = norm_bound(steps=steps, learning_rate=plan.learning_rate, size=size, history=history)
        return Expectation(
            round=plan.round,
            nonce=plan.nonce,
            base_fingerprint=plan.spec.base_fingerprint,
            layout=self.state.layout,
            scaling=plan.spec.scaling,
            part=plan.part,
            wire=plan.wire,
            weighting=plan.weighting,
            max_weight=self.terms.max_weight,
            max_norm=bound,
            max_report_bytes=self.terms.max_report_bytes,
            clients=frozenset(clients.values()),
        )

    # Secure aggregation: steps 3 to 7 where no update is seen by itself

    def _aggregate_masked(self, grid: Grid, attempt: Attempt, masked: Masked) -> MetricRecord | None:
        """The mean of updates that stay under masks, to the disk; None below what it takes to unmask it."""
        plan = attempt.plan
        line = self._clients.line(grid, attempt)
        state = attempt.messages[0].content.array_records["state"]
        try:
            found = masked.mean(plan, self.state.layout, state, self._expectation(plan, attempt.clients), line)
        except TooFew as fault:
            attempt.short = fault.got, fault.wanted
            return None
        except FederationError as fault:
            attempt.short = 0, self.terms.needed
            self._clients.turn(plan.round, "everybody", "unmasking", fault.message)
            return None
        if self._stop():
            return None
        tell(
            self._observers,
            events.Unmasked(
                round=plan.round,
                keys=found.keys,
                shares=found.shares,
                clients=found.survivors,
                unmasked_by=found.unmasked_by,
            ),
        )
        return self._commit(attempt, masked.aggregate(found, plan, self._method, self.state))

    def _fold(self, attempt: Attempt) -> Fold:
        number = attempt.plan.round
        if self._central is None:
            return self._method.begin(self.state, number)
        expected = self._central.terms.client_rate * len(attempt.population)
        return self._central.begin(self._method, self.state, number, divisor=expected)

    # What all of them need

    def _plan(self, round_number: int, nonce: str, *, asked: int = 0) -> RoundPlan:
        """A round's plan; `asked` is how many clients train by it, 0 for a plan to score or to finish."""
        layout, vector = served(self.state)
        part = self._method.part(round_number)
        plan = self.terms.plan(round_number, nonce, spec=self.spec, layout=layout, state=self.state, part=part)
        if self._masked is None or not asked:
            return plan
        return self._masked.plan(plan, self.state.layout, vector, asked=asked)

    def _content(self, plan: RoundPlan) -> RecordDict:
        _, vector = served(self.state)
        return plan_to_records(plan, vector)

    def _running(self, round_number: int) -> Attempt:
        if self._attempt is None or self._attempt.plan.round != round_number:
            raise FederationError(f"round {round_number} is not running: configure_train comes first")
        return self._attempt


def _trust(terms: Terms) -> str:
    return ", secure aggregation (experimental)" if terms.trust == "peers" else ""


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 160 else f"{text[:159]}…"
