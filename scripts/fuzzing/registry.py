"""A registry that answers on loopback, for `scripts/fuzz.py`: an input is a call or a stream, and what must hold after.

The first byte of an input says who calls (`CALLERS`). What follows is the request; of Upload, each message with two
bytes of length before it; of `publishing`, a walk over three methods, each step a letter, two bytes of length, and the
request. Keys and names are the same each time, so an input that was found once finds the same uploads again.

After every call: the status is a refusal or OK, never a failure; nobody was told of what is private to others; and
every version that can be seen is whole, and signed. Then everything is put back, so that no input depends on another.
"""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message

from fuzzing.adapters import KEY, Upload, make_upload
from fuzzing.calls import Finding, ask
from fuzzing.framing import is_start, join, rearrange, split, steps_of, walk_of
from fuzzing.mutation import change_request, mutate
from fuzzing.place import ALICE, CALLERS, STRANGERS, serve
from neuralforge_common.protocol import registry_pb2 as messages
from neuralforge_common.registry.index import read_index
from neuralforge_common.registry.release import ReleaseName
from neuralforge_common.signing.verify import only, verify_adapter
from neuralforge_server.registry import schema
from neuralforge_server.registry.access import Caller

SERVICE = messages.DESCRIPTOR.services_by_name["Registry"]
PUBLISHING = "registry.publishing"

