"""An imagined provider and cluster on a virtual clock, around a real `Autoscaler`: no thread, no Ray, no sleep.

Machines join after their type's delay; a type may be sold out, or its machines never join. Runs are placed as soon as
all their workers fit, first come first placed, as the real queue does without quotas. After each look the laws are held.
"""

from dataclasses import dataclass, field, replace

from atoll.control_plane.arbiter.model import Amount, Ask, Option
from atoll.control_plane.autoscaling import commands as cmd
from atoll.control_plane.autoscaling import facts
from atoll.control_plane.autoscaling.core import Autoscaler
from atoll.control_plane.autoscaling.room import UNIT, Room, allowed, amount_of, held, reserve, sizes
from atoll.control_plane.autoscaling.spec import INSTANCE, NodeType, Scaling, labels_of

LOOK_S = 1.0


def kind(name, cpus=4, **options):
    """A type of machine, with what most tests mean."""
    return NodeType(name=name, cpus=cpus, **{"most": 4, "idle_s": 20.0, "launch_s": 30.0, **options})


def ask(run, workers=1, cpus=1, at=0.0, **options):
    """A gang."""
    least = options.pop("least", workers)
    gpus = options.pop("gpus", 0)
    each = Amount(cpus=round(cpus * UNIT), gpus=round(gpus * UNIT))
    return Ask(run=run, submitted_at=at, each=each, least=least, most=max(workers, least), **options)


def only(selector=None, **options):
    """One option by labels."""
    return Option(selector={k: (v,) for k, v in (selector or {}).items()}, **options)


@dataclass
class Mach:
    instance: str
    kind: NodeType
    joins_at: float
    node: str | None = None
    ends_at: float | None = None
    leaving_at: float | None = None
    noticed: bool = False
    dead: bool = False
    unseen: bool = False  # Ray has lost it, and its trainers work on


