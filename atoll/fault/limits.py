"""How long is too long: every limit follows the run's own step times, and outlasts what observers were late.

Seconds. `strain` is the lateness that this process and the agents showed lately: a machine with four times the work it
can do tells everything late, and late is not silent.
"""

from __future__ import annotations

from dataclasses import dataclass

# A stop that `job control` undoes at once, or a debugger's first look, is shorter.
STOPPED_S = 0.3
# Where nobody waits there is no hurry.
UNAWAITED_S = 5.0
# Agents beat each 0.1 s to one another and each 0.25 s to the control plane: several in a row did not come.
SILENCE_S = 0.6
# Longer than an agent's restart (import and reconnect), shorter than a trainer's lifeline of 60 s.
NODE_SILENCE_S = 15.0
# What falls silent together may be told one after another.
TOGETHER_S = 0.3
# All the others fell silent at once: it may be our own network, and they are many.
ALONE_S = 5.0
# So soon after a cut of ours has healed the agents on its other side are back, one after the other. It is counted in all,
# as a network may come and go: but anew once nobody was heard for `DEAF_S`, and not before one was heard for `SETTLED_S`
# on end.
BACK_S, DEAF_S, SETTLED_S = 15.0, 10.0, 5.0
# A longer silence ends what was heard on end.
PAUSE_S = 2.0
# Collectives of a pace not yet known.
UNKNOWN_STEP_S = 2.0
# Whoever compiles, loads, or builds its first step. What holds the GIL meanwhile gives it back now and then.
FIRST_STEP_S, FIRST_GIL_S = 600.0, 8.0
# A spare that nobody needs yet.
SPARE_GIL_S = 60.0
# Lateness counts so many times: what was late once may be late again.
STRAINS = 3.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one run."""

    step_s: float | None
    strain_s: float

    @property
    def _step(self) -> float:
        return UNKNOWN_STEP_S if self.step_s is None else self.step_s

    @property
    def _late(self) -> float:
        return STRAINS * self.strain_s

    @property
    def gil(self) -> float:
        """An interpreter that gives no thread a turn."""
        return max(1.0, 5 * self._step) + self._late

    @property
    def idle(self) -> float:
        """A process without processor time: it may sleep, wait for a disk or for a download, without having said so."""
        return max(10.0, 20 * self._step) + self._late

    @property
    def absent(self) -> float:
        """A process that works, and does not come: an evaluation without `ctx.busy` looks the same."""
        return max(600.0, 100 * self._step) + self._late

    @property
    def link(self) -> float:
        """Bytes that do not come though their sender is there. To connect anew costs less than to wait."""
        return max(0.7, 3 * self._step) + self._late

    @property
    def unneeded(self) -> float:
        """A node that nobody hears while nobody needs its trainers: longer than a few steps, which would tell."""
        return max(UNAWAITED_S, 3 * self._step) + self._late

    @property
    def words(self) -> str:
        """What the limits rest upon, for people."""
        if self.step_s is None:
            return "the pace of its steps is not known yet"
        return f"its steps take {self.step_s:.2g} s at most, 99 of 100"


def silence(strain_s: float) -> float:
    """How long nothing may be heard of a node."""
    return SILENCE_S + STRAINS * strain_s
