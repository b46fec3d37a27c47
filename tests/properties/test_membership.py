"""Whatever happens in whatever order, memberships do not fork and no committed step is undone; healed, the run goes on.

The cluster of `imagined_failures` is driven at random: processes, agents, hosts, links and the control plane fail and
come back at any moment, also during recoveries. Its own assertions hold what really happened against the laws at each
commit and each regroup: epochs commit in order, all members of a commit stand at the same step, steps leave no gap, and
nobody who holds a later state is alive when a step is undone.
"""

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from imagined_failures import Cluster
from imagined_faults import RUN

from atoll.control_plane.records import End

HOSTS = ("a1", "a2", "b1", "b2", "c1")
# One that lives through it leaves somebody to go on: of the hosts that lose their power, or are cut off, it is none.
SAFE = "a1"
SLOTS = st.integers(0, 6)
PAUSES = st.sampled_from([0.1, 0.3, 0.7, 1.5, 4.0])
FAULTS = st.one_of(
    st.tuples(st.sampled_from(["kill", "freeze", "hold", "thaw"]), SLOTS),
    st.tuples(st.sampled_from(["off", "on", "agent", "cut", "deafen"]), st.sampled_from(HOSTS[1:])),
    st.tuples(st.sampled_from(["split", "heal", "stall", "restart"]), st.just(None)),
)


class Storm:
    """One random history."""

    def __init__(self):
        self.cluster = Cluster()
        self.cluster.go(4.0)
        assert self.cluster.commits

    def strike(self, kind, where):
        cluster = self.cluster
        match kind:
            case "kill" | "freeze" | "hold" | "thaw":
                self.befall(kind, where)
            case "off" if cluster.hosts[where].on:
                cluster.power_off(where)
            case "on" if not cluster.hosts[where].on:
                cluster.power_on(where)
            case "agent" if cluster.hosts[where].acts:
                cluster.end_agent(where)
            case "cut" | "deafen":
                cluster.cut([h for h in HOSTS if h != where], [where], both=kind == "cut")
            case "split":
                cluster.cut(["b1", "b2"], ["a1", "a2", "c1"])
            case "heal":
                cluster.heal()
            case "stall" | "restart":
                getattr(cluster, kind)(2.0)

    def befall(self, kind, slot):
        """A process that is not on the safe host, unless it gets well."""
        procs = [p for p in self.cluster.procs.values() if p.alive and p.node != SAFE]
        if slot >= len(procs):
            return
        proc = procs[slot]
        if kind == "kill":
            self.cluster.end(proc, status=-9)
        else:
            proc.does = {"freeze": "stopped", "hold": "gil", "thaw": "works"}[kind]

    def mend(self):
        """All that can be mended, is; what cannot (a process that hangs) is the detector's matter."""
        self.cluster.heal()
        for name, host in self.cluster.hosts.items():
            if not host.on:
                self.cluster.power_on(name)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(FAULTS, PAUSES), max_size=10))
def test_epochs_do_not_fork_and_no_committed_step_is_undone(history):
    storm = Storm()
    cluster = storm.cluster
    for (kind, where), pause in history:
        storm.strike(kind, where)
        cluster.go(pause)
    storm.mend()
    before = len(cluster.commits)
    cluster.go(30.0)
    event(f"epochs raised: {cluster.run.epoch - 1}")
    assert len(cluster.commits) > before, "healed, and no step was committed in half a minute"
    assert cluster.undone == 0
    steps = [step for step, _ in cluster.commits]
    assert steps == list(range(1, len(steps) + 1))
    owners = [m.rank for m in cluster.run.members if cluster.procs[m.trainer].alive]
    assert owners == list(range(len(cluster.run.members)))


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(FAULTS, PAUSES), max_size=8))
def test_fenced_trainer_is_gone_and_stays_gone(history):
    storm = Storm()
    cluster = storm.cluster
    for (kind, where), pause in history:
        storm.strike(kind, where)
        cluster.go(pause)
    storm.mend()
    cluster.go(30.0)
    lost = {t.trainer for t in cluster.run.trainers.values() if t.ended is not None and t.ended.end is End.LOST}
    assert not [p.trainer for p in cluster.procs.values() if p.alive and p.trainer in lost]
    assert all(name.startswith(RUN) for name in lost)
