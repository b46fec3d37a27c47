"""Numbers that askers name: none is larger than what those who look for it can hold."""

from __future__ import annotations

# What a SQL integer holds: a larger number is nobody's place in anything.
LAST = (1 << 63) - 1
# More than any file holds, less than any integer type of those who read it.
_DIGITS = 18


def is_place(text: str) -> bool:
    """Whether `text` is a number that something can stand at: a count of bytes, of events, of steps."""
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS
