"""How fast a run would be on some nodes, and what a change of them gains and costs: seconds against seconds.

Each device computes with the samples a second that one worker of this very run was measured to do on it, before that
with what the user declared (Gavel: Narayanan et al., OSDI 2020; Sia: Jayaram Subramanya et al., SOSP 2023). Workers own
shares of the batch by speed, so their speeds add up. A step of `batch` samples then takes

    batch / sum of speeds + the slowest level's sum of `sync_bytes`

A level with m parts sends 2 (m-1)/m bytes for each byte summed: workers inside a node, nodes inside an island at the speed of its links, islands
among one another at that of the slowest crossing, over which all nodes of the island send side by side. Where links are
not measured, each further island costs `CROSSING`. Speeds that nobody knows count 1 for each worker: sizes and crossings
are then compared with one another, and nothing is said about seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from atoll.control_plane.arbiter.cluster import Node
from atoll.control_plane.arbiter.model import Ask, NodeClass

# What crossing to one more island leaves of the speed where links are not measured.
CROSSING = 0.9
Kinds = Sequence[NodeClass]


def known(ask: Ask) -> bool:
    """Whether samples a second mean anything for this run."""
    return bool(ask.measured or ask.declared)


def of_one(ask: Ask, device: str) -> float:
    """Samples a second of one worker on the device: measured, else declared, else as its slowest known device."""
    found = ask.measured.get(device) or ask.declared.get(device)
    if found:
        return found
    others = [v for v in {**ask.declared, **ask.measured}.values() if v > 0]
    return min(others) if others else 1.0


def rate(ask: Ask, nodes: list[Node], kinds: Kinds) -> float:
    """Samples a second of workers on these nodes (a node for each)."""
    alone = sum(of_one(ask, kinds[node.kind].device) for node in nodes)
    if len(nodes) <= 1 or alone <= 0:
        return alone
    by_island: dict[str, list[Node]] = {}
    for node in nodes:
        by_island.setdefault(node.island.name, []).append(node)
    sums = _sum_seconds(ask, by_island)
    if sums is None:
        return alone * CROSSING ** (len(by_island) - 1)
    return ask.batch / (ask.batch / alone + sums)


def _sum_seconds(ask: Ask, by_island: dict[str, list[Node]]) -> float | None:
    """What the slowest level takes for one sum; None where the run or a link says too little.

    Where nobody knows a speed the rest of a step is no time either, and seconds have nothing to be added to.
    """
    if not ask.batch or not ask.sync_bytes or not known(ask):
        return None
    times = [0.0]
    for nodes in by_island.values():
        names = [node.name for node in nodes]
        hosts, inside, local = len(set(names)), nodes[0].island.inside, nodes[0].island.local
        if local and hosts < len(names):
            most = max(names.count(name) for name in set(names))
            times.append(2 * ask.sync_bytes * (most - 1) / most / local)
        if hosts > 1:
            if not inside:
                return None
            times.append(2 * ask.sync_bytes * (hosts - 1) / hosts / inside)
    islands = len(by_island)
    if islands > 1:
        widths = [(nodes[0].island.across or 0.0) * len({n.name for n in nodes}) for nodes in by_island.values()]
        if min(widths) <= 0:
            return None
        times.append(2 * ask.sync_bytes * (islands - 1) / islands / min(widths))
    return max(times)


def step_seconds(ask: Ask, samples_per_s: float) -> float | None:
    """A step's seconds, where the run says how many samples it has."""
    return ask.batch / samples_per_s if known(ask) and ask.batch and samples_per_s > 0 else None


def remaining(ask: Ask, since: float, now: float, horizon_s: float) -> float:
    """Seconds for which a change will count: to the expected end, else to the horizon."""
    if ask.expected_s is None:
        return horizon_s
    return max(since + ask.expected_s - now, 0.0)


def saved(before: float, after: float, remaining_s: float) -> float:
    """Seconds that the same work takes less at the rate `after`."""
    return remaining_s * (1 - before / after) if after > 0 else 0.0


class Worth:
    """What devices are worth to those who wait: how well each suits them, on average, against each one's best."""

    def __init__(self, asks: list[Ask], devices: Sequence[str]) -> None:
        self._devices = devices
        self._count = 0
        self._sums = dict.fromkeys(devices, 0.0)
        for ask in asks:
            if known(ask):
                self._count += 1
                for device, part in self._parts(ask).items():
                    self._sums[device] += part

    def _parts(self, ask: Ask) -> dict[str, float]:
        speeds = {device: of_one(ask, device) for device in self._devices}
        best = max(speeds.values())
        return {device: own / best for device, own in speeds.items()}

    def to_others(self, ask: Ask, devices: Iterable[str]) -> dict[str, float]:
        """What these devices are worth to all but this run; 1 where nobody else says how fast it is."""
        own = self._parts(ask) if known(ask) else {}
        others = self._count - bool(own)
        if others <= 0:
            return dict.fromkeys(devices, 1.0)
        return {device: max(self._sums[device] - own.get(device, 0.0), 1e-9) / others for device in devices}
