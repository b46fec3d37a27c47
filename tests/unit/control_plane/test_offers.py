"""What an autoscaler offers keeps runs from being refused, for as long as it says so."""

from atoll.control_plane import effects as fx
from atoll.control_plane import events as ev
from atoll.control_plane import records as r
from atoll.control_plane.core import Core
from atoll.control_plane.offers import HOLDS_S
from atoll.schema.offers import MachineOffer
from atoll.schema.spec import JobSpec
from atoll.schema.views import RunState

RACK = MachineOffer(kind="rack", most=2, cpus=4.0, labels={"pool": "x"})


class Cluster:
    """A core whose only node is a head without CPUs."""

    def __init__(self):
        self.core = Core(1)
        self.now = 1000.0
        head = ev.NodeSeen(node="head", address="h", alive=True, cpus=0.0, gpus=0.0, local=True)
        self.tell(ev.ClusterListed(nodes=(head,), seats=()))

    def tell(self, event):
        return self.core.handle(event, now=self.now)

    def pass_(self, seconds):
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            self.tell(ev.Tick())

    def offer(self, *offers):
        (reply,) = [e for e in self.tell(ev.MachinesOffered(request="o", offers=offers)) if isinstance(e, fx.Reply)]
        return reply.value

    def submit(self, name, **options):
        spec = JobSpec(name=name, working_dir="/w", file="t.py", spares=0, detach=True, **options)
        event = ev.RunAsked(request="s", run=name, spec=spec, run_dir="/r", secret="00")
        return next(e for e in self.tell(event) if isinstance(e, fx.Reply))


def test_run_that_fits_on_offered_machines_waits_and_one_that_does_not_is_refused():
    cluster = Cluster()
    assert cluster.submit("a", workers=8, cpus_per_worker=1.0).problem.code == "does-not-fit"
    assert cluster.offer(RACK) == {"offers": 1}
    assert cluster.submit("a", workers=8, cpus_per_worker=1.0).problem is None
    assert cluster.core.desk.cluster.runs["a"].state is RunState.QUEUED
    assert cluster.submit("b", workers=9, cpus_per_worker=1.0).problem.code == "does-not-fit"
    cluster.pass_(2)
    assert cluster.core.desk.cluster.runs["a"].state is RunState.QUEUED


def test_journal_that_holds_a_number_beyond_all_bounds_is_still_one_to_start_from():
    """Earlier versions let such numbers pass."""
    spec = JobSpec(name="a", working_dir="/w", file="t.py", cpus_per_worker=1e305, batch=10**400, detach=True)
    journal = [r.RunSubmitted(run="a", spec=spec, run_dir="/r", secret="00", at=0.0)]
    core = Core(2, journal)
    head = ev.NodeSeen(node="head", address="h", alive=True, cpus=4.0, gpus=0.0, local=True)
    for event in (ev.ClusterListed(nodes=(head,), seats=()), ev.Tick(), ev.Tick()):
        core.handle(event, now=1.0)
    assert core.desk.cluster.runs["a"].state is RunState.QUEUED


def test_machines_that_stand_are_offered_no_second_time():
    cluster = Cluster()
    rack = ev.NodeSeen(
        node="r1", address="r", alive=True, cpus=4.0, gpus=0.0, local=False, labels={"atoll-node-type": "rack"}
    )
    cluster.offer(RACK)
    head = ev.NodeSeen(node="head", address="h", alive=True, cpus=0.0, gpus=0.0, local=True)
    cluster.tell(ev.ClusterListed(nodes=(head, rack), seats=()))
    assert cluster.submit("a", workers=8, cpus_per_worker=1.0).problem is None
    assert cluster.submit("b", workers=9, cpus_per_worker=1.0).problem.code == "does-not-fit"


def test_decisions_of_an_autoscaler_are_lines_of_its_story():
    cluster = Cluster()
    said = ev.MachinesOffered(request="o", offers=(RACK,), decisions=("start rack-1: a waits", "x" * 5000))
    notes = [e for e in cluster.tell(said) if isinstance(e, fx.Note)]
    assert [(n.subject, n.kind, n.text[:20]) for n in notes] == [
        ("autoscaler", "machines", "start rack-1: a wait"),
        ("autoscaler", "machines", "x" * 20),
    ]
    assert len(notes[1].text) == 1000


def test_offers_hold_for_a_while_and_the_last_ones_count():
    cluster = Cluster()
    cluster.offer(RACK)
    cluster.pass_(HOLDS_S - 1)
    assert cluster.submit("a", workers=1, cpus_per_worker=1.0).problem is None
    cluster.pass_(2)
    assert cluster.submit("b", workers=1, cpus_per_worker=1.0).problem.code == "does-not-fit"
    cluster.offer(MachineOffer(kind="small", most=1, cpus=1.0))
    assert cluster.submit("c", workers=2, cpus_per_worker=1.0).problem.code == "does-not-fit"
    cluster.offer()
    assert cluster.submit("d", workers=1, cpus_per_worker=1.0).problem.code == "does-not-fit"
