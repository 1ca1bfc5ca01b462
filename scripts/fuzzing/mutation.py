"""A message with one field that is another: how `scripts/fuzz.py` changes requests that stay requests."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import atheris
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

Words = tuple[str | bytes | float, ...]
"""What a field of their type may nearly rightly hold."""

_WHOLE = (0, 1, 2, 9, 100, 101, 2**31 - 1, 2**31, 2**32 - 1)
_LARGE = (*_WHOLE, 2**63 - 1, 2**63, 2**64 - 1)
_FIELD = FieldDescriptor


def mutate(
    data: bytes,
    most: int,
    dice: random.Random,
    *,
    honest: list[bytes],
    callers: int,
    changed: Callable[[int, bytes, random.Random], bytes],
) -> bytes:
    """Another input of a caller and what is sent: now and then bytes as they come, else what `changed` makes of it."""
    # libFuzzer changes an input five times in a row: too far from what is nearly right.
    if dice.random() < 0.4:
        data = dice.choice(honest)
    if len(data) < 2 or dice.random() < 0.25:
        return bytes(atheris.Mutate(data, most))
    who = data[0] if dice.random() < 0.8 else dice.randrange(callers)
    body = changed(who % callers, data[1:], dice)
    return bytes([who]) + body if len(body) < most else bytes(atheris.Mutate(data, most))


def change_request(method: MethodDescriptor, data: bytes, dice: random.Random, words: Words) -> bytes:
    """A method's request with one to three changes; bytes that are none stay as they are."""
    message = GetMessageClass(method.input_type)()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return data
    for _ in range(dice.randint(1, 3)):
        _change(message, dice, words)
    return bytes(message.SerializeToString())


def _change(message: Message, dice: random.Random, words: Words) -> None:
    """Sets, clears, repeats or alters one field of a message, or of one in it."""
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field = dice.choice(fields)
    if dice.random() < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated:
        _change_repeated(getattr(message, field.name), field, dice, words)
    elif field.message_type is not None:
        _change(getattr(message, field.name), dice, words)
    else:
        setattr(message, field.name, _value(field, getattr(message, field.name), dice, words))


def _change_repeated(values: Any, field: FieldDescriptor, dice: random.Random, words: Words) -> None:
    place = dice.randrange(len(values)) if len(values) else None
    if place is None or dice.random() < 0.2:
        for _ in range(dice.choice((1, 1, 1, 2, 30))):
            if field.message_type is not None:
                values.add()
            else:
                values.append(_value(field, None, dice, words))
    elif dice.random() < 0.2:
        del values[place]
    elif field.message_type is not None:
        _change(values[place], dice, words)
    else:
        values[place] = _value(field, values[place], dice, words)


def _value(field: FieldDescriptor, before: Any, dice: random.Random, words: Words) -> Any:
    if field.type == _FIELD.TYPE_STRING:
        return _text(before or "", dice) if dice.random() < 0.3 else dice.choice(_of(str, words))
    if field.type == _FIELD.TYPE_BYTES:
        likely = _of(bytes, words)
        return dice.choice(likely) if likely and dice.random() < 0.6 else _bytes(before or b"", dice)
    if field.cpp_type == _FIELD.CPPTYPE_ENUM:
        return dice.choice((0, 1, 2, 3, 4, 2**31 - 1, -1))
    if field.cpp_type == _FIELD.CPPTYPE_BOOL:
        return not before
    if field.cpp_type in (_FIELD.CPPTYPE_DOUBLE, _FIELD.CPPTYPE_FLOAT):
        return dice.choice([0.0, -1.0, 1e300, float("inf"), float("nan"), *_of(float, words)])
    limit = 2**64 if field.cpp_type == _FIELD.CPPTYPE_UINT64 else 2**32
    near = ((before or 0) + dice.choice((-1, 1))) % limit
    return near if dice.random() < 0.3 else dice.choice(_LARGE if limit == 2**64 else _WHOLE)


def _of(kind: type[Any], words: Words) -> list[Any]:
    return [word for word in words if isinstance(word, kind)]


def _text(text: str, dice: random.Random) -> str:
    place = dice.randrange(len(text) + 1)
    return text[:place] + dice.choice(("", "/", "..", "\0", "\n", "É", "-", "+", ".", "0", " ")) + text[place + 1 :]


def _bytes(data: bytes, dice: random.Random) -> bytes:
    place, kind = dice.randrange(len(data) + 1), dice.randrange(4)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + dice.randbytes(dice.randint(1, 64)) + data[place:]
    if kind == 2:
        return data * 2
    return data[:place] + bytes(byte ^ 1 << dice.randrange(8) for byte in data[place : place + 1]) + data[place + 1 :]
