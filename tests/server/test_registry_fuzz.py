"""Random bytes and random messages at every method: each is answered, none by a failure, and the registry goes on."""

from __future__ import annotations

import random
from collections.abc import Iterator

import grpc
import pytest
from registry_rig import Person, RegistryRig, make_adapter, registry_rig

from neuralforge_common.protocol import registry_pb2 as messages

SERVICE = messages.DESCRIPTOR.services_by_name["Registry"]
EXPECTED = {
    *("OK", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    *("ALREADY_EXISTS", "DATA_LOSS", "ABORTED"),
}
WORDS = (
    *("", "blue", "red", "spring", "1.0.0", "1.0.0-rc.1", "model.sig", "metadata.json", "../../ca.key", "a/b", "\0"),
    *(
        "x" * 300,
        "\u202e",
        "blue/spring",
        "f" * 64,
        "0" * 32,
        "'; DROP TABLE releases; --",
        "%",
        "é",
        "9" * 40 + ".0.0",
    ),
)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryRig]:
    place = tmp_path_factory.mktemp("fuzz")
    with registry_rig(place) as made:
        made.member("alice", "blue").publish(make_adapter(place / "a.lora"))
        yield made


@pytest.fixture(scope="module")
def person(rig: RegistryRig) -> Person:
    return rig.token("blue", "admin")


def channel_of(rig: RegistryRig) -> grpc.Channel:
    return grpc.secure_channel(f"localhost:{rig.running.port}", grpc.ssl_channel_credentials(rig.state.authority_pem))


def scramble(message: object, dice: random.Random, depth: int = 0) -> None:
    """Fills a message at random, with what may nearly be right."""
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.25:
            continue
        if field.message_type is not None:
            for _ in range(dice.randint(0, 9) if field.is_repeated else 1):
                target = getattr(message, field.name)
                scramble(target.add() if field.is_repeated else target, dice, depth + 1)
            continue
        values = [_value(field, dice) for _ in range(dice.randint(0, 5) if field.is_repeated else 1)]
        if field.is_repeated:
            getattr(message, field.name).extend(values)
        else:
            setattr(message, field.name, values[0])


def _value(field: object, dice: random.Random) -> object:
    kinds = {
        field.CPPTYPE_STRING: lambda: dice.choice(WORDS),
        field.CPPTYPE_UINT64: lambda: dice.choice((0, 1, 9, 2**31, 2**63, 2**64 - 1)),
        field.CPPTYPE_UINT32: lambda: dice.choice((0, 1, 100, 2**32 - 1)),
        field.CPPTYPE_ENUM: lambda: dice.choice((0, 1, 2, 3, 17)),
        field.CPPTYPE_BOOL: lambda: dice.random() < 0.5,
        field.CPPTYPE_DOUBLE: lambda: dice.choice((0.0, -1.0, float("nan"))),
    }
    if field.type == field.TYPE_BYTES:
        return dice.randbytes(dice.randint(0, 200))
    return kinds[field.cpp_type]()


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
@pytest.mark.parametrize("kind", ["messages", "bytes"])
def test_whatever_is_sent_is_answered_and_never_by_a_failure(
    rig: RegistryRig, person: Person, method: str, kind: str
) -> None:
    dice, found = random.Random(f"{method} {kind}"), set()
    described = SERVICE.methods_by_name[method]
    request_class = getattr(messages, described.input_type.name)
    with channel_of(rig) as channel:
        shape = (
            f"{'stream' if method == 'Upload' else 'unary'}_{'stream' if method in ('Download', 'Index') else 'unary'}"
        )
        call = getattr(channel, shape)(f"/{SERVICE.full_name}/{method}")
        for _ in range(60):
            requests = []
            for _ in range(dice.randint(1, 3) if method == "Upload" else 1):
                message = request_class()
                scramble(message, dice)
                data = message.SerializeToString()
                requests.append(data if kind == "messages" else dice.randbytes(dice.randint(1, 80)) + data[:40])
            sent = iter(requests) if method == "Upload" else requests[0]
            try:
                reply = call(sent, metadata=person.metadata, timeout=20)
                if shape.endswith("stream"):
                    list(reply)
                found.add("OK")
            except grpc.RpcError as error:
                found.add(error.code().name)
    assert found <= EXPECTED
    assert person.search() == ["blue/spring@1.0.0"] or method == "Yank"
