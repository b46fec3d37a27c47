"""What two steps have unlike, from their records alone: digests tell whether a tensor's values are the same.

A digest does not depend on how a tensor was divided, nor on who wrote it, so steps of runs of any size compare.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from atoll.checkpoint.manifest import TensorRecord


class Unlike(enum.StrEnum):
    """How."""

    ONLY_FIRST = "only in the first"
    ONLY_SECOND = "only in the second"
    FORM = "other type or shape"
    VALUES = "other values"
    TREE = "other value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One tensor, or one place of the tree, that is not alike in both."""

    name: str
    how: Unlike
    detail: str = ""

    def line(self) -> str:
        """For a person."""
        return f"{self.name}: {self.how}" + (f": {self.detail}" if self.detail else "")


def tensor_differences(first: Mapping[str, TensorRecord], second: Mapping[str, TensorRecord]) -> list[Difference]:
    """The tensors of two steps, by name."""
    found = []
    for name in sorted(first.keys() | second.keys()):
        if name not in second:
            found.append(Difference(name=name, how=Unlike.ONLY_FIRST, detail=_form(first[name])))
        elif name not in first:
            found.append(Difference(name=name, how=Unlike.ONLY_SECOND, detail=_form(second[name])))
        elif first[name].logical != second[name].logical:
            detail = f"{_form(first[name])}, {_form(second[name])}"
            found.append(Difference(name=name, how=Unlike.FORM, detail=detail))
        elif first[name].digest != second[name].digest:
            detail = f"digest {first[name].digest}, {second[name].digest}"
            found.append(Difference(name=name, how=Unlike.VALUES, detail=detail))
    return found


def tree_differences(first: Any, second: Any, path: str = "") -> Iterator[Difference]:
    """The rest of the state: values by their paths."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted(first.keys() | second.keys()):
            at = f"{path}.{key}" if path else key
            if key not in second:
                yield Difference(name=at, how=Unlike.ONLY_FIRST)
            elif key not in first:
                yield Difference(name=at, how=Unlike.ONLY_SECOND)
            else:
                yield from tree_differences(first[key], second[key], at)
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for at, (one, other) in enumerate(zip(first, second, strict=True)):
            yield from tree_differences(one, other, f"{path}.{at}")
    elif type(first) is not type(second) or (first != second and not (_is_nan(first) and _is_nan(second))):
        yield Difference(name=path, how=Unlike.TREE, detail=f"{_short(first)}, {_short(second)}")


def _is_nan(value: Any) -> bool:
    """A step that is compared with itself has no difference, whatever it holds."""
    return isinstance(value, float) and math.isnan(value)


def _form(one: TensorRecord) -> str:
    return f"{one.dtype}{list(one.shape)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."  # noqa: PLR2004 - so much still reads as one line
