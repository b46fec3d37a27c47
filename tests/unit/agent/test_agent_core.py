from __future__ import annotations

import dataclasses

import pytest

from atoll.schema.codec import decode_as, encode
from atoll.schema.messages import (
    Adopt,
    AgentHello,
    EpochJoined,
    Examine,
    FenceTrainer,
    ForgetTrainer,
    LeaveNode,
    LinksObserved,
    Member,
    Membership,
    PeerDown,
    PeerProbed,
    ProbePeer,
    ReadLog,
    StartTrainer,
    StepCommitted,
    StopAtBoundary,
    TellTrainer,
    TrainerExited,
    TrainerFailed,
    TrainerFinished,
    TrainerHello,
    TrainerReady,
    TrainerSaid,
    TrainerStarted,
    Versions,
)
from atoll.schema.spec import JobSpec
from atoll.schema.topology import Door, Link, Nic
from atoll.workers.agent_core import AgentCore, Self
from atoll.workers.agent_messages import (
    Answer,
    Attached,
    CommandCame,
    Connected,
    Detached,
    Ended,
    Fork,
    Forked,
    ForkFailed,
    Kill,
    Leave,
    Probe,
    Probed,
    Refuse,
    Said,
    Save,
    Saved,
    Send,
    Tell,
    Watch,
)
from atoll.workers.trainer_records import EXIT_UNKNOWN

ME = Self(
    node="node-1",
    pid=7,
    address="127.0.0.1",
    state_dir="/state",
    home="/home",
    versions=Versions(atoll="0", protocol=1, python="3.11"),
)
SPEC = JobSpec(name="job", working_dir="/w", file="train.py")
START = StartTrainer(run="r", trainer="t1", seat="s1", spec=SPEC, run_dir="/runs/r", secret="00")
HELLO = TrainerHello(trainer="t1", run="r", pid=100, start_ticks=5, epoch=0, ready=False)
FORKED = Forked(trainer="t1", pid=100, start_ticks=5)
STEP = StepCommitted(trainer="t1", epoch=1, step=1, at=0.0, step_s=0.1, samples=4)
FINISHED = TrainerFinished(trainer="t1", step=9)


class Driver:
    """An `AgentCore` and what became of it."""

    def __init__(self, saved=None):
        self.core = AgentCore(ME, saved)
        self.now = 0.0

    def __call__(self, event):
        return self.core.handle(event, now=self.now)

    def command(self, command, incarnation=1):
        return self(CommandCame(incarnation=incarnation, command=command))

    def attach(self, keep=("t1",), incarnation=1):
        hello = self(Attached())
        return hello + self.command(Adopt(incarnation=incarnation, keep=keep), incarnation)

    def trainer(self):
        self.command(START)
        self(FORKED)
        return self(Connected(hello=HELLO))


@pytest.fixture
def agent():
    driver = Driver()
    driver.attach(keep=())
    return driver


def sent(effects):
    return [e.fact for e in effects if isinstance(e, Send)]


def kinds(effects):
    return [type(e) for e in effects]


def membership(epoch):
    member = Member(trainer="t1", rank=0, node="node-1", host="h", port=1)
    return Membership(run="r", epoch=epoch, members=(member,))


def test_a_start_is_written_down_before_the_fork(agent):
    assert kinds(agent.command(START)) == [Save, Fork]


def test_a_start_said_twice_forks_once(agent):
    agent.command(START)
    assert agent.command(START) == []


def test_a_forked_trainer_is_watched_and_told_of(agent):
    agent.command(START)
    effects = agent(FORKED)
    assert kinds(effects) == [Save, Watch, Send]
    assert sent(effects) == [TrainerStarted(trainer="t1", run="r", pid=100, start_ticks=5)]


def test_a_lower_incarnation_is_refused():
    agent = Driver()
    agent.attach(keep=(), incarnation=5)
    assert kinds(agent.command(START, incarnation=4)) == [Refuse]
    assert kinds(agent.command(Adopt(incarnation=4, keep=()), incarnation=5)) == [Refuse]
    assert agent.core.saved().incarnation == 5


