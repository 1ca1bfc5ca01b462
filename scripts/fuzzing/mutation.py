"""A message with one field that is another: how `scripts/fuzz.py` changes requests that stay requests."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_WHOLE = (0, 1, 2, 9, 100, 101, 2**31 - 1, 2**31, 2**32 - 1)
_LARGE = (*_WHOLE, 2**63 - 1, 2**63, 2**64 - 1)
_FIELD = FieldDescriptor


def change(message: Message, dice: random.Random, words: tuple[str, ...]) -> None:
    """Sets, clears, repeats or alters one field of a message, or of one in it; `words` are texts to try."""
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field = dice.choice(fields)
    if dice.random() < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated:
        _change_repeated(getattr(message, field.name), field, dice, words)
    elif field.message_type is not None:
        change(getattr(message, field.name), dice, words)
    else:
        setattr(message, field.name, _value(field, getattr(message, field.name), dice, words))


def _change_repeated(values: Any, field: FieldDescriptor, dice: random.Random, words: tuple[str, ...]) -> None:
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
        change(values[place], dice, words)
    else:
        values[place] = _value(field, values[place], dice, words)


def _value(field: FieldDescriptor, before: Any, dice: random.Random, words: tuple[str, ...]) -> Any:
    if field.type == _FIELD.TYPE_STRING:
        return _text(before or "", dice) if dice.random() < 0.3 else dice.choice(words)
    if field.type == _FIELD.TYPE_BYTES:
        return _bytes(before or b"", dice)
    if field.cpp_type == _FIELD.CPPTYPE_ENUM:
        return dice.choice((0, 1, 2, 3, 4, 2**31 - 1, -1))
    if field.cpp_type == _FIELD.CPPTYPE_BOOL:
        return not before
    if field.cpp_type in (_FIELD.CPPTYPE_DOUBLE, _FIELD.CPPTYPE_FLOAT):
        return dice.choice((0.0, -1.0, 1e300, float("inf"), float("nan")))
    limit = 2**64 if field.cpp_type == _FIELD.CPPTYPE_UINT64 else 2**32
    near = ((before or 0) + dice.choice((-1, 1))) % limit
    return near if dice.random() < 0.3 else dice.choice(_LARGE if limit == 2**64 else _WHOLE)


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
