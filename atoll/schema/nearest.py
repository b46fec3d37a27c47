"""The known word that is nearest to an unknown one, for messages about misspelt keys.

The distance is that of Damerau and Levenshtein in its common restricted form ("optimal string alignment"): letters put in,
left out, changed, or two neighbours swapped, each at 1. Swaps count as one because they are what hands do most.
"""

from __future__ import annotations

from collections.abc import Iterable


def distance(a: str, b: str) -> int:
    """How many edits lead from `a` to `b`."""
    before, row = [0] * (len(b) + 1), list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        older, before, row = before, row, [i] + [0] * len(b)
        for j, other in enumerate(b, 1):
            row[j] = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                row[j] = min(row[j], older[j - 2] + 1)
    return row[-1]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The word of `known` that takes the fewest edits, the first by name where several do; None where none is known."""
    return min(known, key=lambda k: (distance(word.lower(), k.lower()), k), default=None)
