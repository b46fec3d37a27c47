"""An agent is never silent for longer than a beat, and says nothing extra while it has something to say."""

import asyncio
from types import SimpleNamespace

import pytest

from atoll.workers import agent_runtime
from atoll.workers.agent_runtime import Agent

ROUND_S = agent_runtime.GREETING_S


class Line:
    """The stream to the control plane, and a clock that moves while somebody sleeps."""

    def __init__(self, chatter_s):
        self.now, self.sent_at, self.said, self.beats = 100.0, 100.0, [], 0
        self.chatter_s = chatter_s

    def monotonic(self):
        return self.now

    def send(self, _fact):
        self.beats += 1
        self.note()

    def note(self):
        self.sent_at = self.now
        self.said.append(self.now)

    async def sleep(self, seconds):
        end = self.now + seconds
        while self.sent_at + self.chatter_s < end:
            self.now = self.sent_at + self.chatter_s
            self.note()
        self.now = end


def rounds(monkeypatch, chatter_s, many=5):
    line = Line(chatter_s)
    monkeypatch.setattr(asyncio, "sleep", line.sleep)
    agent = SimpleNamespace(_clock=line, _link=line)

    async def play():
        for _ in range(many):
            await Agent._say_it_lives(agent, "beat")

    asyncio.run(play())
    return line


def gaps(line):
    return [b - a for a, b in zip(line.said, line.said[1:], strict=False)]


@pytest.mark.parametrize("chatter_s", [float("inf"), 0.4, agent_runtime.BEAT_S, 0.1])
def test_agent_is_never_silent_for_longer_than_a_beat(monkeypatch, chatter_s):
    assert max(gaps(rounds(monkeypatch, chatter_s))) <= agent_runtime.BEAT_S + 1e-6


def test_agent_that_talks_anyway_beats_once_a_round(monkeypatch):
    assert rounds(monkeypatch, 0.1, many=5).beats == 5


def test_silent_agent_beats_all_the_time(monkeypatch):
    line = rounds(monkeypatch, float("inf"), many=4)
    assert line.beats >= 4 * ROUND_S / agent_runtime.BEAT_S - 1