def test_the_incarnation_survives_the_agent():
    agent = Driver()
    agent.attach(keep=(), incarnation=5)
    later = Driver(decode_as(Saved, encode(agent.core.saved())))
    assert kinds(later.attach(keep=(), incarnation=3)) == [Send, Refuse]


def test_adoption_kills_exactly_those_not_kept(agent):
    agent.trainer()
    agent.command(dataclasses.replace(START, trainer="t2"))
    agent(Forked(trainer="t2", pid=101, start_ticks=6))
    effects = agent.command(Adopt(incarnation=2, keep=("t2",)), 2)
    assert [(e.pid, e.start_ticks) for e in effects if isinstance(e, Kill)] == [(100, 5)]


def test_a_fork_under_way_is_neither_told_of_nor_killed_by_an_adoption(agent):
    agent.command(START)
    agent(Detached())
    hello, *rest = agent.attach(keep=(), incarnation=2)
    assert hello.fact.trainers == ()
    assert Kill not in kinds(rest)
    assert agent.command(START, incarnation=2) == []
    assert kinds(agent(FORKED)) == [Save, Watch, Send]


def test_a_disowned_trainer_is_told_of_once_more_and_forgotten(agent):
    agent.trainer()
    agent.command(Adopt(incarnation=2, keep=()), 2)
    assert [type(f) for f in sent(agent(Ended(trainer="t1", exit_status=-9)))] == [TrainerExited]
    assert agent.core.saved().trainers == ()


def test_a_kill_for_memory_is_told_as_such(agent):
    agent.trainer()
    (exited,) = sent(agent(Ended(trainer="t1", exit_status=-9, out_of_memory=True)))
    assert (exited.exit_status, exited.out_of_memory) == (-9, True)


def test_a_fence_before_the_fork_kills_as_soon_as_the_pid_is_known(agent):
    agent.command(START)
    fence = FenceTrainer(run="r", trainer="t1", reason="moved")
    assert agent.command(fence) == []
    assert [e.pid for e in agent(FORKED) if isinstance(e, Kill)] == [100]


def test_a_fence_of_an_unknown_or_ended_trainer_is_answered_at_once(agent):
    fence = FenceTrainer(run="r", trainer="t1", reason="moved")
    (unknown,) = sent(agent.command(fence))
    assert (unknown.pid, unknown.exit_status) == (0, EXIT_UNKNOWN)
    agent.trainer()
    agent(Ended(trainer="t1", exit_status=1))
    (ended,) = sent(agent.command(fence))
    assert (ended.pid, ended.exit_status) == (100, 1)


def test_a_membership_that_comes_before_the_link_is_told_on_connecting(agent):
    agent.command(START)
    agent(FORKED)
    assert agent.command(TellTrainer(trainer="t1", command=membership(1))) == []
    told = [e.command for e in agent(Connected(hello=HELLO)) if isinstance(e, Tell)]
    assert told == [membership(1)]


def test_a_trainer_that_reconnects_hears_only_what_is_newer_than_its_epoch(agent):
    agent.trainer()
    agent.command(TellTrainer(trainer="t1", command=membership(2)))
    agent.command(TellTrainer(trainer="t1", command=StopAtBoundary(reason="user")))
    again = dataclasses.replace(HELLO, epoch=2)
    told = [e.command for e in agent(Connected(hello=again)) if isinstance(e, Tell)]
    assert told == [StopAtBoundary(reason="user")]


def test_a_stranger_under_a_known_name_is_killed(agent):
    agent.trainer()
    impostor = dataclasses.replace(HELLO, pid=200, start_ticks=9)
    assert kinds(agent(Connected(hello=impostor))) == [Kill]


def test_a_fork_that_shows_up_after_its_failure_was_told_is_killed(agent):
    agent.command(START)
    (exited,) = sent(agent(ForkFailed(trainer="t1", problem="zygote died")))
    assert (exited.exit_status, exited.log_tail) == (EXIT_UNKNOWN, "zygote died")
    assert kinds(agent(Connected(hello=HELLO))) == [Kill]


def test_a_trainer_that_nobody_recorded_is_taken_in_from_its_hello(agent):
    effects = agent(Connected(hello=HELLO))
    assert kinds(effects) == [Save, Watch, Send]
    assert agent.core.living()[0].pid == 100


