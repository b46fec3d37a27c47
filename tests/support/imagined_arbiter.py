"""A shell around a real arbiter, played in virtual time: it carries decisions out after a delay, runs end, nodes go.

What really is held is counted here anew, from decisions alone, and the laws are asserted on that: no device is owned
twice, gangs are whole and of legal sizes, quotas hold, nobody is disturbed more often than allowed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from atoll.control_plane.arbiter import events as ev
from atoll.control_plane.arbiter.catalog import labels_of, selects
from atoll.control_plane.arbiter.core import Arbiter
from atoll.control_plane.arbiter.model import (
    OTHER_FLAVOR,
    Amount,
    Ask,
    Flavor,
    Grant,
    NodeClass,
    NodeState,
    QueueSpec,
    Settings,
)
from atoll.control_plane.arbiter.state import legal_sizes

ONE = 10_000
# As good as no bound, for a queue that may borrow all there is.
ALL = 10**12


def amount(gpus=0, cpus=0):
    return Amount(cpus=round(cpus * ONE), gpus=round(gpus * ONE))


def node(name, *, island="a", gpus=8, device="A", domain="", drained=False, **labels):
    kind = NodeClass(name=f"{device}{gpus}", device=device, total=amount(gpus, gpus * 4), labels=labels)
    return NodeState(node=name, kind=kind, island=island, domain=domain or name, drained=drained)


def ask(run, *, at=0.0, gpus=1.0, **given):
    return Ask(**{"run": run, "submitted_at": at, "each": amount(gpus, gpus), **given})


class Shell:
    """`delay_s`: how long a run takes to give up what it was told to. `log` is what a replay needs."""

    def __init__(self, nodes, *, queues=(), flavors=(), settings=None, delay_s=0.0):
        self.settings = settings or Settings()
        self.arbiter = Arbiter(self.settings)
        self.log = []
        self.now = 0.0
        self.delay_s = delay_s
        self.nodes = {}
        self.flavors = tuple(flavors)
        self.queues = {q.name: q for q in (queues or (QueueSpec(name="default"),))}
        # queues that were taken away, and cohorts that may hold more than is theirs since then
        self.gone = {}
        self.loose = set()
        self.grants = {}
        self.asks = {}
        self.due = []
        self.disturbed = {}
        self.started_at = {}
        self.refused = {}
        if flavors:
            self.do(ev.FlavorsChanged(flavors=self.flavors))
        for state in nodes:
            self.put(state)
        for queue in self.queues.values():
            self.do(ev.QueueChanged(queue=queue))

    def do(self, event):
        self.log.append((self.now, event))
        self.arbiter.handle(event, now=self.now)

    # -- what happens ------------------------------------------------------------------------------------------------

    def put(self, state):
        self.nodes[state.node] = state
        self.do(ev.NodeCameOrChanged(node=state))

    def drop_queue(self, name):
        """The queue is none any more: its runs go on, and of its cohort all may hold what was its own."""
        self.gone[name] = self.queues.pop(name)
        self.loose.add(cohort_of(self.gone[name]))
        self.do(ev.QueueGone(queue=name))

    def restore_queue(self, name):
        self.queues[name] = self.gone.pop(name)
        self.do(ev.QueueChanged(queue=self.queues[name]))

    def submit(self, one):
        self.asks[one.run] = one
        self.do(ev.AskAdded(ask=one))

    def end(self, run):
        if run in self.grants:
            del self.grants[run]
            self.due = [d for d in self.due if d[1] != run]
            self.do(ev.GrantEnded(run=run))

    def lose(self, name):
        """The node is gone, and with it all that was on it: those runs wait again."""
        if name not in self.nodes:
            return
        del self.nodes[name]
        self.do(ev.NodeGone(node=name))
        for run, grant in list(self.grants.items()):
            if name in (*grant.nodes, *grant.spares):
                self.again(run)

    def again(self, run):
        grant = self.grants.pop(run)
        self.due = [d for d in self.due if d[1] != run]
        one = replace(grant.ask, waiting_since=self.now, suspended=grant.ask.suspended + 1)
        self.asks[run] = one
        self.do(ev.GrantEnded(run=run, again=one))

    # -- ticks -------------------------------------------------------------------------------------------------------

    def tick(self, at=None):
        if at is not None:
            self.now = at
        for when, run, what in sorted([d for d in self.due if d[0] <= self.now], key=lambda d: (d[0], d[1])):
            self.due.remove((when, run, what))
            if what == "suspend":
                self.again(run)
            else:
                self.release(run, what)
        self.log.append((self.now, None))
        decisions = self.arbiter.tick(self.now)
        self.carry_out(decisions)
        self.check()
        return decisions

    def release(self, run, names):
        grant = self.grants[run]
        spares, nodes = list(grant.spares), list(grant.nodes)
        for name in names[0]:
            nodes.remove(name)
        for name in names[1]:
            spares.remove(name)
        grant = replace(grant, nodes=tuple(nodes), spares=tuple(spares), leaving=(), changed_at=self.now)
        assert len(nodes) in self.sizes(grant), "a gang keeps a legal size"
        self.grants[run] = grant
        self.do(ev.GrantChanged(grant=grant))

    def sizes(self, grant):
        return legal_sizes(grant.ask, grant.ask.options[grant.option])

    def carry_out(self, decisions):
        for one in decisions.starts:
            asked = self.asks.pop(one.run)
            option = asked.options[one.option]
            assert len(one.nodes) in legal_sizes(asked, option), "all or nothing"
            islands = {self.nodes[name].island for name in one.nodes}
            assert not option.islands or len(islands) <= option.islands
            assert len(one.spares) <= asked.spares
            self.grants[one.run] = Grant(
                ask=asked, nodes=one.nodes, spares=one.spares, since=self.now, option=one.option
            )
            self.started_at.setdefault(one.run, self.now)
        for one in decisions.grows:
            grant = self.grants[one.run]
            self.grants[one.run] = replace(grant, nodes=(*grant.nodes, *one.adds), changed_at=self.now)
            assert one.to == len(self.grants[one.run].nodes)
            assert one.to in self.sizes(grant)
        for one in decisions.moves:
            grant = self.grants[one.run]
            self.grants[one.run] = replace(grant, nodes=(*grant.nodes, *one.takes))
            self.due.append((self.now + self.delay_s, one.run, (one.gives, ())))
        for one in decisions.shrinks:
            grant = self.grants[one.run]
            self.disturb(one.run)
            assert one.to in self.sizes(grant)
            assert len(grant.nodes) - len(one.gives) == one.to
            self.due.append((self.now + self.delay_s, one.run, (one.gives, one.spares)))
        for one in decisions.suspends:
            assert self.grants[one.run].ask.preemptible
            self.disturb(one.run)
            self.due.append((self.now + self.delay_s, one.run, "suspend"))
        for one in decisions.refusals:
            self.refused[one.run] = one
            del self.asks[one.run]
        assert {h.run for h in decisions.holds} == set(self.asks), "who waits is told why"

    def disturb(self, run):
        times = self.disturbed.setdefault(run, [])
        if times:
            assert self.now - times[-1] >= self.settings.calm_s, "a budget against thrash"
        times.append(self.now)
        assert sum(self.now - t < 3600 for t in times) <= self.settings.disturbances_per_hour

    # -- the laws ----------------------------------------------------------------------------------------------------

    def check(self):
        held = Counter()
        used = Counter()
        for grant in self.grants.values():
            each = grant.ask.each
            for name in (*grant.nodes, *grant.spares):
                held[name, "cpus"] += each.cpus
                held[name, "gpus"] += each.gpus
                used[grant.ask.queue, self.flavor(name), "cpus"] += each.cpus
                used[grant.ask.queue, self.flavor(name), "gpus"] += each.gpus
        for (name, what), n in held.items():
            assert n <= getattr(self.nodes[name].kind.total, what), f"{what} of {name} are owned twice"
        for cohort in {cohort_of(q) for q in self.queues.values() if q.quotas}:
            problems = [problem for what in ("cpus", "gpus") for problem in self.beyond_quotas(cohort, used, what)]
            assert not problems or cohort in self.loose, problems
            if not problems and cohort not in map(cohort_of, self.gone.values()):
                self.loose.discard(cohort)

    def flavor(self, name):
        labels = labels_of(self.nodes[name].kind)
        return next((f.name for f in self.flavors if selects(f.selector, labels)), OTHER_FLAVOR)

    def beyond_quotas(self, cohort, used, what):
        members = [q for q in self.queues.values() if q.quotas and cohort_of(q) == cohort]
        for flavor in sorted({f.name for f in self.flavors} | {OTHER_FLAVOR}):
            pool = borrowed = 0
            for queue in members:
                quota = next((x for x in queue.quotas if x.flavor == flavor), None)
                own = getattr(quota.own, what) if quota else 0
                lend = own if quota is None or quota.lend is None else getattr(quota.lend, what)
                borrow = 0 if quota is None or not queue.cohort else ALL
                if borrow and quota.borrow is not None:
                    borrow = getattr(quota.borrow, what)
                uses = used[queue.name, flavor, what]
                if uses > own + borrow:
                    yield f"{queue.name} uses more than its own and what it may borrow"
                safe = max(own - lend, 0)
                pool += own - safe
                borrowed += max(uses - safe, 0)
            if borrowed > pool:
                yield f"cohort {cohort} uses more of {flavor} than it has"


def cohort_of(queue):
    return queue.cohort or f"alone {queue.name}"


def replayed(log, settings):
    """The decisions of the same events and ticks on a new arbiter."""
    arbiter = Arbiter(settings)
    found = []
    for now, event in log:
        if event is None:
            found.append(arbiter.tick(now))
        else:
            arbiter.handle(event, now=now)
    return found


__all__ = ["ONE", "Flavor", "Shell", "amount", "ask", "node", "replayed"]
