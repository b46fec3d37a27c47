"""A cluster that is played in virtual time around a real core: hosts, links, agents, trainers, and what befalls them.

Each tenth of a second agents beat, look at their trainers and say what changed, trainers commit a step if all members
of their epoch can, and else tell whom they wait for; commands of the core are obeyed. What a cut link carried waits, and
arrives late. The laws are asserted here, on what really happened, not on what the core believes: epochs do not fork, a
committed step is undone only if nobody who held it was left, and whoever was fenced commits nothing.
"""

from __future__ import annotations

from imagined_faults import RUN, TICK_S, Faults, Host, Proc

from atoll.control_plane import effects as fx
from atoll.control_plane import events as ev
from atoll.control_plane.core import Core
from atoll.control_plane.invariants import broken, taken_beyond, told_before_durable
from atoll.schema import messages as m
from atoll.schema.codec import encode
from atoll.schema.spec import JobSpec
from atoll.schema.topology import Door, Nic
from atoll.schema.views import RunState

READY_S = 1.0
# What real agents and trainers do, in tenths of a second.
DEAF_TICKS, STALL_TICKS, REPEAT_TICKS, WAIT_TICKS, DIGEST_TICKS = 5, 5, 5, 2, 10
COMPARE_STEPS = 10


class Cluster(Faults):
    """The first node is the control plane's own host; `h` has no room for trainers. Times are whole tenths of a second."""

    def __init__(self, *, nodes=("a1", "a2", "b1", "b2", "c1"), workers=4, spares=1, cpus=1.0, rollback=0):
        self.home = nodes[0]
        self.now, self.journal, self.incarnation = 0, [], 1
        self.core = Core(1, beat_key="00")
        self.down_until = 0
        self.hosts = {n: Host(n) for n in nodes}
        self.procs = {}
        self.cuts = set()
        self.overloaded = False
        self.notes = []
        self.commits = []
        self.commit_times = []
        self.undone = 0
        self.saved = self.saved_in = self.flips = 0
        self.cpus = cpus
        self.list_nodes()
        for host in self.hosts.values():
            self.attach(host)
        spec = JobSpec(
            name=RUN,
            working_dir="/w",
            file="f.py",
            workers=workers,
            spares=spares,
            cpus_per_worker=1.0,
            detach=True,
            corrupt="rollback" if rollback else "evict",
        )
        self.do(ev.RunAsked(request="q", run=RUN, spec=spec, run_dir="/r", secret="00"))

    @property
    def run(self):
        return self.core.desk.cluster.runs[RUN]

    # -- the core ----------------------------------------------------------------------------------------------------

    def do(self, event):
        effects = self.core.handle(event, now=self.now * TICK_S)
        cluster = self.core.desk.cluster
        assert broken(cluster) == []
        assert told_before_durable(effects, cluster) == []
        assert taken_beyond(effects, self.core.desk) == []
        for effect in effects:
            match effect:
                case fx.Persist():
                    self.journal += [encode(r) for r in effect.records]
                case fx.CreateSeat():
                    self.do(ev.SeatCreated(seat=effect.seat))
                case fx.Send():
                    self.hear(self.hosts[effect.node], effect.command)
                case fx.HangUp():
                    self.hosts[effect.node].hung_up = True
                case fx.Note():
                    self.notes.append((self.now, f"{effect.subject} {effect.kind}: {effect.text}"))

    def list_nodes(self):
        nodes = tuple(
            ev.NodeSeen(
                node=n,
                address=n,
                alive=True,
                cpus=0.0 if n == "h" else self.cpus,
                gpus=0.0,
                local=n == self.home,
                labels={"island": n[0]},
            )
            for n in self.hosts
        )
        seats = tuple(s for r in self.core.desk.cluster.open_runs() for s, x in r.seats.items() if x.alive)
        self.do(ev.ClusterListed(nodes=nodes, seats=seats))

    def reaches(self, one, other):
        """Whether what `one` sends arrives."""
        return self.hosts[one].on and self.hosts[other].on and (one == other or (one, other) not in self.cuts)

    def both_ways(self, one, other):
        return self.reaches(one, other) and self.reaches(other, one)

    def attach(self, host):
        host.attached, host.queue, host.inbox, host.listens, host.told = True, [], [], (), frozenset()
        found = tuple(
            m.FoundTrainer(
                trainer=p.trainer,
                run=RUN,
                seat=p.seat,
                pid=1,
                start_ticks=1,
                epoch=p.joined,
                ready=p.ready,
                host="h",
                port=1,
                exit_status=p.status,
            )
            for p in self.procs.values()
            if p.node == host.name
        )
        door = Door(nic="eth0", host=host.name, port=7)
        hello = m.AgentHello(
            node=host.name,
            pid=7,
            address=host.name,
            state_dir="/s",
            versions=m.Versions(atoll="0", protocol=1, python="3"),
            last_incarnation=0,
            trainers=found,
            nics=self.nics_of(host.name),
            doors=self.doors_of(host.name),
            beats=(door,),
        )
        self.do(ev.AgentAttached(hello=hello))
        for proc in self.procs.values():
            if proc.node == host.name and proc.alive and proc.step:
                self.say(proc, self.commit_of(proc))

    def nics_of(self, _node):
        """All of one address: there is nothing to probe."""
        return (Nic(name="eth0", host="host"),)

    def doors_of(self, _node):
        return ()

    # -- commands ----------------------------------------------------------------------------------------------------

    def hear(self, host, command):
        """A command on its way: it waits where the link is cut, and is lost with its stream."""
        if host.attached:
            host.inbox.append(command)
            self.heed(host)

    def heed(self, host):
        while host.inbox and host.acts and self.both_ways(self.home, host.name):
            self.obey(host, host.inbox.pop(0))

    def obey(self, host, command):
        match command:
            case m.StartTrainer():
                if command.rewound is not None and command.rewound.spoils(self.saved, self.saved_in):
                    self.saved = command.rewound.step
                self.procs[command.trainer] = Proc(
                    command.trainer, command.seat, host.name, ready_at=self.now + round(READY_S / TICK_S)
                )
                started = m.TrainerStarted(trainer=command.trainer, run=RUN, pid=1, start_ticks=1)
                host.queue.append(started)
            case m.FenceTrainer():
                self.fence(self.procs.get(command.trainer))
            case m.TellTrainer() if isinstance(command.command, m.Membership):
                self.invite(self.procs.get(command.trainer), command.command)
            case m.Adopt():
                for proc in self.procs.values():
                    if proc.node == host.name and proc.trainer not in command.keep:
                        self.fence(proc)
            case m.WatchPeers():
                host.heard = {n: host.heard.get(n, self.now) for n in command.listen}
                host.listens = command.listen
            case m.ForgetTrainer():
                self.forget(command.trainer)

    def forget(self, trainer):
        if trainer in self.procs and not self.procs[trainer].alive:
            del self.procs[trainer]

    def fence(self, proc):
        if proc is not None and proc.alive:
            self.notes.append((self.now, f"{proc.node} ends the process of {proc.trainer}"))
            self.end(proc, status=-9)

    def invite(self, proc, membership):
        if proc is None or not proc.alive or (proc.newest is not None and membership.epoch <= proc.newest.epoch):
            return
        proc.newest, proc.blocked_at = membership, None

    def end(self, proc, *, status):
        if proc is None or not proc.alive:
            return
        proc.alive, proc.status = False, status
        host = self.hosts[proc.node]
        host.queue.append(m.TrainerExited(trainer=proc.trainer, run=RUN, pid=1, exit_status=status))
        for peer in self.members_of(proc.newest):
            if peer is not proc and peer.talks and peer.joined == proc.joined and self.both_ways(peer.node, proc.node):
                self.say(peer, m.PeerDown(trainer=peer.trainer, epoch=peer.joined, peer=proc.trainer, evidence="reset"))

    def say(self, proc, fact):
        self.hosts[proc.node].queue.append(m.TrainerSaid(run=RUN, fact=fact))

    def members_of(self, membership):
        names = [x.trainer for x in membership.members] if membership is not None else []
        return [self.procs[n] for n in names if n in self.procs]

    # -- time --------------------------------------------------------------------------------------------------------

    def go(self, seconds):
        for _ in range(round(seconds / TICK_S)):
            self.tick()

    def tick(self):
        self.now += 1
        for proc in list(self.procs.values()):
            self.live(proc)
        self.train()
        for host in self.hosts.values():
            self.watch(host)
        if self.now < self.down_until:
            return
        for host in self.hosts.values():
            self.deliver(host)
        if not self.overloaded or self.now % 3 == 0:
            self.do(ev.Tick())
        if self.now % 10 == 0:
            self.list_nodes()

    def live(self, proc):
        if not proc.alive or not self.hosts[proc.node].on:
            return
        if proc.does in {"works", "evaluates"}:
            proc.cpu_s += TICK_S / 2
        if proc.talks:
            proc.beat = self.now
        if proc.talks and not proc.ready and self.now >= proc.ready_at:
            proc.ready = True
            self.say(proc, m.TrainerReady(trainer=proc.trainer, host="h", port=1))

    def watch(self, host):
        """The agent's tenth of a second."""
        if host.agent_back is not None and self.now >= host.agent_back:
            host.agent, host.agent_back = True, None
            self.attach(host)
        if not host.acts:
            return
        slow = self.overloaded and (self.now + len(host.name) + ord(host.name[-1])) % 4
        for peer in host.listens:
            other = self.hosts[peer]
            if other.acts and host.name in other.listens and self.reaches(peer, host.name) and not slow:
                host.heard[peer] = self.now
        if slow:
            return
        late = 0.3 if self.overloaded else 0.0
        host.queue.append(m.AgentBeat(node=host.name, cpu_percent=1.0, free_bytes=1, trainers=1))
        silent = frozenset(n for n in host.listens if self.now - host.heard[n] > DEAF_TICKS)
        if host.listens and (silent != host.told or self.now - host.told_at >= DIGEST_TICKS):
            host.told, host.told_at = silent, self.now
            gone = tuple(m.SilentPeer(node=n, for_s=(self.now - host.heard[n]) * TICK_S) for n in sorted(silent))
            heard = tuple(n for n in host.listens if n not in silent)
            host.queue.append(m.PeersWatched(node=host.name, heard=heard, silent=gone, behind_s=late))
        for proc in self.procs.values():
            if proc.node == host.name and proc.alive:
                self.look_at(host, proc, late)

    def look_at(self, host, proc, late):
        state = "T" if proc.does == "stopped" else "S"
        age = self.now - proc.beat
        here = (state, age > STALL_TICKS)
        if here != proc.told or self.now - proc.told_at >= DIGEST_TICKS:
            proc.told, proc.told_at = here, self.now
            host.queue.append(
                m.TrainerWatched(
                    trainer=proc.trainer,
                    run=RUN,
                    state=state,
                    cpu_s=proc.cpu_s,
                    beat_age_s=age * TICK_S,
                    behind_s=late,
                )
            )

    def deliver(self, host):
        """What the agent said arrives, in order, if the way is open now. Who was hung up on comes again."""
        if host.hung_up:
            self.lose_stream(host)
        if not (host.acts and self.both_ways(host.name, self.home)):
            return
        if not host.attached:
            if self.now % 5 == 0:
                self.attach(host)
            return
        self.heed(host)
        queue, host.queue = host.queue, []
        for fact in queue:
            self.do(ev.AgentSaid(node=host.name, fact=fact))

    # -- training ----------------------------------------------------------------------------------------------------

    def train(self):
        """Each epoch that any process believes in: a step if all its members can, else who waits for whom."""
        believed = {p.newest.epoch: p.newest for p in self.procs.values() if p.alive and p.newest is not None}
        for _, membership in sorted(believed.items()):
            members = self.members_of(membership)
            here = [p for p in members if p.alive and p.newest == membership]
            if len(members) == len(membership.members) == len(here) and self.all_meet(here):
                self.together(membership, here)
            else:
                for proc in here:
                    self.wait(proc, membership)

    def all_meet(self, procs):
        return all(p.able for p in procs) and all(
            self.connected(p.node, q.node) for p in procs for q in procs if p is not q
        )

    def connected(self, one, other):
        """Whether what trainers of one send over the connections that they have reaches the other, both ways."""
        return self.both_ways(one, other)

    def detours(self, _node, _membership):
        return ()

    def together(self, membership, members):
        if any(p.joined != membership.epoch for p in members):
            self.regroup(membership, members)
        elif not self.overloaded or self.now % 4 == 0:
            self.commit(membership, members)
        for proc in members:
            if proc.waiting:
                proc.waiting = False
                self.say(proc, self.word(proc, membership, (), ()))
            proc.blocked_at = None

    def regroup(self, membership, members):
        holders = [p for p in members if p.holds]
        if holders:
            step = max(p.step for p in holders)
        else:
            # Law 1: only if nobody who held the state of a later step is left may it be undone.
            step = self.saved
            assert not any(p.alive and p.holds and p.newest.epoch < membership.epoch for p in self.procs.values())
            self.undone += max((s for s, _ in self.commits), default=0) - step
        bits = next((p.bits for p in members if p.holds and p.step == step), 0)
        for proc in members:
            if not (proc.holds and proc.step == step):
                proc.bits = bits
            proc.joined, proc.step, proc.holds = membership.epoch, step, True
            self.say(proc, self.joined(proc, membership, step))

    def joined(self, proc, membership, step):
        detours = self.detours(proc.node, membership)
        return m.EpochJoined(trainer=proc.trainer, epoch=membership.epoch, step=step, detours=detours)

    def commit(self, membership, members):
        last = self.commits[-1] if self.commits else (0, 0)
        step = members[0].step + 1
        assert {p.step for p in members} == {step - 1}
        assert membership.epoch >= last[1], f"epoch {membership.epoch} commits after {last[1]} did: a fork"
        assert membership.epoch > last[1] or step == last[0] + 1
        assert membership.epoch <= self.run.epoch
        self.commits.append((step, membership.epoch))
        self.commit_times.append(self.now)
        for proc in members:
            proc.step = step
            self.say(proc, self.commit_of(proc))
            if step % COMPARE_STEPS == 0:
                self.say(proc, self.digest_of(proc, len(members)))

    def commit_of(self, proc):
        return m.StepCommitted(
            trainer=proc.trainer, epoch=proc.joined, step=proc.step, at=0.0, step_s=TICK_S, samples=1, grains=1
        )

    def digest_of(self, proc, of):
        weights = f"{(proc.step * 40503 ^ proc.bits * 2654435761) & 0xFFFFFFFF:08x}"
        return m.ReplicaDigested(
            trainer=proc.trainer, epoch=proc.joined, step=proc.step, of=of, numeric="cpu", weights=weights
        )

    def wait(self, proc, membership):
        """The others do not come: say so after a while, and again."""
        if not proc.able:
            return
        if proc.blocked_at is None:
            proc.blocked_at = self.now
        lasted = self.now - proc.blocked_at
        if lasted < WAIT_TICKS or (proc.waiting and self.now - proc.said_wait_at < REPEAT_TICKS):
            return
        missing, silent = [], []
        for member in membership.members:
            peer = self.procs.get(member.trainer)
            if member.trainer == proc.trainer:
                continue
            if peer is None or not self.connected(proc.node, member.node):
                silent.append(member.trainer)
            elif not peer.able:
                missing.append(member.trainer)
        if missing or silent:
            proc.waiting, proc.said_wait_at = True, self.now
            self.say(proc, self.word(proc, membership, tuple(missing), tuple(silent), lasted))

    def word(self, proc, membership, missing, silent, lasted=0):
        return m.Waiting(
            trainer=proc.trainer,
            epoch=membership.epoch,
            operation="all_reduce" if proc.joined == membership.epoch else "connect",
            sequence=proc.step if proc.joined == membership.epoch else 0,
            for_s=lasted * TICK_S,
            missing=missing,
            silent=silent,
        )

    @property
    def state(self):
        run = self.run
        members = " ".join(t.removeprefix(f"{RUN}-") for t in run.member_ids())
        step = self.commits[-1][0] if self.commits else 0
        ended = f", {run.state.value}" if run.state is not RunState.RUNNING else ""
        return f"step {step}, epoch {run.epoch} of {members}{ended}"
