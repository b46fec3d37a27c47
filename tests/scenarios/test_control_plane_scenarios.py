"""Each `control_plane/*.txt` is a conversation with the core: what it is told, `----`, what it wants done.

node a cpus=2            Ray lists the node (the first one is the control plane's own)
unlist a                 Ray calls it dead
attach a [t0:ready t1:gone=-9 t2]   an agent arrives, holding these trainers of the newest run
detach a                 its stream ends
nics a fast=10.1.0.1     NICs that the agent of a has from its next attach on
probed fast=480 slow=48  all probes under way end; Mbit/s by NIC (`probed nothing`: none was answered)
saw t0 a fast b 48       traffic of t0: a's NIC to b's carried 48 Mbit/s for 0.2 s
submit name workers=2 spares=1 [kind=serve] [attached] [cpus=0.4]
seats                    all seats asked for come to life; `seats lost` makes Ray list none
began|ready|joined|finished|serving t0 t1
failed t0 code words     commit t0 step   saved t0 step   exit t0 status   down t0 peer
exit t0 oom              killed by the kernel for memory
stop name                beat name        tick seconds    shutdown
resize name 2            the run is to go on with two workers; `suspend name` at a checkpoint, `resume name`
queues lab=0.8 big=1.2   two queues of one cohort with so many CPUs each; `waits name` shows why it does
left t0 t1               these left at the step boundary to which they were told to suspend
drain a 30               node a is to be empty within 30 s; `undrain a`; `notice a spot 120` comes from the node itself
steps 9 t0=0.1 t1=0.3    so many steps, told by all members, at these seconds a grain (grains=16 in all)
restart                  the control plane dies; a new one replays the journal
"""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.control_plane import effects as fx
from atoll.control_plane import events as ev
from atoll.control_plane.core import Core
from atoll.control_plane.invariants import broken, taken_beyond, told_before_durable
from atoll.control_plane.records import RECORDS
from atoll.schema import messages as m
from atoll.schema.codec import encode
from atoll.schema.queues import FlavorWish, QueueWish, QuotaWish, Sharing
from atoll.schema.sharing import bounds
from atoll.schema.spec import JobKind, JobSpec
from atoll.schema.topology import Door, Link, Nic, Observation
from atoll.workers.samples import share

HERE = Path(__file__).parent / "control_plane"
HIDDEN = (fx.ShowRun, fx.ShowNode, fx.ShowMetric, fx.ShowCheckpoint, fx.ShowTopology, fx.Persist)


