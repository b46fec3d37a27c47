"""What the arbiter decides upon: nodes and islands, flavors, queues, asks and grants, in one `Snapshot`.

All are values; each goes through `atoll.schema.codec` and back. `reasons.py` holds why something was decided,
`decisions.py` what, `events.py` what may happen between two decisions.

- **Amounts** are in ten-thousandths of a device, as in `atoll.control_plane.placement`: `Amount(gpus=10_000)` is one GPU.
- **A node** has a class (what it has in common with others: labels, device, amounts, price), an island (fast links to
  its neighbours) and a failure domain (what fails together: a rack, a switch, a power feed). What is free on it follows
  from the grants: `total - taken - grants`, where `taken` is held by others than the arbiter.
- **A flavor** is a named selector over labels of classes: key -> values of which one must stand there, `!value` for one
  that must not. A class belongs to the first flavor of the snapshot that selects it, and quotas are counted there.
  `device`, `nic`, `zone`, `spot`, `class` are labels like others; `device`, `spot` and `class` are filled in from the
  class itself.
- **A queue** without quotas is bounded by the cluster alone. With quotas, a flavor that is not named in them is not for
  it. Queues of one `cohort` lend one another what they do not use: `borrow` bounds what a queue takes beyond its
  quota, `lend` what others may take of it (None: no bound). What was borrowed is given back when its owner wants it.
- **An ask** is one run that waits: `least` to `most` workers of `each`, in `sizes` if only some numbers are legal, all
  or nothing from `least` on. `options` are its alternatives; the first that fits is taken if `ordered`, else the one
  that promises most samples a second for what it costs. Spares are taken as far as there is room.
- **A speed** is what one worker does alone on a device, in samples a second: declared by the user, then measured of
  this very run. `batch` (samples a step) and `sync_bytes` (bytes that each step adds up over all workers) tell what a
  slow link costs; without them fewer crossings are just better.
- **A grant** is what a run holds: a node for each worker, in order of rank, one for each spare. `expected_s` of an ask
  counts from the grant's `since`, at its `least` size; None: nobody knows, and nobody is promised its end.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from atoll.schema.ids import NodeId, RunId

# Without a word about it.
DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 50
HIGHEST_PRIORITY = 100
# The flavor of classes that no flavor selects.
OTHER_FLAVOR = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """Devices, in ten-thousandths."""

    cpus: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeClass:
    """What nodes of one kind have in common. `device` names what computes ("cpu" where there is no GPU)."""

    name: str
    device: str = "cpu"
    total: Amount
    labels: dict[str, str] = field(default_factory=dict)
    price_per_hour: float = 0.0
    spot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """One node. On a `drained` one nothing new is placed; `taken` is in use by others than the arbiter's grants."""

    node: NodeId
    kind: NodeClass
    island: str
    domain: str = ""
    taken: Amount = field(default_factory=Amount)
    drained: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IslandState:
    """Links as measured: bytes/s between two nodes inside, and of one node to other islands; None: not measured.

    `local`: bytes/s of sums among workers of one node; None: so fast that they cost nothing.
    """

    name: str
    inside: float | None = None
    across: float | None = None
    local: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavor:
    """A named selector over labels: all keys must match, each by one of its values; `!v` excludes a value."""

    name: str
    selector: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a queue has of a flavor for itself, may borrow beyond it, and lends of it (None: without bound)."""

    flavor: str
    own: Amount
    borrow: Amount | None = None
    lend: Amount | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSpec:
    """A queue. Shares are divided by `weight`; priorities above `highest_priority` count as that."""

    name: str
    weight: float = 1.0
    quotas: tuple[Quota, ...] = ()
    cohort: str = ""
    highest_priority: int = HIGHEST_PRIORITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One alternative of an ask: nodes of these flavors (none named: any), on at most `islands` islands (0: any number).

    `least`, `most` and `sizes` replace the ask's where given; `selector` narrows the flavors further.
    """

    name: str = ""
    flavors: tuple[str, ...] = ()
    selector: dict[str, tuple[str, ...]] = field(default_factory=dict)
    islands: int = 0
    least: int | None = None
    most: int | None = None
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A run that wants workers.

    `disturbed` are the times at which it was shrunk, suspended or moved for others lately: the budget against thrash
    counts them. `waiting_since` is when it was submitted or, after a suspension, when it entered the queue again; the
    bound against starvation counts from there, order in the queue from `submitted_at`. `regroup_s` is what one change of
    its workers costs it, `start_s` what a suspension costs it to be back where it was, beside steps since its checkpoint.
    `group` workers hold one whole model together: they are never divided over islands, and sizes are multiples of it.
    """

    run: RunId
    queue: str = DEFAULT_QUEUE
    user: str = ""
    team: str = ""
    priority: int = DEFAULT_PRIORITY
    submitted_at: float
    waiting_since: float | None = None
    each: Amount
    least: int = 1
    most: int = 1
    sizes: tuple[int, ...] = ()
    spares: int = 0
    options: tuple[Option, ...] = (Option(),)
    ordered: bool = True
    preemptible: bool = True
    expected_s: float | None = None
    declared: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    batch: float = 0.0
    sync_bytes: float = 0.0
    regroup_s: float = 2.0
    start_s: float = 30.0
    group: int = 1
    disturbed: tuple[float, ...] = ()
    suspended: int = 0

    def waits_since(self) -> float:
        """When the present wait began."""
        return self.submitted_at if self.waiting_since is None else self.waiting_since


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a run holds. `option` is the index of the alternative it was placed by.

    `since`: when it was placed, `changed_at`: when its nodes last changed, `checkpoint_at`: when its newest durable
    checkpoint was made (None: none, a suspension begins anew). `leaving`: nodes, one for each worker, that it was told
    to give up and still holds. `suspending`: it was told to give up all.
    """

    ask: Ask
    nodes: tuple[NodeId, ...]
    spares: tuple[NodeId, ...] = ()
    since: float
    changed_at: float | None = None
    option: int = 0
    checkpoint_at: float | None = None
    leaving: tuple[NodeId, ...] = ()
    suspending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Share of the cluster, from 0 to 1, that a queue or a user of it took on average over the past, recent times counting more.

    `at` is the time at which it stood so. Without a `user` it is that of the whole queue.
    """

    queue: str
    user: str | None = None
    share: float
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Places kept for a run that waits, from one tick to the next: a node for each worker of its option's least size.

    `start`: when it has them at the latest (None: unknown). `given`: `givers` were told to give them up for it; else they
    are where it is foreseen to begin soonest.
    """

    run: RunId
    option: int
    nodes: tuple[NodeId, ...]
    start: float | None
    given: bool
    givers: tuple[RunId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Obtainable:
    """Nodes that are not there and could be started: up to `most` of a class, as one island of so many at most."""

    kind: NodeClass
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How decisions are made. Seconds, counts, and ratios.

    - `half_life_s`: after so long a use counts half (a day's work is forgotten in a week).
    - `starve_s`: who waits longer goes before all who do not, oldest first, whatever its share and priority.
    - `calm_s`: least time between two disturbances of one run, and `disturbances_per_hour` their number.
    - `grow_after_s`: a run that changed is not grown or moved before (hysteresis).
    - `horizon_s`: a change must pay for itself within this time if nobody knows how long the run will last.
    - `move_gain`: a move must promise so many times the present samples a second.
    - `looked_at`: how many of those who wait are considered for preemption at a tick, `reserved_for`: how many of those
      that wait for nodes at the head get them reserved.
    """

    half_life_s: float = 86_400.0
    starve_s: float = 3_600.0
    calm_s: float = 60.0
    disturbances_per_hour: int = 6
    grow_after_s: float = 10.0
    horizon_s: float = 600.0
    move_gain: float = 1.2
    looked_at: int = 8
    reserved_for: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a decision rests upon. Flavors are in order: a class belongs to the first that selects it.

    What would fit with the `obtainable` nodes is not refused, but waits for them. `kept` are the last decisions' `kept`:
    who decides by snapshots hands them on, so that what was freed for one run is not given to another.
    """

    now: float
    nodes: tuple[NodeState, ...] = ()
    islands: tuple[IslandState, ...] = ()
    flavors: tuple[Flavor, ...] = ()
    queues: tuple[QueueSpec, ...] = ()
    asks: tuple[Ask, ...] = ()
    grants: tuple[Grant, ...] = ()
    usage: tuple[Usage, ...] = ()
    obtainable: tuple[Obtainable, ...] = ()
    kept: tuple[Claim, ...] = ()
    settings: Settings = field(default_factory=Settings)


def device_words(amount: Amount, times: int = 1) -> str:
    """An amount for people: "2 CPU and 1 GPU"."""
    cpus, gpus = amount.cpus * times / 10_000, amount.gpus * times / 10_000
    parts = ([f"{cpus:g} CPU"] if cpus or not gpus else []) + ([f"{gpus:g} GPU"] if gpus else [])
    return " and ".join(parts)