def test_words_of_trainers_are_passed_on_unchanged(agent):
    agent.trainer()
    assert sent(agent(Said(trainer="t1", fact=STEP))) == [TrainerSaid(run="r", fact=STEP)]


def test_measurements_wait_while_the_control_plane_is_away_and_leave_in_order(agent):
    agent.trainer()
    agent.now = 100.0
    agent(Detached())
    steps = [dataclasses.replace(STEP, step=n) for n in (2, 3)]
    for step in steps:
        assert sent(agent(Said(trainer="t1", fact=step))) == []
    said = [f.fact for f in sent(agent.attach()) if isinstance(f, TrainerSaid)]
    assert said == steps


def test_what_left_just_before_the_break_is_said_again(agent):
    agent.trainer()
    agent(Said(trainer="t1", fact=STEP))
    agent.now = 2.0
    agent(Detached())
    assert TrainerSaid(run="r", fact=STEP) in sent(agent.attach())


def test_what_left_just_before_a_long_outage_is_said_again(agent):
    agent.trainer()
    agent(Said(trainer="t1", fact=STEP))
    agent(Detached())
    agent.now = 60.0
    assert TrainerSaid(run="r", fact=STEP) in sent(agent.attach())


def test_standing_words_are_said_again_after_adoption_and_old_measurements_are_not(agent):
    agent.trainer()
    ready = TrainerReady(trainer="t1", host="h", port=9)
    joined = [EpochJoined(trainer="t1", epoch=e, step=e) for e in (1, 2)]
    for fact in (ready, *joined, STEP):
        agent(Said(trainer="t1", fact=fact))
    agent.now = 60.0
    agent(Detached())
    hello, *said = sent(agent.attach())
    assert [f.fact for f in said] == [ready, joined[1]]
    (found,) = hello.trainers
    assert (found.ready, found.host, found.port, found.epoch) == (True, "h", 9, 2)


def test_an_end_while_the_control_plane_is_away_is_in_the_hello(agent):
    agent.trainer()
    agent(Said(trainer="t1", fact=FINISHED))
    agent(Detached())
    agent(Ended(trainer="t1", exit_status=0))
    hello = sent(agent.attach())[0]
    assert isinstance(hello, AgentHello)
    assert (hello.trainers[0].exit_status, hello.trainers[0].outcome) == (0, FINISHED)


def test_finished_is_said_before_exited_also_across_a_break(agent):
    agent.trainer()
    agent(Detached())
    agent(Said(trainer="t1", fact=FINISHED))
    agent(Ended(trainer="t1", exit_status=0))
    facts = [type(getattr(f, "fact", f)) for f in sent(agent.attach())[1:]]
    assert facts[-2:] == [TrainerFinished, TrainerExited]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (FINISHED, 0),
        (TrainerFailed(trainer="t1", step=1, code="program-failed", problem="x"), 1),
        (None, EXIT_UNKNOWN),
    ],
)
def test_an_exit_that_nobody_reaped_gets_its_status_from_the_outcome(agent, outcome, status):
    agent.trainer()
    if outcome:
        agent(Said(trainer="t1", fact=outcome))
    (exited,) = sent(agent(Ended(trainer="t1", exit_status=None)))
    assert exited.exit_status == status


def test_an_end_is_reported_once(agent):
    agent.trainer()
    agent(Ended(trainer="t1", exit_status=-9))
    assert agent(Ended(trainer="t1", exit_status=None)) == []
    assert agent(Said(trainer="t1", fact=STEP)) == []


def test_outcomes_are_kept_until_forgotten(agent):
    agent.trainer()
    agent(Said(trainer="t1", fact=FINISHED))
    agent(Ended(trainer="t1", exit_status=0))
    assert len(agent.core.saved().trainers) == 1
    agent.command(ForgetTrainer(trainer="t1"))
    assert agent.core.saved().trainers == ()
    agent(Detached())
    hello, *said = sent(agent.attach())
    assert (hello.trainers, said) == ((), [])


