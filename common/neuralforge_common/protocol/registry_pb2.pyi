from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Visibility(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VISIBILITY_UNSPECIFIED: _ClassVar[Visibility]
    PUBLIC: _ClassVar[Visibility]
    TEAM: _ClassVar[Visibility]
    PRIVATE: _ClassVar[Visibility]

class Scope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCOPE_UNSPECIFIED: _ClassVar[Scope]
    READ: _ClassVar[Scope]
    PUBLISH: _ClassVar[Scope]
    ADMIN: _ClassVar[Scope]
VISIBILITY_UNSPECIFIED: Visibility
PUBLIC: Visibility
TEAM: Visibility
PRIVATE: Visibility
SCOPE_UNSPECIFIED: Scope
READ: Scope
PUBLISH: Scope
ADMIN: Scope

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TeamScope(_message.Message):
    __slots__ = ("team", "scope")
    TEAM_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    team: str
    scope: Scope
    def __init__(self, team: _Optional[str] = ..., scope: _Optional[_Union[Scope, str]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("blob_bytes", "team_bytes", "versions", "part_bytes", "files", "tags")
    BLOB_BYTES_FIELD_NUMBER: _ClassVar[int]
    TEAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    PART_BYTES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    blob_bytes: int
    team_bytes: int
    versions: int
    part_bytes: int
    files: int
    tags: int
    def __init__(self, blob_bytes: _Optional[int] = ..., team_bytes: _Optional[int] = ..., versions: _Optional[int] = ..., part_bytes: _Optional[int] = ..., files: _Optional[int] = ..., tags: _Optional[int] = ...) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("registry", "server_version", "protocol", "server_time", "caller", "teams", "member_port", "index_key_pem", "limits")
    REGISTRY_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    TEAMS_FIELD_NUMBER: _ClassVar[int]
    MEMBER_PORT_FIELD_NUMBER: _ClassVar[int]
    INDEX_KEY_PEM_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    registry: str
    server_version: str
    protocol: int
    server_time: float
    caller: str
    teams: _containers.RepeatedCompositeFieldContainer[TeamScope]
    member_port: int
    index_key_pem: bytes
    limits: Limits
    def __init__(self, registry: _Optional[str] = ..., server_version: _Optional[str] = ..., protocol: _Optional[int] = ..., server_time: _Optional[float] = ..., caller: _Optional[str] = ..., teams: _Optional[_Iterable[_Union[TeamScope, _Mapping]]] = ..., member_port: _Optional[int] = ..., index_key_pem: _Optional[bytes] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("name", "sha256", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: str
    size: int
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class BeginPublishRequest(_message.Message):
    __slots__ = ("team", "name", "version", "visibility", "tags", "languages", "files")
    TEAM_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    team: str
    name: str
    version: str
    visibility: Visibility
    tags: _containers.RepeatedScalarFieldContainer[str]
    languages: _containers.RepeatedScalarFieldContainer[str]
    files: _containers.RepeatedCompositeFieldContainer[File]
    def __init__(self, team: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., visibility: _Optional[_Union[Visibility, str]] = ..., tags: _Optional[_Iterable[str]] = ..., languages: _Optional[_Iterable[str]] = ..., files: _Optional[_Iterable[_Union[File, _Mapping]]] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("sha256", "bytes")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    bytes: int
    def __init__(self, sha256: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class BeginPublishReply(_message.Message):
    __slots__ = ("upload", "held", "expires")
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    upload: str
    held: _containers.RepeatedCompositeFieldContainer[Held]
    expires: float
    def __init__(self, upload: _Optional[str] = ..., held: _Optional[_Iterable[_Union[Held, _Mapping]]] = ..., expires: _Optional[float] = ...) -> None: ...

class UploadStart(_message.Message):
    __slots__ = ("upload", "sha256", "offset")
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    upload: str
    sha256: str
    offset: int
    def __init__(self, upload: _Optional[str] = ..., sha256: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class UploadPart(_message.Message):
    __slots__ = ("start", "data")
    START_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    start: UploadStart
    data: bytes
    def __init__(self, start: _Optional[_Union[UploadStart, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class FinishPublishRequest(_message.Message):
    __slots__ = ("upload",)
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    upload: str
    def __init__(self, upload: _Optional[str] = ...) -> None: ...

class FinishPublishReply(_message.Message):
    __slots__ = ("team", "name", "version", "digest")
    TEAM_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    team: str
    name: str
    version: str
    digest: str
    def __init__(self, team: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("team", "name", "version", "visibility", "tags", "languages", "files", "digest", "size", "signer", "publisher", "published", "yanked", "yank_reason", "downloads", "description", "author", "license", "base_model", "base_fingerprint", "allow_worse")
    TEAM_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_FIELD_NUMBER: _ClassVar[int]
    YANKED_FIELD_NUMBER: _ClassVar[int]
    YANK_REASON_FIELD_NUMBER: _ClassVar[int]
    DOWNLOADS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    LICENSE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    BASE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ALLOW_WORSE_FIELD_NUMBER: _ClassVar[int]
    team: str
    name: str
    version: str
    visibility: Visibility
    tags: _containers.RepeatedScalarFieldContainer[str]
    languages: _containers.RepeatedScalarFieldContainer[str]
    files: _containers.RepeatedCompositeFieldContainer[File]
    digest: str
    size: int
    signer: str
    publisher: str
    published: float
    yanked: bool
    yank_reason: str
    downloads: int
    description: str
    author: str
    license: str
    base_model: str
    base_fingerprint: str
    allow_worse: bool
    def __init__(self, team: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., visibility: _Optional[_Union[Visibility, str]] = ..., tags: _Optional[_Iterable[str]] = ..., languages: _Optional[_Iterable[str]] = ..., files: _Optional[_Iterable[_Union[File, _Mapping]]] = ..., digest: _Optional[str] = ..., size: _Optional[int] = ..., signer: _Optional[str] = ..., publisher: _Optional[str] = ..., published: _Optional[float] = ..., yanked: _Optional[bool] = ..., yank_reason: _Optional[str] = ..., downloads: _Optional[int] = ..., description: _Optional[str] = ..., author: _Optional[str] = ..., license: _Optional[str] = ..., base_model: _Optional[str] = ..., base_fingerprint: _Optional[str] = ..., allow_worse: _Optional[bool] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("text", "tags", "language", "base_model", "team", "limit", "after")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    TEAM_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    text: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    language: str
    base_model: str
    team: str
    limit: int
    after: str
    def __init__(self, text: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., language: _Optional[str] = ..., base_model: _Optional[str] = ..., team: _Optional[str] = ..., limit: _Optional[int] = ..., after: _Optional[str] = ...) -> None: ...

class SearchReply(_message.Message):
    __slots__ = ("releases", "next")
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    releases: _containers.RepeatedCompositeFieldContainer[Release]
    next: str
    def __init__(self, releases: _Optional[_Iterable[_Union[Release, _Mapping]]] = ..., next: _Optional[str] = ...) -> None: ...

class ResolveRequest(_message.Message):
    __slots__ = ("team", "name", "version")
    TEAM_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    team: str
    name: str
    version: str
    def __init__(self, team: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("team", "name", "version", "file", "offset")
    TEAM_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    team: str
    name: str
    version: str
    file: str
    offset: int
    def __init__(self, team: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., file: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class YankRequest(_message.Message):
    __slots__ = ("team", "name", "version", "reason")
    TEAM_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    team: str
    name: str
    version: str
    reason: str
    def __init__(self, team: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class YankReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class IndexRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
