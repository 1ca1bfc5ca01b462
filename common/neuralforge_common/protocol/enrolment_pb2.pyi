from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class AuthorityRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AuthorityReply(_message.Message):
    __slots__ = ("certificate_pem", "server_time", "protocol", "server_version")
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    server_time: float
    protocol: int
    server_version: str
    def __init__(self, certificate_pem: _Optional[bytes] = ..., server_time: _Optional[float] = ..., protocol: _Optional[int] = ..., server_version: _Optional[str] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("token", "signing_request_pem", "identity")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SIGNING_REQUEST_PEM_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    token: str
    signing_request_pem: bytes
    identity: bytes
    def __init__(self, token: _Optional[str] = ..., signing_request_pem: _Optional[bytes] = ..., identity: _Optional[bytes] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("name", "certificate_pem", "federation", "member_port", "fleet_port")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    MEMBER_PORT_FIELD_NUMBER: _ClassVar[int]
    FLEET_PORT_FIELD_NUMBER: _ClassVar[int]
    name: str
    certificate_pem: bytes
    federation: str
    member_port: int
    fleet_port: int
    def __init__(self, name: _Optional[str] = ..., certificate_pem: _Optional[bytes] = ..., federation: _Optional[str] = ..., member_port: _Optional[int] = ..., fleet_port: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("federation", "name", "server_version", "protocol", "fleet_port", "server_time")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FLEET_PORT_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_FIELD_NUMBER: _ClassVar[int]
    federation: str
    name: str
    server_version: str
    protocol: int
    fleet_port: int
    server_time: float
    def __init__(self, federation: _Optional[str] = ..., name: _Optional[str] = ..., server_version: _Optional[str] = ..., protocol: _Optional[int] = ..., fleet_port: _Optional[int] = ..., server_time: _Optional[float] = ...) -> None: ...

class RotateKeyRequest(_message.Message):
    __slots__ = ("signing_request_pem", "time", "signature")
    SIGNING_REQUEST_PEM_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    signing_request_pem: bytes
    time: float
    signature: bytes
    def __init__(self, signing_request_pem: _Optional[bytes] = ..., time: _Optional[float] = ..., signature: _Optional[bytes] = ...) -> None: ...

class RotateKeyReply(_message.Message):
    __slots__ = ("certificate_pem",)
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    def __init__(self, certificate_pem: _Optional[bytes] = ...) -> None: ...
