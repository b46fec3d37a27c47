"""Random histories: whatever comes in whatever order, the invariants hold and replay leads to the same place."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.control_plane import effects as fx
from atoll.control_plane import events as ev
from atoll.control_plane.core import Core
from atoll.control_plane.invariants import broken, taken_beyond, told_before_durable
from atoll.control_plane.records import RECORDS, SeatTaken
from atoll.schema import messages as m
from atoll.schema.codec import encode
from atoll.schema.queues import FlavorWish, QueueWish, QuotaWish, Sharing
from atoll.schema.sharing import Alternative
from atoll.schema.spec import JobSpec
from atoll.schema.views import RunState

SLOTS = st.integers(0, 7)
MOVES = st.one_of(
    st.tuples(
        st.sampled_from(["began", "ready", "exit", "finished", "failed", "down", "commit", "saved", "joined"]), SLOTS
    ),
    st.tuples(st.sampled_from(["drain", "undrain", "steps", "resize", "suspend", "resume", "left"]), SLOTS),
    st.tuples(
        st.sampled_from(["tick", "seats", "attach", "detach", "restart", "stop", "submit", "unlist", "list", "share"]),
        SLOTS,
    ),
)


class Storm:
    """Says random but well-formed things to a core, as agents, Ray and people might."""

    def __init__(self):
        self.journal = []
        self.incarnation = 1
        self.core = Core(1)
        self.now = 0.0
        self.asked = []
        self.count = 0
        self.lab = False
        self.epochs = {}
        self.do(listed(alive=True))
        self.submit()

    def do(self, event):
        effects = self.core.handle(event, now=self.now)
        cluster = self.core.desk.cluster
        assert broken(cluster) == []
        assert told_before_durable(effects, cluster) == []
        assert taken_beyond(effects, self.core.desk) == []
        for effect in effects:
            if isinstance(effect, fx.Persist):
                self.journal += [encode(r) for r in effect.records]
                taken = {r.node for r in effect.records if isinstance(r, SeatTaken)}
                assert taken.isdisjoint(cluster.drains) or isinstance(event, ev.DrainAsked)
            if isinstance(effect, fx.CreateSeat):
                self.asked.append(effect.seat)
        for run in cluster.runs.values():
            assert run.epoch >= self.epochs.get(run.run, 0)
            self.epochs[run.run] = run.epoch

    def submit(self):
        self.count += 1
        spec = JobSpec(
            name="r",
            working_dir="/",
            file="f.py",
            workers=1 + self.count,
            min_workers=1,
            spares=self.count % 2,
            priority=20 * self.count,
            queue="lab" if self.count == 2 and self.lab else "default",
            alternatives=(Alternative(labels={"zone": "a"}), Alternative(share=0.5)) if self.count % 2 else (),
            detach=True,
        )
        self.do(ev.RunAsked(request="q", run=f"r{self.count}", spec=spec, run_dir="/d", secret="00"))

    def trainer(self, slot):
        run = list(self.core.desk.cluster.runs.values())[-1]
        trainers = list(run.trainers.values())
        return (run, trainers[-1 - slot]) if slot < len(trainers) else (run, None)

    def fact(self, kind, run, t):
        facts = {
            "ready": m.TrainerReady(trainer=t, host="h", port=1),
            "joined": m.EpochJoined(trainer=t, epoch=run.epoch, step=1),
            "finished": m.TrainerFinished(trainer=t, step=9),
            "left": m.TrainerFinished(trainer=t, step=9, suspended=True),
            "failed": m.TrainerFailed(trainer=t, step=1, code="program-failed", problem="no"),
            "down": m.PeerDown(trainer=t, epoch=run.epoch, peer=next(iter(run.trainers)), evidence="reset"),
            "commit": m.StepCommitted(trainer=t, epoch=run.epoch, step=2, at=1.0, step_s=0.1, samples=1),
            "saved": m.CheckpointCommitted(trainer=t, step=2, path="/c", bytes=1, seconds=0.1),
        }
        return m.TrainerSaid(run=run.run, fact=facts[kind])

    def move(self, kind, slot):
        handler = getattr(self, f"on_{kind}", None)
        if handler is not None:
            handler(slot)
            return
        run, trainer = self.trainer(slot)
        if trainer is None or (kind == "left" and not run.suspending):
            return
        if kind == "began":
            said = m.TrainerStarted(trainer=trainer.trainer, run=run.run, pid=1, start_ticks=1)
        elif kind == "exit":
            said = m.TrainerExited(trainer=trainer.trainer, run=run.run, pid=1, exit_status=-9)
        else:
            said = self.fact(kind, run, trainer.trainer)
        self.do(ev.AgentSaid(node="a", fact=said))

    def on_tick(self, slot):
        for _ in range(1 + slot * 20):
            self.now += 0.1
            self.do(ev.Tick())

    def on_seats(self, _):
        asked, self.asked = self.asked, []
        for seat in asked:
            self.do(ev.SeatCreated(seat=seat))

    def on_attach(self, slot):
        run, _ = self.trainer(0)
        found = tuple(
            m.FoundTrainer(
                trainer=t.trainer,
                run=run.run,
                seat=t.seat,
                pid=1,
                start_ticks=1,
                epoch=0,
                ready=bool(i % 2),
                exit_status=-9 if (i + slot) % 3 == 0 else None,
            )
            for i, t in enumerate(run.trainers.values())
            if (i + slot) % 4
        )
        hello = m.AgentHello(
            node="a",
            pid=1,
            address="h",
            state_dir="/",
            versions=m.Versions(atoll="0", protocol=1, python="3"),
            last_incarnation=0,
            trainers=found,
        )
        self.do(ev.AgentAttached(hello=hello))

    def on_drain(self, slot):
        self.do(ev.DrainAsked(request="q", node="ab"[slot % 2], within_s=slot, reason="asked"))

    def on_resize(self, slot):
        run, _ = self.trainer(0)
        self.do(ev.ResizeAsked(request="q", run=run.run, workers=slot, reason="asked"))

    def on_suspend(self, slot):
        run = list(self.core.desk.cluster.runs.values())[slot % len(self.core.desk.cluster.runs)]
        self.do(ev.SuspendAsked(request="q", run=run.run, reason="asked"))

    def on_resume(self, slot):
        run = list(self.core.desk.cluster.runs.values())[slot % len(self.core.desk.cluster.runs)]
        self.do(ev.ResumeAsked(request="q", run=run.run, reason="asked"))

    def on_undrain(self, slot):
        self.do(ev.UndrainAsked(request="q", node="ab"[slot % 2]))

    def on_steps(self, slot):
        """Ten steps that all members tell of; one of them may be slow."""
        run, _ = self.trainer(0)
        for step in range(run.step + 1, run.step + 11):
            for rank, member in enumerate(run.members):
                compute = 0.1 * (1 + slot if rank == slot % len(run.members) else 1)
                fact = m.StepCommitted(
                    trainer=member.trainer,
                    epoch=run.epoch,
                    step=step,
                    at=1.0,
                    step_s=1.0,
                    samples=8,
                    grains=8,
                    compute_s=compute,
                    wait_s=1.0 - compute,
                )
                self.do(ev.AgentSaid(node=member.node, fact=m.TrainerSaid(run=run.run, fact=fact)))

    def on_detach(self, _):
        self.do(ev.AgentDetached(node="a", evidence="cut"))

    def on_stop(self, _):
        run, _ = self.trainer(0)
        self.do(ev.StopAsked(request="q", run=run.run, reason="asked"))

    def on_submit(self, _):
        if self.count < 4:
            self.submit()

    def on_share(self, slot):
        """A queue comes or goes, and what the other may hold changes: 0.8 CPU are two seats."""
        self.lab = bool(slot & 1)
        own = (QuotaWish(flavor="any", cpus=0.4 * (slot >> 1)),) if slot >> 1 else ()
        queues = (QueueWish(name="default", quota=own), QueueWish(name="lab"))[: 1 + self.lab]
        self.do(ev.QueuesAsked(request="q", sharing=Sharing(flavor=(FlavorWish(name="any"),), queue=queues), by="me"))

    def on_unlist(self, _):
        self.do(listed(alive=False))

    def on_list(self, _):
        self.do(listed(alive=True))

    def on_restart(self, _):
        before = self.core.desk.cluster
        self.incarnation += 1
        self.core = Core(self.incarnation, [RECORDS.decode(line) for line in self.journal])
        self.asked = []
        after = self.core.desk.cluster
        assert durable(after) == durable(before)
        self.do(listed(alive=True))


def listed(*, alive):
    nodes = tuple(
        ev.NodeSeen(
            node=n,
            address="h",
            alive=alive or n == "b",
            cpus=2.0 if n == "a" else 0.8,
            gpus=0.0,
            local=n == "a",
            labels={"zone": n},
        )
        for n in ("a", "b")
    )
    return ev.ClusterListed(nodes=nodes, seats=())


def durable(cluster):
    return [
        (
            run.run,
            run.state,
            run.epoch,
            run.members,
            run.stopping,
            run.checkpoint,
            (run.size, run.most, run.held, run.suspensions, run.disturbed, run.changed_at, run.trainers_made),
            sorted(run.seats),
            [(t.trainer, t.seat, t.ended, t.gone, t.began) for t in run.trainers.values()],
        )
        for run in cluster.runs.values()
    ] + [(cluster.drains, cluster.notices)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MOVES, max_size=60))
def test_invariants_hold_and_replay_is_restart(moves):
    storm = Storm()
    for kind, slot in moves:
        storm.move(kind, slot)
    storm.on_restart(0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MOVES, max_size=40))
def test_every_run_can_be_stopped_to_its_end(moves):
    storm = Storm()
    for kind, slot in moves:
        storm.move(kind, slot)
    for run in list(storm.core.desk.cluster.open_runs()):
        storm.do(ev.StopAsked(request="q", run=run.run, reason="asked"))
    for _ in range(1500):
        storm.now += 0.1
        storm.do(ev.Tick())
    assert all(run.state.ended for run in storm.core.desk.cluster.runs.values())
    assert all(not run.seats for run in storm.core.desk.cluster.runs.values())
    assert {run.state for run in storm.core.desk.cluster.runs.values()} <= {s for s in RunState if s.ended}
