"""Text to tokens and back, piece by piece: bytes, or a `tokenizer.json` read from a file."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any, Protocol

from atoll.errors import ScriptNotFound, SpecError

_BYTES = 256
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    """Turns a stream of tokens into pieces of text."""

    def feed(self, token: int) -> str:
        """The text that is certain now; empty while a character is incomplete."""
        ...

    def flush(self) -> str:
        """What is left at the end."""
        ...


class Tokenizer(Protocol):
    """One vocabulary."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids."""
        ...

    def decoder(self) -> Decoder:
        """A fresh stream."""
        ...


def load(name: str, directory: Path) -> Tokenizer:
    """`bytes`, or the path of a tokenizer.json relative to `directory`. Raises `ScriptNotFound`, `SpecError`."""
    if name == "bytes":
        return BytesTokenizer()
    path = directory / name
    if not path.is_file():
        raise ScriptNotFound(f"tokenizer={name!r}: no file {path}; give 'bytes' or the path of a tokenizer.json")
    return FileTokenizer(path)


class BytesTokenizer:
    """Each byte of UTF-8 is a token."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids from 0 to 255."""
        return tuple(text.encode())

    def decoder(self) -> Decoder:
        """A fresh stream."""
        return _BytesDecoder()


class _BytesDecoder:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        # A model may have more tokens than there are bytes, for ends and the like: they are no text.
        return self._decoder.decode(bytes([token])) if 0 <= token < _BYTES else ""

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class FileTokenizer:
    """A tokenizer of the `tokenizers` library."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Library  # noqa: PLC0415 - byte models do without

        try:
            self._library = Library.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
            raise SpecError(f"{path} is no tokenizer.json: {error}; save it with the `tokenizers` library") from None

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids, special tokens as the file says."""
        return tuple(self._library.encode(text).ids)

    def decoder(self) -> Decoder:
        """A fresh stream."""
        return _LibraryDecoder(self._library)


class _LibraryDecoder:
    """Gives out text once it does not end within a character.

    A token's text may depend on the token before it (a leading space), so that the last ones given out are decoded again
    with the new ones, and their text is taken off.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._given, self._new = list[int](), list[int]()

    def feed(self, token: int) -> str:
        self._new.append(token)
        text = self._text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._given, self._new = self._new, []
        return text

    def flush(self) -> str:
        text, self._given, self._new = self._text(), self._new, []
        return text

    def _text(self) -> str:
        before = str(self._library.decode(self._given))
        return str(self._library.decode(self._given + self._new))[len(before) :]
