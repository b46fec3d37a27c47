"""The lab file: TOML to `LabSpec`, with errors that name the file, the place and the value.

name = "two-islands"            # the file's own name unless given
head = true                     # an extra host for Ray's head; or the name of its network; or false

[networks.east]
rate = "500 Mbit/s"             # of each NIC on it; unshaped unless given

[[hosts]]
names = ["e0", "e1"]            # or name = "e0"
nics = { fast = "east", slow = { network = "wide", rate = "50 Mbit/s" } }
cpus = 0.5                      # quota in cores
num_cpus = 1                    # what the Ray node offers
labels = { island = "east" }

[[trunks]]
between = ["east", "west"]
rate = "100 Mbit/s"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from atoll.errors import SpecError
from atoll.lab.spec import HostSpec, LabSpec, Network, NicSpec, TrunkSpec, check, parse_rate, with_head

_TOP = {"name", "head", "networks", "hosts", "trunks", "shared"}
_HOST = {"name", "names", "nics", "cpus", "num_cpus", "labels"}


def parse(text: str, where: str, default_name: str = "lab") -> LabSpec:
    """The lab that `text` describes. `where` is the file's name for messages. Raises `SpecError`."""
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{where}: not TOML: {error}") from None
    _known(plain, _TOP, where)
    head = plain.get("head", True)
    if not isinstance(head, bool | str):
        raise SpecError(f"{where}: head = {head!r}; it is true, false or the name of a network")
    spec = LabSpec(
        name=_text(plain, "name", where, default_name),
        networks=tuple(_network(name, value, where) for name, value in _table(plain, "networks", where).items()),
        hosts=tuple(h for index, row in enumerate(_rows(plain, "hosts", where)) for h in _hosts(row, index, where)),
        trunks=tuple(_trunk(row, index, where) for index, row in enumerate(_rows(plain, "trunks", where))),
        head=head if isinstance(head, str) else None,
        shared=tuple(_texts(plain, "shared", where)),
    )
    check(spec, where)
    return check(with_head(spec, where), where) if head is True else spec


def _network(name: str, value: Any, where: str) -> Network:
    here = f"{where}: network {name!r}"
    if not isinstance(value, dict):
        raise SpecError(f"{here} is {value!r}; write [networks.{name}] with rate = '50 Mbit/s', or with nothing")
    _known(value, {"rate"}, here)
    return Network(name=name, rate=_rate(value, here))


def _hosts(row: Mapping[str, Any], index: int, where: str) -> list[HostSpec]:
    here = f"{where}: [[hosts]] number {index + 1}"
    _known(row, _HOST, here)
    names = _texts(row, "names", here) if "names" in row else [_text(row, "name", here)]
    labels = {key: str(value) for key, value in _table(row, "labels", here).items()}
    nics = tuple(_nic(name, value, f"{here} {names}") for name, value in _table(row, "nics", here).items())
    cpus, num_cpus = row.get("cpus"), row.get("num_cpus", 1)
    if isinstance(cpus, bool) or not isinstance(cpus, int | float | None):
        raise SpecError(f"{here}: cpus = {cpus!r} is no number; it is a quota in cores, like 0.5")
    if isinstance(num_cpus, bool) or not isinstance(num_cpus, int):
        raise SpecError(f"{here}: num_cpus = {num_cpus!r} is no whole number; it is what the Ray node offers")
    quota = None if cpus is None else float(cpus)
    return [HostSpec(name=name, nics=nics, cpus=quota, num_cpus=num_cpus, labels=labels) for name in names]


def _nic(name: str, value: Any, where: str) -> NicSpec:
    here = f"{where}: NIC {name!r}"
    if isinstance(value, str):
        return NicSpec(name=name, network=value)
    if not isinstance(value, dict):
        raise SpecError(f"{here} is {value!r}; write the name of its network, or {{ network = ..., rate = ... }}")
    _known(value, {"network", "rate"}, here)
    return NicSpec(name=name, network=_text(value, "network", here), rate=_rate(value, here))


def _trunk(row: Mapping[str, Any], index: int, where: str) -> TrunkSpec:
    here = f"{where}: [[trunks]] number {index + 1}"
    _known(row, {"between", "rate"}, here)
    ends = _texts(row, "between", here)
    if len(ends) != 2:  # noqa: PLR2004 - a cable has two ends
        raise SpecError(f"{here}: between = {ends}; a trunk joins exactly two networks")
    return TrunkSpec(first=ends[0], second=ends[1], rate=_rate(row, here))


def _rate(table: Mapping[str, Any], here: str) -> float | None:
    value = table.get("rate")
    if value is None:
        return None
    if not isinstance(value, str):
        raise SpecError(f"{here}: rate = {value!r} has no unit; write it like '50 Mbit/s'")
    return parse_rate(value, here)


def _text(table: Mapping[str, Any], key: str, here: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if not isinstance(value, str) or not value:
        raise SpecError(f"{here}: {key} = {value!r}; it is a text and may not be missing or empty")
    return value


def _texts(table: Mapping[str, Any], key: str, here: str) -> list[str]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
        raise SpecError(f"{here}: {key} = {value!r}; it is a list of texts")
    return value


def _table(table: Mapping[str, Any], key: str, here: str) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise SpecError(f"{here}: {key} = {value!r}; it is a table")
    return value


def _rows(table: Mapping[str, Any], key: str, here: str) -> list[dict[str, Any]]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise SpecError(f"{here}: {key} = {value!r}; write [[{key}]] rows")
    return value


def _known(table: Mapping[str, Any], keys: set[str], here: str) -> None:
    unknown = sorted(set(table) - keys)
    if unknown:
        raise SpecError(f"{here}: unknown key {unknown[0]!r}; known are {sorted(keys)}")
