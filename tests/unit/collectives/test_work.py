"""A handle ends once."""

from __future__ import annotations

from atoll.collectives.work import Poison, Work

POISON = Poison(reason="reef", culprit=None, epoch=3)


def test_finished_work_cannot_be_poisoned():
    work = Work()
    work.finish(5)
    work.spoil(POISON)
    assert work.wait(0)
    assert (work.result, work.poison) == (5, None)


def test_poisoned_work_writes_nothing():
    work, written = Work(), []
    work.spoil(POISON)
    work.finish(5, write=lambda: written.append(1))
    assert not work.wait(0)
    assert (work.result, work.poison, written) == (None, POISON, [])


def test_work_under_way_is_neither_done_nor_poisoned():
    work = Work()
    assert not work.wait(0)
    assert not work.ended
    assert work.poison is None


def test_callbacks_run_once_before_or_after_the_end():
    work, told = Work(), []
    work.add_done_callback(told.append)
    work.finish()
    work.finish()
    work.add_done_callback(told.append)
    assert told == [work, work]
