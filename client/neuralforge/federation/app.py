"""The client's Flower app: what a coordinator asks is passed to a `Participant`, what it answers is passed back.

`app` is the component that a stock Flower runs: `flower-supernode --node-config 'config="client.yaml"'`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from neuralforge.federation.participant import Participant, RoundStopped
from neuralforge.federation.prepare import participant_from_config
from neuralforge.federation.secagg.answers import answer_question, train_masked
from neuralforge.federation.secagg.member import SecureMember
from neuralforge_common import __version__
from neuralforge_common.errors import AdapterError, FederationError
from neuralforge_common.plan import PROTOCOL, RoundPlan
from neuralforge_common.records import plan_of, reply_to_records, state_of
from neuralforge_common.secagg.messages import KEYS, SHARES, SURVIVORS, UNMASK
from neuralforge_common.strict_json import is_plain_text, parse_json_object, shortened

ANSWER, REQUEST, JSON = "answer", "request", "json"
MAX_REQUEST_BYTES = 64 * 1024
MAX_REASON = 500
RAISED = 2
"""Flower's `ErrorCode.CLIENT_APP_RAISED_EXCEPTION`, which it keeps in a private module."""

_REQUEST: dict[str, tuple[type, ...]] = {
    "base": (str,),
    "rank": (int,),
    "alpha": (int, float, type(None)),
    "target_modules": (str, list),
    "dropout": (int, float),
}

Handler: TypeAlias = Callable[[Participant, RecordDict], RecordDict]

log = logging.getLogger(__name__)


def make_client_app(
    participant_for: Callable[[Context], Participant], *, on_fault: Callable[[Exception], None] | None = None
) -> ClientApp:
    """The app over whoever answers in a context; `on_fault` hears, whole, of what the coordinator is told in part."""
    app = ClientApp()

    def handle(handler: Handler) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            try:
                return Message(handler(participant_for(context), message.content), reply_to=message)
            except RoundStopped:
                raise
            except Exception as fault:  # whatever it is, the federation goes on
                (on_fault or _log)(fault)
                return Message(Error(RAISED, reason_of(fault)), reply_to=message)

        return answer

    app.train()(handle(_train))
    app.evaluate()(handle(_evaluate))
    app.query("describe")(handle(_describe))
    app.query("finish")(handle(_finish))
    for question in (KEYS, SHARES, SURVIVORS, UNMASK):
        app.query(question)(handle(partial(_secure, question)))
    return app


def reason_of(fault: Exception) -> str:
    """What a coordinator may know of a failure: other messages may hold paths, or words of somebody's code."""
    if not isinstance(fault, AdapterError | FederationError):
        return type(fault).__name__
    return "".join(c if is_plain_text(c) else " " for c in fault.message)[:MAX_REASON]


@cache
def _participant(path: str) -> Participant:
    return participant_from_config(Path(path))


def _participant_of_node(context: Context) -> Participant:
    path = context.node_config.get("config")
    if not isinstance(path, str) or not path:
        raise FederationError("this node has no configuration", hint="""flower-supernode --node-config 'config="…"'""")
    return _participant(path)


def _log(fault: Exception) -> None:
    expected = isinstance(fault, AdapterError | FederationError)
    log.warning("the coordinator's message came to nothing: %s", fault, exc_info=None if expected else fault)


def _train(participant: Participant, content: RecordDict) -> RecordDict:
    plan = plan_of(content)
    participant.check(plan)
    if plan.trust == "peers":
        return train_masked(_member(participant, plan), plan, content, participant.layout(plan), participant.train)
    if participant.member is not None:
        participant.member.check(plan)
    report, delta = participant.train(plan, state_of(content, participant.layout(plan)))
    return reply_to_records(report, delta, plan.wire)


def _secure(question: str, participant: Participant, content: RecordDict) -> RecordDict:
    plan = plan_of(content)
    participant.check(plan)
    return answer_question(_member(participant, plan), question, plan, content)


def _member(participant: Participant, plan: RoundPlan) -> SecureMember:
    if participant.member is None:
        raise FederationError(
            "the federation adds updates up under masks, and this client has no identity for that",
            hint="have this machine revoked and invited again, remove its folder, and join",
        )
    if plan.personal != "none":
        raise FederationError(
            f"the round is under masks and leaves the {plan.personal} with their clients: a state of zeros would "
            "silence those who have none yet, and the sum be that of the others"
        )
    # Before any keys: `train_masked` would refuse it after the training.
    if participant.max_rank < plan.spec.rank:
        raise FederationError(
            f"the round is of rank {plan.spec.rank} and under masks, and this client trains at most at "
            f"{participant.max_rank}: what it lacks would be in the sum of the others alone"
        )
    return participant.member


def _evaluate(participant: Participant, content: RecordDict) -> RecordDict:
    plan = plan_of(content)
    participant.check(plan)
    scores = participant.evaluate(plan, state_of(content, participant.layout(plan)))
    return _answer({"round": plan.round, "nonce": plan.nonce} | (asdict(scores) if scores is not None else {}))


def _describe(participant: Participant, content: RecordDict) -> RecordDict:
    spec, layout = participant.describe(**_request(content))
    facts = {"spec": asdict(spec), "layout": layout.to_json(), "max_rank": participant.max_rank}
    return _answer(facts | {"version": __version__})


def _finish(participant: Participant, content: RecordDict) -> RecordDict:
    plan = plan_of(content)
    participant.finish(plan, state_of(content, participant.layout(plan)))
    return _answer({"round": plan.round, "nonce": plan.nonce})


def _request(content: RecordDict) -> dict[str, Any]:
    """The arguments of `Participant.describe` in a question; raises FederationError and AdapterError."""
    record = content.get(REQUEST)
    text = record.get(JSON) if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str):
        raise FederationError("the question asks for no adapter")
    asked = parse_json_object(text.encode(), what="the question", limit=MAX_REQUEST_BYTES)
    if asked.get("protocol") != PROTOCOL:
        raise FederationError(
            f"the coordinator speaks protocol {shortened(asked.get('protocol'))}, "
            f"this client (neuralforge {__version__}) speaks {PROTOCOL}",
            hint="bring client and coordinator to the same version of neuralforge",
        )
    for name, kinds in _REQUEST.items():
        value = asked.get(name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise FederationError(f"the question: {name}: got {shortened(value)}")
    modules = asked["target_modules"]
    if isinstance(modules, list) and not all(isinstance(module, str) for module in modules):
        raise FederationError("the question: target_modules: wanted names")
    return {name: asked[name] for name in _REQUEST}


def _answer(facts: dict[str, object]) -> RecordDict:
    return RecordDict({ANSWER: ConfigRecord({JSON: json.dumps(facts, sort_keys=True)})})


app = make_client_app(_participant_of_node)