@dataclass
class World:
    scaling: Scaling
    joins_after: float = 5.0
    sold_out: set = field(default_factory=set)
    mute: set = field(default_factory=set)
    deaf: bool = False
    ends_after: float = 2.0
    now: float = 0.0

    def __post_init__(self):
        self.core = Autoscaler(self.scaling, tag="x")
        self.machines = {}
        self.own = {}
        self.waiting = []
        self.running = {}
        self.takes_nothing = set()
        self.notes = []
        self.launches = []
        self.ended = []

    # -- what a test does --------------------------------------------------------------------------------------------

    def submit(self, wanted):
        self.waiting.append(replace(wanted, submitted_at=self.now))

    def finish(self, run):
        self.running.pop(run, None)
        self.waiting = [a for a in self.waiting if a.run != run]

    def stand(self, name, cpus=4, gpus=0, **labels):
        """A node that nobody here started."""
        self.own[name] = (Amount(cpus=cpus * UNIT, gpus=gpus * UNIT), labels)

    def notice(self, instance, within_s):
        """The provider wants a machine back."""
        machine = self.machines[instance]
        machine.leaving_at, machine.noticed = self.now + within_s, True

    def kill(self, instance):
        """The machine is gone without a word; its provider notices at once."""
        self._gone(self.machines.pop(instance))

    def restart(self):
        """A new autoscaler that knows nothing."""
        self.core = Autoscaler(self.scaling, tag=f"r{len(self.launches)}-")

    def go(self, seconds, look_s=LOOK_S):
        for _ in range(round(seconds / look_s)):
            self.now += look_s
            self._time()
            self._place()
            self.do(self.look())

    # -- time --------------------------------------------------------------------------------------------------------

    def _time(self):
        for machine in list(self.machines.values()):
            if machine.node is None and self.now >= machine.joins_at and machine.kind.name not in self.mute:
                machine.node = f"n-{machine.instance}"
            if (machine.ends_at is not None and self.now >= machine.ends_at) or (
                machine.noticed and self.now >= machine.leaving_at
            ):
                del self.machines[machine.instance]
                self._gone(machine)
            elif machine.leaving_at is not None and not machine.noticed:
                self._move(machine.node)

    def _gone(self, machine):
        self._move(machine.node)

    def _move(self, node):
        """The runs with somebody there wait anew for what they lost: the simplest of all elastic runs."""
        for run, (wanted, places) in list(self.running.items()):
            if node in places:
                del self.running[run]
                self.waiting.append(wanted)

    def _place(self):
        for wanted in list(self.waiting):
            if wanted.run in self.takes_nothing:
                continue
            for option in wanted.options:
                rooms = [r for r in self._rooms() if allowed(option, (), r.labels)]
                groups = [rooms]
                if option.islands == 1:
                    groups = [[r for r in rooms if r.island == i] for i in dict.fromkeys(r.island for r in rooms)]
                fitting = next((g for g in groups if held(g, wanted.each) >= sizes(wanted, option)), None)
                if fitting is not None:
                    before = {r.key: r.holds(wanted.each) for r in fitting}
                    used = reserve(fitting, wanted.each, sizes(wanted, option))
                    self.running[wanted.run] = (
                        wanted,
                        {r.key: before[r.key] - r.holds(wanted.each) for r in used},
                    )
                    self.waiting.remove(wanted)
                    self.note(f"{wanted.run} runs on {' '.join(r.key for r in used)}")
                    break
            else:
                return

    def _rooms(self):
        rooms = []
        unseen = {m.node for m in self.machines.values() if m.unseen}
        for node, total, labels, leaving in self._nodes():
            if leaving is None and node not in unseen:
                free = self._free(node, total)
                rooms.append(Room(key=node, labels=labels, cpus=free.cpus, gpus=free.gpus))
        return rooms

    def _nodes(self):
        for name, (total, labels) in self.own.items():
            yield name, total, labels, None
        for m in self.machines.values():
            if m.node is not None and not m.dead:
                yield m.node, amount_of(m.kind), {**labels_of(m.kind), INSTANCE: m.instance}, m.leaving_at

    def _free(self, node, total):
        each = [(wanted.each, places[node]) for wanted, places in self.running.values() if node in places]
        return Amount(
            cpus=total.cpus - sum(a.cpus * n for a, n in each), gpus=total.gpus - sum(a.gpus * n for a, n in each)
        )

    def look(self):
        by_node = {m.node: m for m in self.machines.values()}
        nodes = []
        for node, total, labels, leaving in self._nodes():
            trainers = sum(places.get(node, 0) for _, places in self.running.values())
            machine = by_node.get(node)
            nodes.append(
                facts.Standing(
                    node=node,
                    labels=labels,
                    total=total,
                    free=self._free(node, total),
                    trainers=trainers,
                    leaving_at=leaving,
                    noticed=machine is not None and machine.noticed,
                    left=leaving is not None and trainers == 0,
                    alive=machine is None or not machine.unseen,
                )
            )
        machines = tuple(facts.Machine(instance=m.instance, kind=m.kind.name) for m in self.machines.values())
        return facts.Looked(nodes=tuple(nodes), machines=None if self.deaf else machines, asks=tuple(self.waiting))

    # -- what the core wants -----------------------------------------------------------------------------------------

    def do(self, fact):
        for command in self.core.handle(fact, now=self.now):
            self._carry_out(command)

    def _carry_out(self, command):
        match command:
            case cmd.Launch():
                self.note(f"launch {command.instance}: {command.reason}")
                self.launches.append((self.now, command.kind))
                if command.kind in self.sold_out:
                    self.do(facts.LaunchFailed(instance=command.instance, problem="sold out"))
                    return
                kind_ = self.scaling.type_of(command.kind)
                self.machines[command.instance] = Mach(command.instance, kind_, self.now + self.joins_after)
                self.do(facts.Launched(instance=command.instance))
            case cmd.End():
                machine = self.machines.get(command.instance)
                self.note(f"end {command.instance}: {command.reason}")
                if machine is not None and machine.ends_at is None:
                    busy = [run for run, (_, places) in self.running.items() if machine.node in places]
                    assert not busy, f"{command.instance} was ended under {busy}"
                    machine.ends_at = self.now + self.ends_after
                    self.ended.append(command.instance)
            case cmd.Drain():
                self.note(f"drain {command.node}: {command.reason}")
                self._of(command.node).leaving_at = self.now + command.within_s
            case cmd.Undrain():
                self.note(f"undrain {command.node}: {command.reason}")
                self._of(command.node).leaving_at = None
            case cmd.Tell():
                self.note(f"tell {command.reason}")
        assert_laws(self)

    def _of(self, node):
        return next(m for m in self.machines.values() if m.node == node)

    def note(self, text):
        self.notes.append((self.now, text))

    def standing(self, name=None):
        """Machines that are part of the cluster."""
        return [m.instance for m in self.machines.values() if m.node and name in (None, m.kind.name)]

    def price(self):
        return sum(m.kind.price_per_hour for m in self.machines.values())


def assert_laws(world):
    """What holds after every single command."""
    scaling = world.scaling
    if scaling.budget_per_hour is not None:
        assert world.price() <= scaling.budget_per_hour + 1e-6
        assert world.core.fleet.spent() <= scaling.budget_per_hour + 1e-6
    for one in scaling.types:
        assert sum(m.kind.name == one.name for m in world.machines.values()) <= one.most
