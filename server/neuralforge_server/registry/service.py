"""The service of protos/neuralforge_common/protocol/registry.proto."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from neuralforge_common import __version__
from neuralforge_common.errors import RegistryError
from neuralforge_common.folder import SIGNATURE
from neuralforge_common.plan import PROTOCOL
from neuralforge_common.protocol import registry_pb2 as messages
from neuralforge_common.protocol import registry_pb2_grpc as services
from neuralforge_common.registry.release import (
    RELEASE_FILES,
    ReleaseName,
    Version,
    check_tags,
    check_team,
    release_digest,
)
from neuralforge_common.signing.keyring_file import read_keyring
from neuralforge_common.strict_json import shortened
from neuralforge_server.registry import wire
from neuralforge_server.registry.access import Caller
from neuralforge_server.registry.admit import admit
from neuralforge_server.registry.answers import answering
from neuralforge_server.registry.callers import Who
from neuralforge_server.registry.place import Registry
from neuralforge_server.registry.published import Release, Wanted
from neuralforge_server.registry.releases import absent, taken, total
from neuralforge_server.registry.requests import (
    MAX_TAGS,
    PART_BYTES,
    check_line,
    malformed,
    upload_data,
    upload_request,
)
from neuralforge_server.registry.streams import Streams
from neuralforge_server.registry.uploads import UploadRequest

MAX_MESSAGE_BYTES = 2**20
MAX_WORDS = 10

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the service tells of this registry."""

    registry: str
    member_port: int


