from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("incarnation", "body")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    body: bytes
    def __init__(self, incarnation: _Optional[int] = ..., body: _Optional[bytes] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("nonce", "mac", "method", "body")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    mac: bytes
    method: str
    body: bytes
    def __init__(self, nonce: _Optional[str] = ..., mac: _Optional[bytes] = ..., method: _Optional[str] = ..., body: _Optional[bytes] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("ok", "body", "mac")
    OK_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    body: bytes
    mac: bytes
    def __init__(self, ok: _Optional[bool] = ..., body: _Optional[bytes] = ..., mac: _Optional[bytes] = ...) -> None: ...
