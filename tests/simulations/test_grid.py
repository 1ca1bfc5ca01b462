"""The in-process grid behaves as a real one: private copies, errors instead of crashes, silence, lateness."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from neuralforge_common.errors import FederationError
from neuralforge_server.exchange import answer_of, askers, questions, replies
from neuralforge_simulations.clock import VirtualClock
from neuralforge_simulations.grid import GONE_SECONDS, Habits, LocalGrid, client_of, node_of

Train = Callable[[Message, Context], Message]


def app_of(train: Train) -> ClientApp:
    app = ClientApp()
    app.train()(train)
    return app


def echo(message: Message, context: Context) -> Message:
    return Message(RecordDict({"who": ConfigRecord({"number": context.node_config["partition-id"]})}), reply_to=message)


def content() -> RecordDict:
    state = ArrayRecord({"flat": Array("uint8", (3,), "s", b"abc")})
    return RecordDict({"state": state, "plan": ConfigRecord({"a": 1, "b": [1, 2]})})


def ask(
    grid: LocalGrid, clock: VirtualClock, *, deadline: float = 100.0, group: str = "1", shared: RecordDict | None = None
) -> dict[str, str]:
    """Client → "content" or the reason why there is none, through the coordinator's own exchange."""
    names = {node: f"client {client_of(node)}" for node in grid.get_node_ids()}
    messages = questions(names, shared or content(), kind="train", group=group, deadline=deadline)
    found = {}
    for reply in replies(grid, messages, deadline=deadline, clock=clock):
        answer = answer_of(askers(messages, names)[reply.metadata.reply_to_message_id], reply)
        found[answer.client] = answer.reason or "content"
    return found


def test_every_client_answers_once_under_its_own_number() -> None:
    clock = VirtualClock()
    grid = LocalGrid(app_of(echo), 9, clock=clock)
    seen = []
    messages = questions({n: str(n) for n in grid.get_node_ids()}, content(), kind="train", group="1", deadline=10)
    for reply in replies(grid, messages, deadline=10, clock=clock):
        assert reply.metadata.src_node_id == node_of(int(str(reply.content["who"]["number"])))  # type: ignore[index]
        seen.append(reply.metadata.src_node_id)
    assert sorted(seen) == list(grid.get_node_ids())
    assert clock.now() == 0


def test_a_client_that_changes_its_message_reaches_nobody_else() -> None:
    found = []

    def meddle(message: Message, context: Context) -> Message:
        found.append(message.content["state"]["flat"].data)  # type: ignore[index]
        message.content["state"] = ArrayRecord({"flat": Array("uint8", (1,), "s", b"x")})
        message.content["plan"]["a"] = 2  # type: ignore[index]
        message.content["plan"]["b"].append(3)  # type: ignore[index]
        return echo(message, context)

    clock, shared = VirtualClock(), content()
    ask(LocalGrid(app_of(meddle), 3, clock=clock), clock, shared=shared)
    assert found == [b"abc"] * 3
    assert dict(shared["plan"]) == {"a": 1, "b": [1, 2]}  # type: ignore[call-overload]


def test_a_reply_that_its_client_keeps_and_changes_stays_as_it_was_sent() -> None:
    kept: list[RecordDict] = []

    def keep(message: Message, context: Context) -> Message:
        kept.append(RecordDict({"r": ConfigRecord({"v": 1})}))
        return Message(kept[-1], reply_to=message)

    grid = LocalGrid(app_of(keep), 1, clock=VirtualClock())
    (reply,) = grid.send_and_receive([Message(content(), node_of(0), "train")])
    kept[0]["r"]["v"] = 2  # type: ignore[index]
    assert reply.content["r"]["v"] == 1  # type: ignore[index]


