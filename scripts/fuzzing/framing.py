"""Several messages in the bytes of one input: a stream, or a walk over methods; any bytes are one."""

from __future__ import annotations

import random
from typing import Any

_LETTERS = {ord("B"): "BeginPublish", ord("U"): "Upload", ord("F"): "FinishPublish"}


def rearrange(parts: list[Any], dice: random.Random) -> None:
    """Now and then a message comes twice, not at all, or in another's place."""
    if len(parts) < 2 or dice.random() < 0.6:
        return
    one, other, kind = dice.randrange(len(parts)), dice.randrange(len(parts)), dice.randrange(3)
    if kind == 0:
        parts.insert(one, parts[other])
    elif kind == 1:
        del parts[one]
    else:
        parts[one], parts[other] = parts[other], parts[one]


def is_start(data: bytes) -> bool:
    """Whether a message of Upload begins a blob."""
    return data[:1] == b"\x0a"  # field 1 of UploadPart


def split(data: bytes) -> list[bytes]:
    """The messages of a stream."""
    parts = []
    while len(data) > 1:
        size = int.from_bytes(data[:2], "big")
        parts.append(data[2 : 2 + size])
        data = data[2 + size :]
    return parts


def join(parts: list[bytes]) -> bytes:
    """The stream of messages; those of 64 KiB and more are left out."""
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts if len(part) < 2**16)


def steps_of(data: bytes) -> list[tuple[str, bytes]]:
    """The steps of a walk: methods and what each is sent."""
    letters, steps = [*_LETTERS], []
    while len(data) > 2:
        letter, size = data[0], int.from_bytes(data[1:3], "big")
        steps.append((_LETTERS.get(letter) or _LETTERS[letters[letter % 3]], data[3 : 3 + size]))
        data = data[3 + size :]
    return steps


def walk_of(steps: list[tuple[str, bytes]]) -> bytes:
    """The walk of steps."""
    letter = {method: bytes([code]) for code, method in _LETTERS.items()}
    return b"".join(letter[method] + join([sent]) for method, sent in steps if len(sent) < 2**16)