class RegistryService(services.RegistryServicer):
    """One registry, behind one way of knowing who calls."""

    def __init__(
        self,
        registry: Registry,
        who: Who,
        facts: Facts,
        streams: Streams,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry, self._who, self._facts, self._streams, self._clock = registry, who, facts, streams, clock

    def Describe(self, request: messages.DescribeRequest, context: grpc.ServicerContext) -> messages.DescribeReply:
        """Who the registry is, and whom it takes the caller for."""
        with answering(context, self._who, "describe") as caller:
            quota = self._registry.quota
            return messages.DescribeReply(
                registry=self._facts.registry,
                server_version=__version__,
                protocol=PROTOCOL,
                server_time=self._clock(),
                caller=caller.name,
                teams=[
                    messages.TeamScope(team=team, scope=wire.SCOPES[scope])
                    for team, scope in sorted(caller.teams.items())
                ],
                member_port=self._facts.member_port,
                index_key_pem=self._registry.index.key.pem,
                limits=messages.Limits(
                    blob_bytes=quota.blob_bytes,
                    team_bytes=quota.team_bytes,
                    versions=quota.versions,
                    part_bytes=PART_BYTES,
                    files=len(RELEASE_FILES),
                    tags=MAX_TAGS,
                ),
            )

    def BeginPublish(
        self, request: messages.BeginPublishRequest, context: grpc.ServicerContext
    ) -> messages.BeginPublishReply:
        """An upload, and how much of it is here already."""
        with answering(context, self._who, "begin") as caller:
            wanted = upload_request(request, caller, self._registry.quota)
            _need(caller, wanted.team)
            room = self._registry.releases.check_free(wanted.release, wanted.files)
            uploads = self._registry.uploads
            uploads.sweep()
            upload = uploads.begin(wanted, most=self._registry.quota.uploads, room=room)
            # What the caller could download need not travel. Of what others have nothing is said: that it is there
            # would tell of it, and whoever knew its digest could publish, and then pull, what they never had.
            with uploads.alone(upload):
                for digest in sorted(self._registry.releases.blobs_of(caller, [*wanted.sizes])):
                    try:
                        uploads.adopt(upload, digest, self._registry.blobs.read(digest, wanted.sizes[digest]))
                    except RegistryError as error:  # damaged here: then it travels, and mends what is here
                        _LOG.error("%s", error.message)
                held = uploads.held(upload, wanted)
            return messages.BeginPublishReply(
                upload=upload,
                held=[messages.Held(sha256=d, bytes=size) for d, size in held.items()],
                expires=uploads.expires(),
            )

    def Upload(
        self, request_iterator: Iterator[messages.UploadPart], context: grpc.ServicerContext
    ) -> messages.UploadReply:
        """More of a blob."""
        with answering(context, self._who, "upload") as caller, self._streams.one(context):
            first = next(request_iterator, messages.UploadPart())
            if first.WhichOneof("what") != "start":
                raise malformed("the first message of an upload says which blob it is of")
            start = first.start
            wanted = self._registry.uploads.request(start.upload, caller.name)
            _need(caller, wanted.team)
            held = self._registry.uploads.receive(
                start.upload, wanted, start.sha256, start.offset, upload_data(request_iterator)
            )
            return messages.UploadReply(bytes=held)

    def FinishPublish(
        self, request: messages.FinishPublishRequest, context: grpc.ServicerContext
    ) -> messages.FinishPublishReply:
        """The version is checked, and then there."""
        with answering(context, self._who, "publish", refusal=grpc.StatusCode.FAILED_PRECONDITION) as caller:
            uploads, releases = self._registry.uploads, self._registry.releases
            wanted = uploads.request(request.upload, caller.name)
            _need(caller, wanted.team)
            digest = release_digest(wanted.files)
            with uploads.alone(request.upload), self._registry.checking():
                there = releases.published(wanted.release)
                # The answer may have been lost: then the version is there, and the same one.
                if there is None:
                    self._publish(request.upload, wanted, digest)
                elif (there.digest, there.publisher) != (digest, caller.name):
                    raise taken(wanted.release)
                uploads.finish(request.upload)
            return messages.FinishPublishReply(
                team=wanted.team, name=wanted.name, version=wanted.version, digest=digest
            )

    def Search(self, request: messages.SearchRequest, context: grpc.ServicerContext) -> messages.SearchReply:
        """One entry for an adapter."""
        with answering(context, self._who, "search") as caller:
            limit = request.limit or 20
            if limit > 100:
                raise malformed(f"limit: at most 100, got {limit:,}")
            for text in (request.text, request.base_model):
                check_line("a text", text)
            if len(request.text.split()) > MAX_WORDS:
                raise malformed(f"text: at most {MAX_WORDS} words")
            after = ReleaseName.parse(request.after) if request.after else None
            wanted = Wanted(
                text=request.text,
                tags=check_tags(request.tags, most=MAX_TAGS),
                language=check_tags([request.language])[0] if request.language else "",
                base_model=request.base_model,
                team=check_team(request.team) if request.team else "",
            )
            found = self._registry.releases.search(
                wanted, caller, limit=limit + 1, after=None if after is None else (after.team, after.name)
            )
            last = found[limit - 1] if len(found) > limit else None
            return messages.SearchReply(
                releases=[wire.release(each) for each in found[:limit]],
                next="" if last is None else f"{last.team}/{last.name}",
            )

    def Resolve(self, request: messages.ResolveRequest, context: grpc.ServicerContext) -> messages.Release:
        """One version with its files."""
        with answering(context, self._who, "resolve") as caller:
            return wire.release(self._resolve(request.team, request.name, request.version, caller))

    def Download(self, request: messages.DownloadRequest, context: grpc.ServicerContext) -> Iterator[messages.Part]:
        """One file, from an offset on."""
        with answering(context, self._who, "download") as caller, self._streams.one(context):
            if not request.version:
                raise malformed("version: wanted the one that Resolve gave")
            found = self._resolve(request.team, request.name, request.version, caller)
            file = next((each for each in found.files if each.name == request.file), None)
            if file is None:
                raise absent()
            if request.offset > file.size:
                raise malformed(f"offset: {request.file} has {file.size:,} bytes, got {request.offset:,}")
            for chunk in self._registry.blobs.read(file.sha256, file.size, offset=request.offset):
                yield messages.Part(data=chunk)
            if file.name == SIGNATURE:
                self._registry.releases.count_download(found, caller)

    def Yank(self, request: messages.YankRequest, context: grpc.ServicerContext) -> messages.YankReply:
        """A version is no longer found."""
        with answering(context, self._who, "yank") as caller:
            check_line("reason", request.reason)
            if not request.version:
                raise malformed("version: wanted the one to yank")
            name = ReleaseName(team=request.team, name=request.name, version=Version(request.version))
            self._registry.releases.yank(name, caller, reason=request.reason)
            return messages.YankReply()

    def Index(self, request: messages.IndexRequest, context: grpc.ServicerContext) -> Iterator[messages.Part]:
        """The signed index, in parts."""
        with answering(context, self._who, "index") as caller, self._streams.one(context):
            data = self._registry.index.signed(caller)
            for start in range(0, len(data), PART_BYTES):
                yield messages.Part(data=data[start : start + PART_BYTES])

    def _resolve(self, team: str, name: str, version: str, caller: Caller) -> Release:
        wanted = ReleaseName(team=team, name=name, version=Version(version) if version else None)
        return self._registry.releases.resolve(wanted, caller)

    def _publish(self, upload: str, wanted: UploadRequest, digest: str) -> None:
        uploads, now = self._registry.uploads, self._clock()
        with uploads.assembled(upload, wanted) as folder:
            verified = admit(
                folder,
                wanted,
                read_keyring(self._registry.keyring),
                now=datetime.datetime.fromtimestamp(now, datetime.UTC),
            )
            # Blobs first, then the version: what nobody names is invisible, and swept.
            for blob in sorted(wanted.sizes):
                self._registry.blobs.put(blob, uploads.blob(upload, blob))
        metadata = verified.adapter.metadata
        self._registry.releases.add(
            Release(
                team=wanted.team,
                name=wanted.name,
                version=wanted.version,
                visibility=wanted.visibility,
                digest=digest,
                size=total(wanted.files),
                signer=verified.key.fingerprint,
                publisher=wanted.publisher,
                published=now,
                description=metadata.description,
                author=metadata.author,
                license=metadata.license,
                base_model=metadata.base_model,
                base_fingerprint=metadata.base_fingerprint,
                allow_worse=metadata.allow_worse,
                tags=wanted.tags,
                languages=wanted.languages,
                files=wanted.files,
            )
        )
        _LOG.info("%s published %s, %s", wanted.publisher, wanted.release, wanted.visibility)


def _need(caller: Caller, team: str) -> None:
    if not caller.may("publish", team):
        raise RegistryError(
            f"you may not publish for {shortened(team)}",
            hint="whoever runs the registry: nf-server registry team add TEAM --member NAME, or a token for it",
            status="PERMISSION_DENIED",
        )