def test_what_a_client_raises_comes_back_as_an_error_without_its_words() -> None:
    def fail(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 0:
            raise ValueError("def private_code(): ...")
        if context.node_config["partition-id"] == 1:
            raise FederationError("the site policy refuses")
        return echo(message, context)

    grid = LocalGrid(app_of(fail), 3, clock=VirtualClock())
    private, told, fine = grid.send_and_receive([Message(content(), n, "train") for n in grid.get_node_ids()])
    assert (private.error.code, private.error.reason) == (ErrorCode.CLIENT_APP_CRASHED, "ValueError")
    assert (told.error.code, told.error.reason) == (ErrorCode.CLIENT_APP_CRASHED, "the site policy refuses")
    assert fine.has_content()


def test_replies_are_made_one_at_a_time_when_they_are_fetched() -> None:
    made = []

    def count(message: Message, context: Context) -> Message:
        made.append(context.node_id)
        return echo(message, context)

    grid = LocalGrid(app_of(count), 5, clock=VirtualClock())
    ids = list(grid.push_messages([Message(content(), n, "train") for n in grid.get_node_ids()]))
    assert made == []
    arriving = iter(grid.pull_messages(ids))
    next(arriving)
    assert made == [node_of(0)]


def test_a_slow_client_costs_virtual_time_only() -> None:
    clock = VirtualClock()
    grid = LocalGrid(app_of(echo), 3, clock=clock, habits=Habits(slow=frozenset({1}), slow_seconds=86_000))
    assert ask(grid, clock, deadline=90_000) == {f"client {n}": "content" for n in range(3)}
    assert 86_000 <= clock.now() < 86_001


def test_an_answer_after_the_deadline_never_arrives_and_is_not_worked_for() -> None:
    made = []

    def count(message: Message, context: Context) -> Message:
        made.append(context.node_config["partition-id"])
        return echo(message, context)

    clock = VirtualClock()
    grid = LocalGrid(app_of(count), 3, clock=clock, habits=Habits(slow=frozenset({1}), slow_seconds=101))
    assert ask(grid, clock)["client 1"] == "deadline"
    assert made == [0, 2]
    assert clock.now() < 101, "the clock stands at the deadline, not at the answer that nobody waits for"


def test_who_drops_out_is_reported_as_gone_after_a_while_and_comes_back() -> None:
    clock = VirtualClock()
    grid = LocalGrid(app_of(echo), 40, clock=clock, habits=Habits(dropout=0.4, seed=3))
    rounds = [ask(grid, clock, group=str(number)) for number in range(20)]
    gone = [[client for client, what in found.items() if what == "gone"] for found in rounds]
    share = sum(map(len, gone)) / (40 * 20)
    assert 0.3 < share < 0.5
    assert len({client for names in gone for client in names}) == 40, "nobody drops out for good"
    assert clock.now() >= 20 * GONE_SECONDS


def test_the_same_seed_drops_the_same_clients() -> None:
    def who(seed: int) -> list[dict[str, str]]:
        clock = VirtualClock()
        grid = LocalGrid(app_of(echo), 20, clock=clock, habits=Habits(dropout=0.3, seed=seed))
        return [ask(grid, clock, group=str(number)) for number in range(5)]

    assert who(1) == who(1)
    assert who(1) != who(2)


def test_questions_other_than_training_are_always_answered() -> None:
    app = app_of(echo)
    app.query("describe")(echo)
    grid = LocalGrid(
        app, 5, clock=VirtualClock(), habits=Habits(dropout=0.99, slow=frozenset(range(5)), slow_seconds=9)
    )
    asked = [Message(content(), node, "query.describe") for node in grid.get_node_ids()]
    assert all(reply.has_content() for reply in grid.send_and_receive(asked))


def test_a_message_to_nobody_is_not_taken() -> None:
    grid = LocalGrid(app_of(echo), 2, clock=VirtualClock())
    first, nobody = grid.push_messages([Message(content(), node_of(0), "train"), Message(content(), 999, "train")])
    assert first
    assert nobody == ""


def test_what_a_round_did_not_fetch_is_forgotten_by_the_next() -> None:
    grid = LocalGrid(app_of(echo), 10, clock=VirtualClock())
    for number in range(50):
        pushed = [Message(content(), n, "train", group_id=str(number)) for n in grid.get_node_ids()]
        ids = list(grid.push_messages(pushed))
        assert len(list(grid.pull_messages(ids[:3]))) == 3
    assert len(grid._sent) <= 10


def test_a_client_has_its_own_state_from_message_to_message() -> None:
    def count(message: Message, context: Context) -> Message:
        before = context.state["seen"]["n"] if "seen" in context.state else 0  # type: ignore[index]
        context.state["seen"] = ConfigRecord({"n": before + 1})
        return Message(RecordDict({"seen": ConfigRecord({"n": before + 1})}), reply_to=message)

    grid = LocalGrid(app_of(count), 2, clock=VirtualClock())
    for expected in (1, 2, 3):
        for reply in grid.send_and_receive([Message(content(), n, "train") for n in grid.get_node_ids()]):
            assert reply.content["seen"]["n"] == expected  # type: ignore[index]