def test_the_record_brings_trainers_over_an_agents_restart(agent):
    agent.trainer()
    agent(Said(trainer="t1", fact=TrainerReady(trainer="t1", host="h", port=9)))
    later = Driver(decode_as(Saved, encode(agent.core.saved())))
    (found,) = later.core.living()
    assert (found.pid, found.start_ticks, found.ready, found.seat) == (100, 5, True, "s1")
    assert later.core.log_of("t1", "r") == "/runs/r/logs/t1.log"


def test_leaving_kills_everyone_and_forks_under_way_too(agent):
    agent.trainer()
    agent.command(dataclasses.replace(START, trainer="t2"))
    assert kinds(agent.command(LeaveNode(reason="down"))) == [Kill, Leave]
    assert Kill in kinds(agent(Forked(trainer="t2", pid=101, start_ticks=6)))


def test_questions_are_handed_to_the_shell_with_the_path_of_the_log(agent):
    ask = ReadLog(request="q", run="r", trainer="gone", offset=0, limit=10)
    assert agent.command(ask) == [Answer(question=ask, log="/home/runs/r/logs/gone.log")]
    examine = Examine(request="q", now=1.0)
    assert agent.command(examine) == [Answer(question=examine)]


def test_evidence_of_a_peers_loss_is_passed_on(agent):
    agent.trainer()
    down = PeerDown(trainer="t1", epoch=1, peer="t2", evidence="reset")
    assert sent(agent(Said(trainer="t1", fact=down))) == [TrainerSaid(run="r", fact=down)]


# -- links -----------------------------------------------------------------------------------------------------------

ORDER = ProbePeer(
    request="q",
    peer="node-2",
    nic="eth0",
    host="10.0.0.1",
    door=Door(nic="eth0", host="10.0.0.2", port=9),
    burst_s=0.02,
    limit_s=5,
)


def probed(rate, *, beside=False):
    ends = {"source": "node-1", "source_nic": "eth0", "target": "node-2", "target_nic": "eth0"}
    link = Link(**ends, latency_s=1e-4, bandwidth=rate)
    return PeerProbed(request="q", peer="node-2", at=1.0, seconds=0.1, links=(link,), beside=beside)


def test_a_probe_is_carried_out_and_its_result_said_now_and_to_the_next_control_plane(agent):
    assert agent.command(ORDER) == [Probe(order=ORDER)]
    assert sent(agent(Probed(fact=probed(5.0)))) == [probed(5.0)]
    agent(Detached())
    assert agent(Probed(fact=probed(6.0))) == []
    assert sent(agent(Attached()))[0].probes == (probed(6.0),)


def test_a_result_beside_others_does_not_replace_one_alone(agent):
    for fact in (probed(5.0), probed(2.0, beside=True)):
        agent(Probed(fact=fact))
    assert sent(agent(Attached()))[0].probes == (probed(5.0),)


def test_a_probe_that_failed_is_said_once(agent):
    failed = PeerProbed(request="q", peer="node-2", at=1.0, seconds=0.1, problem="refused")
    assert sent(agent(Probed(fact=failed))) == [failed]
    assert sent(agent(Attached()))[0].probes == ()


def test_nics_and_doors_are_part_of_the_hello():
    nic, door = Nic(name="eth0", host="10.0.0.1"), Door(nic="eth0", host="10.0.0.1", port=9)
    core = AgentCore(dataclasses.replace(ME, nics=(nic,), doors=(door,)))
    hello = sent(core.handle(Attached(), now=0.0))[0]
    assert (hello.nics, hello.doors) == ((nic,), (door,))


def test_doors_of_a_trainer_are_told_again_with_it(agent):
    agent.trainer()
    doors = (Door(nic="eth1", host="10.1.0.1", port=9),)
    agent(Said(trainer="t1", fact=TrainerReady(trainer="t1", host="h", port=9, doors=doors)))
    assert sent(agent(Attached()))[0].trainers[0].doors == doors


def test_observations_pass_and_may_be_dropped(agent):
    agent.trainer()
    fact = LinksObserved(trainer="t1", epoch=1, observations=())
    assert sent(agent(Said(trainer="t1", fact=fact))) == [TrainerSaid(run="r", fact=fact)]
    agent(Detached())
    for _ in range(12_000):
        agent(Said(trainer="t1", fact=fact))
    assert len(sent(agent.attach(keep=("t1",)))) <= 10_001
