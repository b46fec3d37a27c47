"""What befalls a run, each as a function of a `Scene`: strike, and return the moment. Mending is the lab's and `Scene`'s.

Processes are ended by pid and start time, hosts and cables are the lab's. A fault from inside (a GIL that is kept, a
death at a named place) is an order to the benchmark's own training function, which stamps the moment itself.
"""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from atoll.lab import raising_runtime
from atoll.workers.proc_runtime import send_signal
from benchmarks import networks
from benchmarks.recovery_ground import Ground, NotSteady, Run, Worker

# A hardware address that nobody has: what is sent there is lost at the switch.
_NOBODY = "02:ff:ff:ff:ff:ff"
HEAD = "head"
# Long enough for a membership to be told, and shorter than its regroup on a busy machine.
_WHILE_IT_RECOVERS_S = 0.05
_DISK = "clusters"
# Some steps, to see which links carry them; and how long a healed link may stay unmeasured.
_WATCHED_S, _MEASURED_S = 1.0, 120.0


@dataclass(slots=True, kw_only=True)
class Scene:
    """A steady run, whom a fault may strike, and how to undo it. `victims`: trainers whose loss is no mistake."""

    ground: Ground
    run: Run
    members: list[Worker]
    epoch: int
    chance: random.Random
    number: int
    hold_s: float
    victims: set[str] = field(default_factory=set)
    held: list[tuple[int, int]] = field(default_factory=list)
    undo: list[Callable[[], object]] = field(default_factory=list)
    begun: float = 0.0

    def struck_by(self, strike: Callable[[Scene], float | None]) -> float | None:
        """Strike. The moment; None where the victim stamps it itself."""
        self.begun = time.monotonic()
        return strike(self)

    def pick(self, *, rank0: bool = False) -> Worker:
        """Rank 0, or any other member."""
        found = self.members[0] if rank0 else self.chance.choice(self.members[1:])
        return self.blame(found)

    def blame(self, worker: Worker) -> Worker:
        self.victims.add(worker.trainer)
        return worker

    def on(self, host: str) -> list[Worker]:
        return [m for m in self.members if m.host == host]

    def hold(self, pid: int, ticks: int) -> None:
        """SIGSTOP until `mend`."""
        self.held.append((pid, ticks))
        send_signal(pid, ticks, signal.SIGSTOP)

    def release(self) -> None:
        """Let go of whoever is held."""
        while self.held:
            send_signal(*self.held.pop(), signal.SIGCONT)

    def mend(self) -> None:
        """Undo all that can be undone."""
        self.release()
        while self.undo:
            self.undo.pop()()
        self.ground.lab.heal()


def kill(scene: Scene) -> float:
    return _signalled([scene.pick()], signal.SIGKILL)


def kill_rank0(scene: Scene) -> float:
    return _signalled([scene.pick(rank0=True)], signal.SIGKILL)


def stop(scene: Scene) -> float:
    """Woken at the end, when others have taken its place."""
    victim = scene.pick()
    scene.held.append((victim.pid, victim.ticks))
    return _signalled([victim], signal.SIGSTOP)


def gil(scene: Scene) -> None:
    """The moment is stamped by the victim."""
    victim = scene.pick()
    scene.undo.append(lambda: victim.send(signal.SIGKILL))
    _ordered(scene, victim, "gil")


def flip(scene: Scene) -> None:
    """As above. The replicas are compared as often as a run at default settings does."""
    _ordered(scene, scene.pick(), "flip")


def host(scene: Scene) -> float:
    moment = time.monotonic()
    scene.ground.lab.kill(scene.pick().host)
    return moment


def frozen_host(scene: Scene) -> float:
    """Every process of it stops; its kernel still acknowledges what arrives. It wakes when the others have gone on."""
    victim = scene.pick()
    scene.undo.append(lambda: scene.ground.lab.thaw(victim.host))
    moment = time.monotonic()
    scene.ground.lab.freeze(victim.host)
    return moment


def cut(scene: Scene) -> float:
    """The fast cable of a host; its slow one stays."""
    victim = scene.pick()
    _may_be_blamed(scene, victim)
    moment = time.monotonic()
    scene.ground.lab.cut(victim.host, _fast(scene.ground, victim.host))
    return moment


