"""Which remote copy counts, as a trainer asks the control plane: one decision for each step, whoever asks and however often."""

import threading

import pytest

from atoll.checkpoint.fs_decisions import LinkDecisions, counting
from atoll.errors import CheckpointError
from atoll.schema.messages import CopyDecided, CopyProposed, CopyWithdrawn
from atoll.workers.decisions_runtime import JournalDecisions


class Journal:
    """What the control plane does, for hosts that are connected to it; `lost` is how many answers do not arrive."""

    def __init__(self):
        self.decided, self.withdrawn, self.lost, self.lock = {}, {}, 0, threading.Lock()

    def connect(self, host):
        host.decides, host.on_tell = False, self._told
        return host

    def _told(self, host, fact):
        if not isinstance(fact, CopyProposed | CopyWithdrawn):
            return
        with self.lock:
            gone = self.withdrawn.setdefault(fact.step, [])
            if isinstance(fact, CopyWithdrawn):
                gone.append(fact.record)
                if self.decided.get(fact.step) == fact.record:
                    del self.decided[fact.step]
                return
            if fact.record not in gone:
                self.decided.setdefault(fact.step, fact.record)
            answer = CopyDecided(step=fact.step, record=self.decided.get(fact.step, ""), withdrawn=tuple(gone))
            self.lost -= 1
            lost = self.lost >= 0
        if not lost:
            host.mailbox.put(answer)


@pytest.fixture
def journal():
    return Journal()


@pytest.fixture
def trainer(lone_host, journal, tmp_path):
    """`trainer(folder)`: decisions of one that has a folder of checkpoints of its own, as after a lost disk."""

    def make(folder="kept", **changes):
        host = journal.connect(lone_host())
        kept = LinkDecisions(tmp_path / folder, run="run")
        return JournalDecisions(host, kept, **{"ask_every_s": 0.05} | changes)

    return make


def test_first_that_proposes_wins_and_all_know(trainer):
    one, other = trainer("a"), trainer("b")
    assert one.decide(7, "first") == "first"
    assert other.decide(7, "second") == "first"
    assert (one.decided(7), other.decided(7)) == ("first", "first")
    assert counting(other, 7, ["second"]) == ("", "")


def test_of_many_that_propose_at_once_one_wins(trainer):
    begin, found = threading.Barrier(6), []

    def propose(number):
        decisions = trainer(f"folder-{number}")
        begin.wait(10)
        found.append(decisions.decide(7, f"record-{number}"))

    threads = [threading.Thread(target=propose, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 6
    assert len(set(found)) == 1


def test_answers_that_are_lost_are_asked_for_again(trainer, journal):
    journal.lost = 3
    assert trainer().decide(7, "one") == "one"


def test_without_an_answer_nothing_counts_and_nothing_is_kept(trainer, journal):
    journal.lost = 1000
    decisions = trainer(ask_every_s=0.001)
    with pytest.raises(CheckpointError, match="the control plane decided nothing on step 7"):
        decisions.decide(7, "one")
    assert decisions.decided(7) == ""


def test_withdrawn_copy_never_counts_again_and_another_may(trainer):
    decisions = trainer()
    decisions.decide(7, "one")
    decisions.withdraw(7, "one")
    assert decisions.decided(7) == ""
    assert decisions.decide(7, "one") == ""
    assert counting(decisions, 7, ["one"]) == ("", "")
    assert decisions.decide(7, "two") == "two"
    assert trainer("elsewhere").decide(7, "one") == "two"


def test_folder_that_holds_another_decision_than_the_journal_makes_no_copy_count(trainer, tmp_path):
    LinkDecisions(tmp_path / "kept", run="run").decide(7, "other")
    with pytest.raises(CheckpointError, match="of step 7 the journal holds one, and the run's folder other"):
        trainer().decide(7, "one")


def test_trainer_that_begins_with_a_lost_disk_takes_the_copy_that_was_decided_on(lone_host, tmp_path):
    told = (CopyDecided(step=7, record="one"), CopyDecided(step=8, record="", withdrawn=("bad",)))
    host = lone_host(copies=told)
    decisions = JournalDecisions(host, LinkDecisions(tmp_path / "new", run="run"))
    assert counting(decisions, 7, ["another", "one"]) == ("one", "")
    assert counting(decisions, 7, ["another"]) == ("", "")
    assert counting(decisions, 8, ["bad"]) == ("", "")
