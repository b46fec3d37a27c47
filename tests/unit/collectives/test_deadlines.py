"""The thread that ends overdue operations: one for all groups, gone with the last."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("torch")

from atoll.collectives.torch_deadlines import Deadlines


class Group:
    def __init__(self, due):
        self.due, self.looked = due, threading.Event()

    def due_s(self, now):
        return self.due

    def look(self, now):
        if now >= self.due:
            self.due = float(now + 3600)
            self.looked.set()


def threads():
    return [t.name for t in threading.enumerate() if t.name == "atoll-deadlines"]


def test_a_group_that_is_due_is_looked_at_beside_one_that_is_not():
    deadlines, soon, later = Deadlines(), Group(0.0), Group(float("1e9"))
    deadlines.watch(later)
    deadlines.watch(soon)
    assert soon.looked.wait(5.0)
    assert not later.looked.is_set()
    deadlines.leave(soon)
    assert threads() == ["atoll-deadlines"]
    deadlines.leave(later)
    assert threads() == []


def test_a_shorter_limit_counts_after_a_nudge():
    deadlines, group = Deadlines(), Group(1e9)
    deadlines.watch(group)
    group.due = 0.0
    deadlines.nudge()
    assert group.looked.wait(5.0)
    deadlines.leave(group)


def test_one_who_was_never_watched_may_leave():
    deadlines = Deadlines()
    deadlines.leave(Group(0.0))
    assert threads() == []
