"""Replicas that should hold the same values after a step, and whose digests say that one does not.

Digests are compared within a numeric class (device, build, optimizer kernel) and one shard only: unlike arithmetic is no
corruption. Whoever differs from more than half of its class is corrupt. Where no value has such a majority nobody can
tell who is wrong, and nobody is named: the replicas are divided, and only a checkpoint can help.

A comparison is complete once all members told of the same step of the same epoch; who is lost before it told leaves it
incomplete, and the next one counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from atoll.fault.facts import Compared, Digest, RunFacts
from atoll.fault.verdicts import Corrupt, Divided
from atoll.schema.ids import Epoch, Step, TrainerId

# Members are at most two steps apart, but their agents tell at their own pace: of a hundred steps a second that is the
# last second. What is older will never be complete.
_REMEMBERED = 128


@dataclass(slots=True)
class Comparisons:
    """What a run's members told of their replicas. `agreed`: the last step after which all held the same.

    `found`: the last complete comparison, if its replicas differ and nobody has drawn conclusions yet.
    """

    told: dict[tuple[Epoch, Step], dict[TrainerId, Digest]] = field(default_factory=dict)
    agreed: int = 0
    found: Compared | None = None
    rest_differs: bool = False

    def take(self, epoch: Epoch, step: Step, of: int, digest: Digest) -> Compared | None:
        """A member told: the comparison that it completes, if it does."""
        here = self.told.setdefault((epoch, step), {})
        here[digest.trainer] = digest
        while len(self.told) > _REMEMBERED:
            del self.told[min(self.told)]
        if len(here) < of or (epoch, step) not in self.told:
            return None
        del self.told[epoch, step]
        compared = Compared(step=step, agreed=self.agreed, digests=tuple(here.values()))
        if differ(compared.digests):
            self.found = compared
        else:
            self.agreed = max(self.agreed, step)
        return compared

    def stood(self, step: int) -> None:
        """A member began an epoch after `step`: what all held the same after a later one was undone since."""
        self.agreed = min(self.agreed, step)

    def concluded(self) -> None:
        """What was found has had its consequences."""
        self.found = None


def judge(run: RunFacts) -> Corrupt | Divided | None:
    """What the last comparison says of those that are still members."""
    compared = run.compared
    if compared is None:
        return None
    torn = split(compared.digests)
    if torn:
        return Divided(run=run.run, step=compared.step, agreed=compared.agreed, evidence=_divided(compared, torn))
    wrong: list[TrainerId] = []
    words: list[str] = []
    members = {m.trainer for m in run.members}
    for group in groups(compared.digests):
        value, count = _most(group)
        others = [d for d in group if d.value != value and d.trainer in members]
        if others:
            wrong += [d.trainer for d in others]
            differ_ = ", ".join(f"{d.trainer} has {d.value}" for d in others)
            of = f"({group[0].numeric})" if not group[0].shard else f"of shard {group[0].shard} ({group[0].numeric})"
            words.append(
                f"after step {compared.step} {count} of {len(group)} replicas {of} have {value}, but {differ_}"
            )
    if not wrong:
        return None
    evidence = f"{'; '.join(words)}; {since(compared.agreed)}"
    return Corrupt(run=run.run, step=compared.step, agreed=compared.agreed, trainers=tuple(wrong), evidence=evidence)


def since(agreed: int) -> str:
    """When they were last seen to be the same, in words."""
    return f"they last agreed after step {agreed}" if agreed else "they were not compared before"


def differ(digests: Iterable[Digest]) -> bool:
    """Whether weights differ within any group."""
    return any(len({d.value for d in group}) > 1 for group in groups(digests))


def odd_ones(digests: Iterable[Digest]) -> tuple[TrainerId, ...]:
    """Whose weights are the others', but whose buffers, or whatever else its modules hold, are not."""
    found: list[TrainerId] = []
    for group in groups(digests):
        rest, count = Counter(d.rest for d in group).most_common(1)[0]
        others = [d.trainer for d in group if d.rest != rest]
        found += others if 2 * count > len(group) else [d.trainer for d in group if others]
    return tuple(found)


def split(digests: Iterable[Digest]) -> tuple[TrainerId, ...]:
    """Replicas of groups in which no value has a majority, though they differ."""
    found: list[TrainerId] = []
    for group in groups(digests):
        if len(group) > 1 and 2 * _most(group)[1] <= len(group):
            found += [d.trainer for d in group]
    return tuple(found)


def groups(digests: Iterable[Digest]) -> Iterator[list[Digest]]:
    """Those that must be the same, together."""
    told = sorted(digests, key=lambda d: d.trainer)
    for key in sorted({(d.numeric, d.shard) for d in told}):
        yield [d for d in told if (d.numeric, d.shard) == key]


def _most(group: list[Digest]) -> tuple[str, int]:
    return Counter(d.value for d in group).most_common(1)[0]


def _divided(compared: Compared, torn: tuple[TrainerId, ...]) -> str:
    values = ", ".join(f"{d.trainer} has {d.value}" for d in compared.digests if d.trainer in torn)
    return f"after step {compared.step} replicas differ, and none has a majority: {values}; {since(compared.agreed)}"
