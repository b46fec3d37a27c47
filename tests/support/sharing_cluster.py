"""A core with two hosts, as people who share it and its agents drive it."""

from atoll.control_plane import effects as fx
from atoll.control_plane import events as ev
from atoll.control_plane.core import Core
from atoll.schema import messages as m
from atoll.schema.queues import FlavorWish, QueueWish, QuotaWish, Sharing
from atoll.schema.spec import JobSpec
from atoll.schema.views import RunState

LABELS = {"a": {"zone": "x", "price": "2.5", "domain": "r1"}, "b": {"zone": "y", "ray.io/node-id": "77"}}


class Cluster:
    """A core with two hosts of two CPUs each."""

    def __init__(self, records=(), incarnation=1, labels=LABELS):
        self.core = Core(incarnation, records)
        self.desk = self.core.desk
        self.now = 1000.0
        self.records = list(records)
        self.nodes = tuple(
            ev.NodeSeen(node=n, address=n, alive=True, cpus=2.0, gpus=0.0, local=n == "a", labels=labels[n])
            for n in ("a", "b")
        )
        self.list()

    def tell(self, event):
        effects = self.core.handle(event, now=self.now)
        self.records += [r for e in effects if isinstance(e, fx.Persist) for r in e.records]
        return effects

    def list(self):
        seats = tuple(s for run in self.desk.cluster.open_runs() for s in run.seats)
        self.tell(ev.ClusterListed(nodes=self.nodes, seats=seats))

    def reply(self, event):
        return next(e for e in self.tell(event) if isinstance(e, fx.Reply))

    def tick(self, seconds=0.1):
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            self.tell(ev.Tick())

    def submit(self, name="gpt", **changes):
        wanted = job(name, **changes)
        self.answer = self.reply(ev.RunAsked(request="s", run=name, spec=wanted, run_dir="/r", secret="00"))
        return self.desk.cluster.runs.get(name)

    def share(self, *queue):
        flavor = (FlavorWish(name="any"),)
        return self.reply(ev.QueuesAsked(request="q", sharing=Sharing(flavor=flavor, queue=queue), by="me"))

    def running(self, run):
        for trainer in run.active():
            began = m.TrainerStarted(trainer=trainer.trainer, run=run.run, pid=1, start_ticks=1)
            self.tell(ev.AgentSaid(node=trainer.node, fact=began))
            fact = m.TrainerReady(trainer=trainer.trainer, host="h", port=1)
            self.tell(ev.AgentSaid(node=trainer.node, fact=m.TrainerSaid(run=run.run, fact=fact)))
        for trainer in run.active():
            fact = m.EpochJoined(trainer=trainer.trainer, epoch=run.epoch, step=1)
            self.tell(ev.AgentSaid(node=trainer.node, fact=m.TrainerSaid(run=run.run, fact=fact)))
        assert run.state is RunState.RUNNING


def job(name="gpt", **changes):
    fields = {"working_dir": "/w", "file": "t.py", "cpus_per_worker": 1.0, "spares": 0, "detach": True}
    return JobSpec(name=name, **(fields | changes))


def quota(name, cpus, **changes):
    return QueueWish(name=name, quota=(QuotaWish(flavor="any", cpus=cpus),), **changes)


def hello(node):
    return m.AgentHello(
        node=node,
        pid=1,
        address="h",
        state_dir="/",
        versions=m.Versions(atoll="0", protocol=1, python="3"),
        last_incarnation=0,
    )


def attached(cluster):
    for node in cluster.nodes:
        cluster.tell(ev.AgentAttached(hello=hello(node.node)))