class World:
    """A core, its journal, and just enough of an outside to speak to it briefly."""

    def __init__(self):
        self.journal = []
        self.incarnation = 1
        self.core = Core(1)
        self.now = 1000.0
        self.nodes = {}
        self.attached = {}
        self.asked = []
        self.run = ""
        self.nics = {}
        self.probes = []
        self.results = {}
        self.steps = 0

    def do(self, event):
        effects = self.core.handle(event, now=self.now)
        assert broken(self.core.desk.cluster) == []
        assert told_before_durable(effects, self.core.desk.cluster) == []
        assert taken_beyond(effects, self.core.desk) == []
        for effect in effects:
            if isinstance(effect, fx.Persist):
                self.journal += [encode(r) for r in effect.records]
            elif isinstance(effect, fx.CreateSeat):
                self.asked.append(effect.seat)
            elif isinstance(effect, fx.Send) and isinstance(effect.command, m.ProbePeer):
                self.probes.append((effect.node, effect.command))
        return [line for e in effects if not isinstance(e, HIDDEN) and (line := show(e))]

    def line(self, text):
        word, *rest = text.split()
        plain = [w for w in rest if "=" not in w or word == "attach"]
        options = dict(w.split("=", 1) for w in rest if "=" in w and word != "attach")
        return getattr(self, f"on_{word}")(*plain, **options)

    def tid(self, short):
        return short if "-" in short else f"{self.run}-{short}"

    def node_of(self, trainer):
        return self.core.desk.cluster.runs[run_of(trainer)].trainers[trainer].node

    def listed(self):
        seats = tuple(s for r in self.core.desk.cluster.open_runs() for s, seat in r.seats.items() if seat.alive)
        return self.do(ev.ClusterListed(nodes=tuple(self.nodes.values()), seats=seats))

    def on_node(self, name, cpus="2"):
        self.nodes[name] = ev.NodeSeen(
            node=name, address=f"host-{name}", alive=True, cpus=float(cpus), gpus=0.0, local=not self.nodes
        )
        return self.listed()

    def on_unlist(self, name):
        seen = self.nodes[name]
        self.nodes[name] = ev.NodeSeen(
            node=name, address=seen.address, alive=False, cpus=seen.cpus, gpus=0.0, local=seen.local
        )
        return self.listed()

    def on_attach(self, name, *trainers):
        hello = m.AgentHello(
            node=name,
            pid=7,
            address="host",
            state_dir="/state",
            versions=m.Versions(atoll="0", protocol=1, python="3"),
            last_incarnation=0,
            trainers=tuple(self.found(t) for t in trainers),
            nics=tuple(Nic(name=n, host=h, prefix=24) for n, h in self.nics.get(name, {}).items()),
            doors=tuple(Door(nic=n, host=h, port=9) for n, h in self.nics.get(name, {}).items()),
            probes=tuple(self.results.get(name, {}).values()),
        )
        return self.do(ev.AgentAttached(hello=hello))

    def on_nics(self, name, **nics):
        self.nics[name] = nics
        return []

    def on_probed(self, *how, **rates):
        under_way, self.probes = self.probes, []
        return [line for node, order in under_way if not how for line in self.answer(node, order, rates)]

    def answer(self, node, order, rates):
        ends = ((node, order.nic), (order.peer, order.door.nic))
        rate = float(rates[order.nic]) / 8e-6
        links = tuple(
            Link(source=a, source_nic=x, target=b, target_nic=y, latency_s=1e-4, bandwidth=rate)
            for (a, x), (b, y) in (ends, ends[::-1])
        )
        fact = m.PeerProbed(
            request=order.request, peer=order.peer, at=self.now, seconds=0.25, links=links, beside=order.beside
        )
        if not order.beside or (order.nic, order.peer) not in self.results.setdefault(node, {}):
            self.results.setdefault(node, {})[order.nic, order.peer] = fact
        return self.do(ev.AgentSaid(node=node, fact=fact))

    def on_saw(self, short, source, nic, target, rate):
        seen = Observation(
            source=source,
            source_nic=nic,
            target=target,
            target_nic=nic,
            bytes=int(float(rate) / 8e-6 * 0.2),
            busy_s=0.2,
            rtt_s=1e-4,
            window_s=0.2,
        )
        return self.fact([short], lambda t: m.LinksObserved(trainer=t, epoch=1, observations=(seen,)))

    def found(self, text):
        short, _, state = text.partition(":")
        trainer = self.tid(short)
        status = int(state.partition("=")[2]) if state.startswith("gone") else None
        run = trainer.rpartition("-")[0]
        return m.FoundTrainer(
            trainer=trainer,
            run=run,
            seat="",
            pid=1,
            start_ticks=1,
            epoch=0,
            ready=state == "ready",
            host="host",
            port=1,
            exit_status=status,
        )

    def on_detach(self, name):
        return self.do(ev.AgentDetached(node=name, evidence="stream ended"))

    def on_submit(self, name, *flags, workers="2", spares="1", kind="train", cpus="0.4", **others):
        spec = JobSpec(
            name=name,
            kind=JobKind(kind),
            working_dir="/w",
            file="train.py",
            **vars_of(workers, **others),
            spares=int(spares),
            cpus_per_worker=float(cpus),
            detach="attached" not in flags,
        )
        self.run = name
        return self.do(ev.RunAsked(request="q", run=name, spec=spec, run_dir="/runs", secret="00"))

    def on_seats(self, *how):
        if how:
            return self.do(ev.ClusterListed(nodes=tuple(self.nodes.values()), seats=()))
        asked, self.asked = self.asked, []
        return [line for seat in asked for line in self.do(ev.SeatCreated(seat=seat))]

    def each(self, shorts, make):
        lines = []
        for short in shorts:
            trainer = self.tid(short)
            lines += self.do(ev.AgentSaid(node=self.node_of(trainer), fact=make(trainer)))
        return lines

    def fact(self, shorts, make):
        return self.each(shorts, lambda t: m.TrainerSaid(run=run_of(t), fact=make(t)))

    def on_began(self, *shorts):
        return self.each(shorts, lambda t: m.TrainerStarted(trainer=t, run=self.run, pid=1, start_ticks=1))

    def on_ready(self, *shorts):
        return self.fact(shorts, lambda t: m.TrainerReady(trainer=t, host="host", port=1))

    def on_joined(self, *shorts):
        epoch = self.core.desk.cluster.runs[self.run].epoch
        return self.fact(shorts, lambda t: m.EpochJoined(trainer=t, epoch=epoch, step=1))

    def on_finished(self, *shorts):
        return self.fact(shorts, lambda t: m.TrainerFinished(trainer=t, step=9))

    def on_serving(self, *shorts):
        return self.fact(shorts, lambda t: m.ServerReady(trainer=t, host="host", port=80, model="gpt", step=5))

    def on_failed(self, short, code, *words):
        return self.fact([short], lambda t: m.TrainerFailed(trainer=t, step=3, code=code, problem=" ".join(words)))

    def on_commit(self, short, step, *backup):
        told = {"epoch": 1, "step": int(step), "at": 1.0, "step_s": 0.1, "samples": 8, "backup": " ".join(backup)}
        return self.fact([short], lambda t: m.StepCommitted(trainer=t, **told))

    def on_saved(self, short, step):
        return self.fact(
            [short],
            lambda t: m.CheckpointCommitted(trainer=t, step=int(step), path=f"/ckpt/{step}", bytes=1, seconds=0.1),
        )

    def on_exit(self, short, status="-9"):
        oom = status == "oom"
        fact = m.TrainerExited(
            trainer=self.tid(short),
            run=run_of(self.tid(short)),
            pid=1,
            exit_status=-9 if oom else int(status),
            log_tail="boom",
            out_of_memory=oom,
        )
        return self.each([short], lambda _: fact)

    def on_down(self, short, peer):
        epoch = self.core.desk.cluster.runs[self.run].epoch
        return self.fact([short], lambda t: m.PeerDown(trainer=t, epoch=epoch, peer=self.tid(peer), evidence="reset"))

    def on_stop(self, name):
        self.run = name
        return self.do(ev.StopAsked(request="q", run=name, reason="asked"))

    def on_resize(self, name, workers):
        self.run = name
        return self.do(ev.ResizeAsked(request="q", run=name, workers=int(workers), reason="asked"))

    def on_suspend(self, name):
        self.run = name
        return self.do(ev.SuspendAsked(request="q", run=name, reason="asked"))

    def on_resume(self, name):
        self.run = name
        return self.do(ev.ResumeAsked(request="q", run=name, reason="asked"))

    def on_queues(self, **cpus):
        queues = tuple(
            QueueWish(name=n, cohort="all", quota=(QuotaWish(flavor="any", cpus=float(c)),)) for n, c in cpus.items()
        )
        sharing = Sharing(flavor=(FlavorWish(name="any"),), queue=queues)
        return self.do(ev.QueuesAsked(request="q", sharing=sharing, by="somebody"))

    def on_waits(self, name):
        return [f"{name} waits: {self.core.desk.cluster.runs[name].reason}"]

    def on_left(self, *shorts):
        return self.fact(shorts, lambda t: m.TrainerFinished(trainer=t, step=9, suspended=True))

    def on_beat(self, name):
        return self.do(ev.DriverBeat(run=name))

    def on_drain(self, name, within):
        return self.do(ev.DrainAsked(request="q", node=name, within_s=float(within), reason="asked"))

    def on_undrain(self, name):
        return self.do(ev.UndrainAsked(request="q", node=name))

    def on_notice(self, name, notice, left):
        return self.do(ev.AgentSaid(node=name, fact=m.NodeLeaving(node=name, notice=notice, left_s=float(left))))

    def on_steps(self, count, grains="16", **paces):
        return [line for _ in range(int(count)) for line in self.step(int(grains), paces)]

    def step(self, grains, paces):
        run = self.core.desk.cluster.runs[self.run]
        self.steps += 1
        epoch, shares = run.epoch, share(grains, [x.weight for x in run.members])
        counts = {x.trainer: len(r) for x, r in zip(run.members, shares, strict=True)}
        spent = {t: n * float(paces[t.rpartition("-")[2]]) for t, n in counts.items()}
        told = {
            t: m.StepCommitted(
                trainer=t,
                epoch=epoch,
                step=self.steps,
                at=self.now,
                step_s=max(spent.values()) + 0.01,
                samples=grains,
                grains=counts[t],
                compute_s=spent[t],
                wait_s=max(spent.values()) - spent[t] + 0.01,
            )
            for t in spent
        }
        return [line for t in told for line in self.fact([t], told.__getitem__)]

    def on_shutdown(self):
        return self.do(ev.ShutdownAsked(request="q"))

    def on_tick(self, seconds="0.1"):
        lines = []
        for _ in range(round(float(seconds) * 10)):
            self.now += 0.1
            for node in self.core.desk.nodes.values():
                if node.attached:
                    self.core.handle(
                        ev.AgentSaid(
                            node=node.node, fact=m.AgentBeat(node=node.node, cpu_percent=1.0, free_bytes=1, trainers=0)
                        ),
                        now=self.now,
                    )
            lines += self.do(ev.Tick())
        return lines

    def on_stall(self, seconds):
        self.now += float(seconds)
        return self.do(ev.Tick())

    def on_restart(self):
        before = self.core.desk.cluster
        self.incarnation += 1
        self.core = Core(self.incarnation, [RECORDS.decode(line) for line in self.journal])
        self.asked = []
        self.probes = []
        for run in before.runs.values():
            again = self.core.desk.cluster.runs[run.run]
            assert (again.state, again.epoch, again.members) == (run.state, run.epoch, run.members)
        return [f"replayed {len(self.journal)} records", *self.listed()]