_REFUSALS = frozenset(
    {
        *("INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
        *("ALREADY_EXISTS", "DATA_LOSS", "ABORTED"),
    }
)
_WRITING = ("registry.BeginPublish", "registry.Upload", "registry.FinishPublish", PUBLISHING)
_SECRET = b"hidden"
_EVERYTHING = Caller(teams={"blue": "admin", "red": "admin"})


class Harness:
    """A registry with a public and a private adapter, and four uploads under way: empty, torn, whole, unevaluated."""

    def __init__(self, target: str, place: Path, small: Path, *, quiet: bool) -> None:
        """`small` is an adapter's folder, `place` an empty one; `quiet` drops what the registry would log."""
        logging.disable(logging.ERROR if quiet else logging.NOTSET)
        self._target, self._place = target, place
        self._served = serve(place)
        self._registry = self._served.registry
        for name, visibility in (("spring", messages.PUBLIC), ("hidden", messages.PRIVATE)):
            self._finish(self._uploaded(make_upload(small, place, name, visibility=visibility)))
        self._known = self._visible()
        self._ready = make_upload(small, place, "spring", version="1.1.0")
        torn = make_upload(small, place, "spring", version="1.2.0")
        empty = self._begin(make_upload(small, place, "spring", version="1.3.0"))
        whole = self._uploaded(make_upload(small, place, "spring", version="1.5.0"))
        refused = self._uploaded(make_upload(small, place, "spring", version="1.4.0", evaluation=None))
        self._torn = self._begin(torn), torn
        largest = max(torn.blobs, key=lambda digest: len(torn.blobs[digest]))
        self.call(ALICE, "Upload", torn.parts(self._torn[0], largest, 100))
        self._uploads = self._registry.uploads._folder
        shutil.copytree(self._uploads, place / "prepared")
        self._words = _words([empty, self._torn[0], whole, refused], [*self._ready.blobs, *torn.blobs])
        self._honest = self._seeds()

    def one(self, data: bytes) -> None:
        """One input; raises Finding."""
        if not data:
            return
        who, body = data[0] % len(CALLERS), data[1:]
        for method, sent in self._calls(body):
            self.call(who, method, sent)
        self._check_versions()
        if self._target in _WRITING or self._target == "registry.Yank":
            self._put_back()

    def mutate(self, data: bytes, most: int, seed: int) -> bytes:
        """Another input: now and then bytes as they come, else a field of a message that stays one."""
        dice, honest = random.Random(seed), self._honest  # noqa: S311
        return mutate(data, most, dice, honest=honest, callers=len(CALLERS), changed=self._changed)

    def seeds(self) -> list[bytes]:
        """Inputs to begin with: honest requests of every caller, and of Upload and `publishing` honest streams."""
        return self._honest

    def _seeds(self) -> list[bytes]:
        if self._target == "registry.FinishPublish":
            ids = sorted(each.name for each in self._uploads.iterdir())
            bodies = [messages.FinishPublishRequest(upload=each).SerializeToString() for each in ids]
        else:
            bodies = [self._body()]
        return [bytes([who]) + body for who in range(len(CALLERS)) for body in bodies]

    def call(self, who: int, method: str, sent: bytes | Iterable[Any]) -> bytes:
        """One call; returns all that came back, "" where it was refused. Raises Finding."""
        described = SERVICE.methods_by_name[method]
        if described.client_streaming:
            sent = [each if isinstance(each, bytes) else each.SerializeToString() for each in sent]
        elif isinstance(sent, Message):
            sent = sent.SerializeToString()
        answer = ask(self._served.channels[who], described, sent)
        if answer.status != "OK":
            if answer.status not in _REFUSALS:
                raise Finding(f"{method} answered {answer.status}: {answer.details}")
            return b""
        self._check_told(who, method, answer.replies)
        return b"".join(answer.replies)

    def _calls(self, body: bytes) -> Iterator[tuple[str, bytes | list[bytes]]]:
        if self._target != PUBLISHING:
            method = self._target.partition(".")[2]
            yield method, split(body) if method == "Upload" else body
            return
        steps = steps_of(body)
        number = 0
        while number < len(steps):
            letter, sent = steps[number]
            number += 1
            if letter != "Upload":
                yield letter, sent
                continue
            stream = [sent]  # an upload is as many messages as follow each other
            while number < len(steps) and steps[number][0] == "Upload" and not is_start(steps[number][1]):
                stream.append(steps[number][1])
                number += 1
            yield letter, stream

    def _changed(self, who: int, body: bytes, dice: random.Random) -> bytes:
        if self._target == PUBLISHING:
            steps = steps_of(body)
            rearrange(steps, dice)
            if steps:
                number = dice.randrange(len(steps))
                method, sent = steps[number]
                steps[number] = method, self._changed_message(method, sent, dice)
            return walk_of(steps)
        method = self._target.partition(".")[2]
        if method != "Upload":
            return self._changed_message(method, body, dice)
        parts = split(body)
        rearrange(parts, dice)
        if parts:
            number = dice.randrange(len(parts))
            parts[number] = self._changed_message(method, parts[number], dice)
        return join(parts)

    def _changed_message(self, method: str, data: bytes, dice: random.Random) -> bytes:
        return change_request(SERVICE.methods_by_name[method], data, dice, self._words)

    def _body(self) -> bytes:
        method, named = self._target.partition(".")[2], {"team": "blue", "name": "spring", "version": "1.0.0"}
        requests: dict[str, Message] = {
            "Describe": messages.DescribeRequest(),
            "BeginPublish": self._ready.request,
            "Search": messages.SearchRequest(text="spring", language="java", team="blue", after="blue/a", limit=3),
            "Resolve": messages.ResolveRequest(**named),
            "Download": messages.DownloadRequest(**named, file="lora_weights.bin", offset=1),
            "Yank": messages.YankRequest(**named, reason="wrong data"),
            "Index": messages.IndexRequest(),
        }
        if method in requests:
            return requests[method].SerializeToString()
        if method == "Upload":
            upload, torn = self._torn
            digest = min(torn.blobs, key=lambda each: len(torn.blobs[each]))
            return join([part.SerializeToString() for part in torn.parts(upload, digest)])
        begun = messages.BeginPublishReply.FromString(self.call(ALICE, "BeginPublish", self._ready.request))
        upload, wanted = begun.upload, [each.sha256 for each in begun.held if not each.bytes]
        self._put_back()
        steps: list[tuple[str, Message]] = [("BeginPublish", self._ready.request)]
        steps += [("Upload", part) for digest in wanted for part in self._ready.parts(upload, digest)]
        steps += [("FinishPublish", messages.FinishPublishRequest(upload=upload))]
        walk = walk_of([(method, message.SerializeToString()) for method, message in steps])
        if not all([self.call(ALICE, *step) for step in self._calls(walk)]) or self._visible() == self._known:
            raise Finding("an honest walk published nothing")
        self._put_back()
        return walk

    def _begin(self, wanted: Upload) -> str:
        reply = messages.BeginPublishReply.FromString(self.call(ALICE, "BeginPublish", wanted.request))
        return str(reply.upload)

    def _uploaded(self, wanted: Upload) -> str:
        upload = self._begin(wanted)
        for digest in wanted.blobs:
            self.call(ALICE, "Upload", wanted.parts(upload, digest))
        return upload

    def _finish(self, upload: str) -> None:
        if not self.call(ALICE, "FinishPublish", messages.FinishPublishRequest(upload=upload)):
            raise Finding("an honest adapter was refused")

    def _visible(self) -> frozenset[tuple[str, str, str]]:
        found = self._registry.releases.visible(_EVERYTHING, most=1000)
        return frozenset((each.team, each.name, each.version) for each in found)

    def _check_told(self, who: int, method: str, replies: tuple[bytes, ...]) -> None:
        """What is private stays so."""
        if CALLERS[who] not in STRANGERS:
            return
        told = b"".join(replies)
        if method == "Index":
            data = b"".join(messages.Part.FromString(each).data for each in replies)
            told = repr(read_index(data, self._registry.index.key).entries).encode()
        if method in ("Search", "Resolve", "Download", "Index", "Yank") and _SECRET in told:
            raise Finding(f"{method} told {CALLERS[who]} of what is private to others")

    def _check_versions(self) -> None:
        """Every version that can be seen is whole, down to the signature."""
        seen = self._visible()
        if missing := self._known - seen:
            raise Finding(f"a version is gone: {missing}")
        for team, name, version in seen - self._known:
            wanted = ReleaseName.parse(f"{team}/{name}@{version}")
            found = self._registry.releases.resolve(wanted, _EVERYTHING)
            with tempfile.TemporaryDirectory(dir=self._place) as folder:
                for file in found.files:
                    whole = b"".join(self._registry.blobs.read(file.sha256, file.size))
                    (Path(folder) / file.name).write_bytes(whole)
                metadata = verify_adapter(Path(folder), only(KEY.public)).adapter.metadata
            if (metadata.name, metadata.version) != (name, version):
                raise Finding(f"{team}/{name}@{version} is {metadata.name} {metadata.version}")

    def _put_back(self) -> None:
        shutil.rmtree(self._uploads)
        shutil.copytree(self._place / "prepared", self._uploads)
        with self._registry.database.writing() as connection:
            table = schema.releases
            if self._target == "registry.Yank":
                connection.execute(sa.update(table).values(yanked=None, yank_reason=""))
                return
            strange = sa.select(table.c.id).where(table.c.version != "1.0.0").scalar_subquery()
            for other in (schema.files, schema.tags):
                connection.execute(sa.delete(other).where(other.c.release.in_(strange)))
            connection.execute(sa.delete(table).where(table.c.version != "1.0.0"))


def _words(uploads: list[str], digests: list[str]) -> tuple[str, ...]:
    """Texts that a field may nearly rightly hold."""
    return (
        *("", "blue", "red", "green", "spring", "hidden", "1.0.0", "1.1.0", "1.2.0-rc.1", "1.1.0+again", "java"),
        *("model.sig", "metadata.json", "adapter_model.safetensors", "adapter_config.json", "../index.key", "\0", "é"),
        *("x" * 300, "blue/spring", "'; DROP TABLE releases; --", "%", "9" * 40 + ".0.0", "f" * 64, "\u202e"),
        *(*uploads, *digests),
    )