def cut_one_way(scene: Scene) -> float:
    """What a host sends on its fast NIC is lost; what is sent to it arrives."""
    victim = scene.pick()
    _may_be_blamed(scene, victim)
    ground, nic = scene.ground, _fast(scene.ground, victim.host)
    others = [n.address for h in ground.lab.hosts if h != victim.host for n in ground.lab.layout.nics[h]]
    mine = next(n for n in ground.lab.layout.nics[victim.host] if n.name == nic)
    near = [a for a in others if a.rpartition(".")[0] == mine.address.rpartition(".")[0]]
    lost = [f"neigh replace {a} lladdr {_NOBODY} nud permanent dev {nic}" for a in near]
    found = [f"neigh del {a} dev {nic}" for a in near]
    record = ground.lab.record
    scene.undo.append(lambda: raising_runtime.batch(record, victim.host, "ip", found))
    moment = time.monotonic()
    raising_runtime.batch(record, victim.host, "ip", lost)
    return moment


def buddies(scene: Scene) -> float:
    """Both workers of one island."""
    island = scene.chance.choice("ab")
    return _signalled([scene.blame(m) for m in scene.members if m.host[0] == island], signal.SIGKILL)


def two_at_once(scene: Scene) -> float:
    """One worker of each island."""
    pair = [scene.chance.choice([m for m in scene.members if m.host[0] == island]) for island in "ab"]
    return _signalled([scene.blame(m) for m in pair], signal.SIGKILL)


def partition(scene: Scene) -> float:
    """One island's hosts lose every cable but those among themselves."""
    for member in scene.members:
        if member.host[0] == "b":
            scene.blame(member)
    moment = time.monotonic()
    for name in [h for h in scene.ground.lab.hosts if h[0] == "b"]:
        scene.ground.lab.cut(name, networks.WIDE)
    return moment


def head_cut(scene: Scene) -> float:
    moment = time.monotonic()
    scene.ground.lab.cut(HEAD)
    return moment


def gcs(scene: Scene) -> float:
    """Ray's controller: nobody starts it again."""
    found = scene.ground.processes(HEAD, "gcs_server")
    moment = time.monotonic()
    for pid, ticks in found:
        send_signal(pid, ticks, signal.SIGKILL)
    return moment


def control_killed(scene: Scene) -> float:
    pid, ticks = scene.ground.control()
    moment = time.monotonic()
    send_signal(pid, ticks, signal.SIGKILL)
    return moment


def control_stopped(scene: Scene) -> float:
    """With the head's agent, which would else end it after 3 s."""
    status = scene.ground.status()
    agent = next(pid for node, pid in status["agents"].items() if scene.ground.host_of(node) == HEAD)
    control = scene.ground.control()
    moment = time.monotonic()
    scene.hold(agent, scene.ground.ticks(agent))
    scene.hold(*control)
    return moment


def lost_without_control(scene: Scene) -> float:
    moment = control_killed(scene)
    scene.pick().send(signal.SIGKILL)
    return moment


def in_recovery(scene: Scene) -> None:
    """One dies, another in the regroup that follows; the second stamps its own death."""
    first, second = scene.chance.sample(scene.members, 2)
    _ordered(scene, scene.blame(second), "die in-regroup")
    time.sleep(_WHILE_IT_RECOVERS_S)
    scene.blame(first).send(signal.SIGKILL)


def in_join(scene: Scene) -> None:
    """One dies, and its replacement while it takes the state over, or (every other time) the member that hands it over."""
    victim = scene.pick()
    if scene.number % 2:
        _ordered(scene, scene.blame(scene.members[0]), "die in-transfer")
        time.sleep(_WHILE_IT_RECOVERS_S)
    else:
        scene.run.order("next", "die in-transfer")
        scene.victims.add("*")  # whoever takes the seat
    victim.send(signal.SIGKILL)


_SAVING = ("in-staging", "before-handover", "before-record", "after-record")


def in_checkpoint(scene: Scene) -> None:
    """At another place of a save each time. Rank 0 passes all of them."""
    _ordered(scene, scene.pick(rank0=True), f"die {_SAVING[scene.number % len(_SAVING)]}")


def disk_full(scene: Scene) -> float:
    """The disk of journal and history; and then a worker is lost."""
    folder = scene.ground.home / _DISK
    filler = f"{folder}/filler"
    scene.undo.append(lambda: _in_head(scene.ground, ["rm", "-f", filler]))
    _in_head(scene.ground, ["dd", "if=/dev/zero", f"of={filler}", "bs=64k"])
    return kill(scene)


def slow_worker(scene: Scene) -> float:
    victim = scene.pick()
    scene.undo.append(lambda: _ordered(scene, victim, "pace 1"))
    moment = time.monotonic()
    _ordered(scene, victim, "pace 3")
    return moment