def run_of(trainer):
    return trainer.rpartition("-")[0]


def vars_of(workers, queue="default", priority="50", expected=None):
    sizes = bounds(workers)
    return {
        "workers": sizes.workers,
        "min_workers": sizes.min_workers,
        "worker_sizes": sizes.worker_sizes,
        "queue": queue,
        "priority": int(priority),
        "expected_s": None if expected is None else float(expected),
    }


SHOWN = {
    fx.Note: lambda e: f"  {e.subject} {e.kind}: {e.text}",
    fx.Send: lambda e: f"{e.node} <- {command(e.command)}",
    fx.CreateSeat: lambda e: f"create {e.seat} on {e.node}",
    fx.KillSeat: lambda e: f"kill {e.seat}",
    fx.StartAgent: lambda e: f"start an agent on {e.node}",
    fx.Reply: lambda e: f"answer {e.problem.code}: {e.problem.problem}" if e.problem else f"answer {e.value}",
}
SAID = {
    m.TellTrainer: lambda c: f"{c.trainer}: {told(c.command)}",
    m.Adopt: lambda c: f"adopt by {c.incarnation}, keep {' '.join(c.keep) or '-'}",
    m.StartTrainer: lambda c: f"start {c.trainer} in {c.seat}" + (f" from {c.spec.resume}" if c.spec.resume else ""),
    m.FenceTrainer: lambda c: f"fence {c.trainer}: {c.reason}",
    m.ForgetTrainer: lambda c: f"forget {c.trainer}",
    m.LeaveNode: lambda c: "leave the node",
    m.WatchPeers: lambda c: (
        f"beat to {' '.join(p.node for p in c.beat) or '-'}, listen for {' '.join(c.listen) or '-'}"
    ),
    m.ProbePeer: lambda c: f"probe {c.peer} at {c.door.host} by {c.nic} ({c.burst_s * 1000:.0f} ms)",
}


def show(effect):
    return SHOWN[type(effect)](effect)


def command(said):
    return SAID[type(said)](said)


def told(inner):
    if isinstance(inner, m.Membership):
        known = f", {len(inner.topology.links)} links known" if inner.topology else ""
        unlike = len({x.weight for x in inner.members}) > 1
        weights = f", weights {' '.join(f'{x.weight:g}' for x in inner.members)}" if unlike else ""
        return f"epoch {inner.epoch} of {' '.join(x.trainer for x in inner.members)}{weights}{known}"
    return "save and leave at boundary" if inner.suspend else "stop at boundary"


def play(text):
    world, out = World(), []
    for block in text.strip().split("\n\n"):
        said = block.split("\n----")[0].splitlines()
        heard = [line for s in said if s and not s.startswith("#") for line in world.line(s)]
        out.append("\n".join([*said, "----", *heard]))
    return "\n\n".join(out) + "\n"


@pytest.mark.parametrize("path", sorted(HERE.glob("*.txt")), ids=lambda p: p.stem)
def test_transcript_reads_as_kept(path, reads_as_kept):
    reads_as_kept(path, play)


def test_transcripts_exist():
    assert len(list(HERE.glob("*.txt"))) >= 8
