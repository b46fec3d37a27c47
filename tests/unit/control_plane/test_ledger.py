"""Where the time of devices goes: each second of each seat is attributed once, and what was undone is lost."""

import pytest

from atoll.control_plane import records as r
from atoll.control_plane.ledger import Ledger, Use, goodput, use_of
from atoll.control_plane.state import Cluster
from atoll.schema.messages import Member
from atoll.schema.spec import JobSpec
from atoll.schema.views import RunState

DEVICES = {"a": "cpu"}


class World:
    """One run of two workers on node a, told by records; the ledger looks each second."""

    def __init__(self, **spec):
        self.cluster = Cluster()
        self.ledger = Ledger()
        self.clock = 0.0
        self.ledger.due(0.0, 1000.0)
        fields = {"name": "n", "working_dir": "/", "file": "f.py", "workers": 2, "cpus_per_worker": 1.0, "team": "red"}
        job = JobSpec(**(fields | spec))
        self.apply(r.RunSubmitted(run="n", spec=job, run_dir="/", secret="", at=0.0))
        self.run = self.cluster.runs["n"]

    def apply(self, *records):
        for record in records:
            self.cluster.apply(record)

    def placed(self, seats=2):
        for i in range(seats):
            self.apply(r.SeatTaken(run="n", seat=f"n-s{i}", node="a", at=0.0))
        self.apply(r.RunPlaced(run="n", at=0.0))
        for i in range(seats):
            self.apply(r.TrainerAssigned(run="n", trainer=f"n-t{i}", seat=f"n-s{i}", at=0.0))

    def epoch(self, number, *trainers, joined=True):
        members = tuple(Member(trainer=t, rank=i, node="a", host="h", port=1) for i, t in enumerate(trainers))
        self.apply(r.EpochRaised(run="n", epoch=number, members=members, reason="", at=0.0))
        for trainer in trainers:
            self.run.trainers[trainer].ready = True
            self.run.trainers[trainer].joined = number if joined else number - 1

    def saved(self, step):
        self.apply(r.CheckpointKept(run="n", step=step, path="/c", at=0.0))

    def look(self, seconds=1.0, free=0.0):
        self.clock += seconds
        self.ledger.look(self.cluster.open_runs(), DEVICES, {"a": free}, self.clock)
        return self.of("run")

    def of(self, by):
        return next((view for view in goodput(self.ledger) if view.by == by), None)


def test_run_that_waits_is_queued_for_all_it_wants():
    assert World().look(3.0).queued == 6.0


def test_time_before_the_first_epoch_is_starting():
    world = World()
    world.placed()
    assert world.look(2.0).starting == 4.0


def test_members_that_joined_are_useful_and_those_that_meet_are_resharding():
    world = World()
    world.placed()
    world.epoch(1, "n-t0", "n-t1")
    world.look(5.0)
    world.epoch(2, "n-t0", "n-t1", joined=False)
    view = world.look(1.0)
    assert (view.useful, view.resharding, view.goodput) == (10.0, 2.0, pytest.approx(10 / 12))


def test_spare_that_waits_warm_is_idle():
    world = World(spares=1)
    world.placed(3)
    world.epoch(1, "n-t0", "n-t1")
    world.run.trainers["n-t2"].ready = True
    view = world.look(1.0)
    assert (view.useful, view.idle) == (2.0, 1.0)


def test_seat_of_a_lost_trainer_is_lost_until_it_is_replaced():
    world = World()
    world.placed()
    world.epoch(1, "n-t0", "n-t1")
    ended = {"end": r.End.LOST, "was_ready": True, "reason": "killed", "at": 0.0}
    world.apply(r.TrainerEnded(run="n", trainer="n-t1", **ended))
    seat = world.run.seats["n-s1"]
    assert use_of(world.run, seat) is Use.LOST
    world.apply(r.TrainerGone(run="n", trainer="n-t1", evidence="", at=0.0))
    assert use_of(world.run, seat) is Use.STARTING


@pytest.mark.parametrize(
    ("end", "use"),
    [
        (r.End.LEFT, Use.RESHARDING),
        (r.End.FINISHED, Use.CHECKPOINTING),
        (r.End.SUSPENDED, Use.CHECKPOINTING),
        (r.End.EVICTED, Use.LOST),
        (r.End.DISMISSED, Use.LOST),
    ],
)
def test_seat_of_one_whose_part_has_ended_counts_by_how_it_ended(end, use):
    world = World()
    world.placed()
    world.epoch(1, "n-t0", "n-t1")
    world.apply(r.TrainerEnded(run="n", trainer="n-t1", end=end, was_ready=True, reason="", at=0.0))
    assert use_of(world.run, world.run.seats["n-s1"]) is use


def test_what_was_not_saved_is_lost_where_all_members_were():
    world = World()
    world.placed()
    world.epoch(1, "n-t0", "n-t1")
    world.look(4.0)
    world.saved(7)
    world.look(1.0)
    world.look(3.0)
    for i in (0, 1):
        trainer = f"n-t{i}"
        world.apply(
            r.TrainerEnded(run="n", trainer=trainer, end=r.End.LOST, was_ready=True, reason="", at=0.0),
            r.TrainerGone(run="n", trainer=trainer, evidence="", at=0.0),
            r.TrainerAssigned(run="n", trainer=f"n-t{i + 2}", seat=f"n-s{i}", at=0.0),
        )
    world.epoch(2, "n-t2", "n-t3")
    view = world.look(1.0)
    # Four seconds before the checkpoint stay useful; of the four after it nothing is left but the second in epoch 2.
    assert (view.useful, view.lost) == (10.0, 8.0)


def test_suspending_run_is_checkpointing():
    world = World()
    world.placed()
    world.epoch(1, "n-t0", "n-t1")
    world.apply(r.RunStopping(run="n", goal=RunState.QUEUED, reason="", exit_code=0, at=0.0))
    assert world.look(1.0).checkpointing == 2.0


def test_run_that_a_person_holds_does_not_count_as_waiting():
    world = World()
    assert world.look(2.0).queued == 4.0
    world.run.held = True
    assert world.look(3.0).queued == 4.0


def test_time_is_counted_once_and_shown_by_run_team_and_device():
    world = World()
    world.placed()
    world.epoch(1, "n-t0", "n-t1")
    world.look(2.0, free=3.0)
    assert [(v.by, v.name, v.useful, v.idle) for v in goodput(world.ledger)] == [
        ("device", "cpu", 4.0, 6.0),
        ("team", "red", 4.0, 0.0),
        ("run", "n", 4.0, 0.0),
    ]