def slow_link(scene: Scene) -> float:
    """A fifth of what it carried, of a link between the islands that the run uses: any other costs nothing."""
    first, second = _crossed(scene)
    scene.undo.append(lambda: _well_again(scene.ground, first, second))
    moment = time.monotonic()
    scene.ground.lab.slow(first, second, networks.SLOW / 5)
    return moment


def _crossed(scene: Scene) -> tuple[str, str]:
    """Two hosts of different islands that send each other about as much as any such two."""
    before = _sent(scene)
    time.sleep(_WATCHED_S)
    sent = {pair: many - before.get(pair, 0) for pair, many in _sent(scene).items() if pair[0][0] != pair[1][0]}
    if not any(sent.values()):
        raise NotSteady(f"nothing went between the islands' members in {_WATCHED_S:g} s, as far as `ss -p` may see")
    return scene.chance.choice(sorted(pair for pair, many in sent.items() if many > max(sent.values()) / 2))


def on_fast_nics(ground: Ground, members: list[Worker]) -> bool:
    """Whether every member is joined by its fast NIC with its island's other member. After a cut that may take a while."""
    fast = {n.address for m in members for n in ground.lab.layout.nics[m.host] if n.name == _fast(ground, m.host)}
    hosts = {n.address: m.host for m in members for n in ground.lab.layout.nics[m.host]}
    joined = {
        frozenset((m.host, hosts[peer]))
        for m in members
        for peer, _ in _connections(ground, m)
        if peer in fast and hosts[peer][0] == m.host[0]
    }
    return len(joined) == len({m.host[0] for m in members})


def _sent(scene: Scene) -> dict[tuple[str, str], int]:
    """What the members' connections that are open now have carried from host to host."""
    ground, sent = scene.ground, dict[tuple[str, str], int]()
    hosts = {nic.address: m.host for m in scene.members for nic in ground.lab.layout.nics[m.host]}
    for member in scene.members:
        for peer, many in _connections(ground, member):
            if (target := hosts.get(peer)) not in (None, member.host):
                sent[member.host, target] = sent.get((member.host, target), 0) + many
    return sent


def _connections(ground: Ground, member: Worker) -> list[tuple[str, int]]:
    """Of each open connection of a member that carried something: the peer's address, and the bytes sent to it."""
    words = ground.lab.words(member.host, ["ss", "-tinpHO"])
    told = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout
    return carried(told, member.pid)


def carried(told: str, pid: int) -> list[tuple[str, int]]:
    """The same, read from the words of `ss -tinpHO`.

    Others must not count: an agent's probe, or what a dead trainer left for the kernel to send, uses the NIC that the
    run avoids.
    """
    found = re.findall(rf"\S+:\d+ +(\S+):\d+ .*[(,]pid={pid},.*bytes_acked:(\d+)", told)
    return [(peer.removeprefix("[::ffff:").removesuffix("]"), int(many)) for peer, many in found]


def _well_again(ground: Ground, first: str, second: str) -> None:
    """Heal, and wait until the cluster has measured it: the next run is to plan for the network as it is."""
    ground.lab.heal()
    want = networks.SLOW / 8 / 2

    def known() -> bool:
        ends = {first, second}
        links = [
            k for k in ground.client.topology().links if {ground.host_of(k.source), ground.host_of(k.target)} == ends
        ]
        return bool(links) and all(k.bandwidth > want for k in links)

    # A machine that is overloaded measures late: the next fault then strikes what is in use by what is known.
    with contextlib.suppress(NotSteady):
        ground.until(known, _MEASURED_S, f"the link of {first} and {second} to be measured")


def _fast(ground: Ground, name: str) -> str:
    return next(n.name for n in ground.lab.nics(name) if n.name != networks.WIDE)


def _may_be_blamed(scene: Scene, victim: Worker) -> None:
    """Of a cut cable either end may be taken for lost, but nobody else."""
    for member in scene.members:
        if member.host[0] == victim.host[0]:
            scene.blame(member)


def _signalled(victims: list[Worker], number: signal.Signals) -> float:
    moment = time.monotonic()
    for victim in victims:
        victim.send(number)
    return moment


def _ordered(scene: Scene, victim: Worker, word: str) -> None:
    scene.run.order(victim.pid, word)
    victim.send(signal.SIGUSR1)


def _in_head(ground: Ground, words: list[str]) -> None:
    subprocess.run(ground.lab.words(HEAD, words), capture_output=True, timeout=60, check=False)
