"""Text to tokens and back, piece by piece: bytes, or a `tokenizer.json` read from a file."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any, Protocol

from atoll.errors import ScriptNotFound

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
    """`bytes`, or the path of a tokenizer.json relative to `directory`. Raises `ScriptNotFound`."""
    if name == "bytes":
        return BytesTokenizer()
    path = directory / name
    if not path.is_file():
        raise ScriptNotFound(f"tokenizer={name!r}: no file {path}; give 'bytes' or the path of a tokenizer.json")
    return FileTokenizer(path)


class BytesTokenizer:
    """Each byte of UTF-8 is a token."""

    def encode(self, text: str) -> tuple[int, ...]:
        """256 token ids."""
        return tuple(text.encode())

    def decoder(self) -> Decoder:
        """A fresh stream."""
        return _BytesDecoder()


class _BytesDecoder:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(bytes([token & 0xFF]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class FileTokenizer:
    """A tokenizer of the `tokenizers` library."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Library  # noqa: PLC0415 - byte models do without

        self._library = Library.from_file(str(path))

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids, special tokens as the file says."""
        return tuple(self._library.encode(text).ids)

    def decoder(self) -> Decoder:
        """A fresh stream."""
        return _LibraryDecoder(self._library)


class _LibraryDecoder:
    """Decodes a growing list and gives out what is new, once it does not end within a character."""

    def __init__(self, library: Any) -> None:
        self._library, self._tokens, self._given = library, list[int](), 0

    def feed(self, token: int) -> str:
        self._tokens.append(token)
        text = str(self._library.decode(self._tokens))
        return "" if text.endswith(_REPLACEMENT) else self._give(text)

    def flush(self) -> str:
        return self._give(str(self._library.decode(self._tokens)))

    def _give(self, text: str) -> str:
        new, self._given = text[self._given :], len(text)
        return new
