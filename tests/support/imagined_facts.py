"""Facts of an imagined cluster for the detector: two islands of two nodes, a member on each, all well until told otherwise.

    world = Imagined()
    world.process("t3", stopped_for=0.4)
    world.waits("t0", "t3", for_s=0.4)
    world.verdicts()

All ages are seconds before now; everything that is not said is fresh and well.
"""

from __future__ import annotations

import dataclasses

from atoll.fault.detector import fold
from atoll.fault.facts import Blame, Ears, Facts, NodeFacts, ProcessFacts, RunFacts, TrainerFacts, Wait
from atoll.fault.ring import ring

# So that an age is exact: 0 - (-0.3) is 0.3.
NOW = 0.0
NODES = {"a1": "t0", "a2": "t1", "b1": "t2", "b2": "t3"}
ISLANDS = (("a1", "a2"), ("b1", "b2"))
WELL = ProcessFacts(at=NOW, state="S", beat_at=NOW, idle_at=NOW)


class Imagined:
    """One run, its nodes, and what is wrong with them."""

    def __init__(self, *, nodes=None, islands=ISLANDS, step_s=0.1, committed_ago=5.0, local="a1"):
        homes = NODES if nodes is None else nodes
        self.run = RunFacts(run="r", epoch=3, trainers=(), step_s=step_s, committed_at=NOW - committed_ago)
        self.trainers = {
            t: TrainerFacts(trainer=t, node=n, rank=i, process=WELL) for i, (n, t) in enumerate(homes.items())
        }
        self.watchers = ring(islands, set(homes))
        self.nodes = {
            n: NodeFacts(node=n, attached=True, heard_at=NOW, heard_since=NOW - 60.0, ray_alive=True, local=n == local)
            for n in homes
        }
        self.islands = islands
        self.deaf = {n: {} for n in homes}
        self.words = []
        self.blames = []
        self.strain_s = 0.0
        self.steady = True

    def trainer(self, name, **changes):
        self.trainers[name] = dataclasses.replace(self.trainers[name], **changes)

    def process(self, name, *, state="S", stopped_for=None, beat_age=0.0, idle_for=0.0, told_ago=0.0, late_s=0.0):
        told = NOW - told_ago
        self.trainer(
            name,
            process=ProcessFacts(
                at=told,
                state="T" if stopped_for is not None and state == "S" else state,
                beat_at=told - beat_age,
                idle_at=told - idle_for,
                stopped_at=None if stopped_for is None else NOW - stopped_for,
                traced=state == "t",
                late_s=late_s,
            ),
        )

    def waits(self, name, *missing, silent=(), for_s=1.0, told_ago=0.0, operation="all_reduce", sequence=7, epoch=3):
        self.words.append(
            Wait(
                at=NOW - told_ago,
                trainer=name,
                epoch=epoch,
                operation=operation,
                sequence=sequence,
                for_s=for_s - told_ago,
                missing=missing,
                silent=tuple(silent),
            )
        )

    def all_wait_for(self, *names, for_s=1.0):
        for other in self.trainers:
            if other not in names:
                self.waits(other, *names, for_s=for_s)

    def blame(self, by, peer, *, ago, epoch=3, evidence="reset"):
        self.blames.append(Blame(at=NOW - ago, peer=peer, epoch=epoch, evidence=evidence, by=by))

    def node(self, name, **changes):
        self.nodes[name] = dataclasses.replace(self.nodes[name], **changes)

    def silent(self, *names, for_s):
        """Nobody hears these nodes, nor do we."""
        for name in names:
            self.node(name, heard_at=NOW - for_s)
            self.unheard(name, by=self.watchers[name], for_s=for_s)

    def unheard(self, name, *, by, for_s):
        """These listeners do not hear the node."""
        for listener in by:
            self.deaf[listener][name] = for_s

    def facts(self, **changes):
        late = changes.pop("late_s", {})
        nodes = {
            n: node
            if node.ears is not None
            else dataclasses.replace(
                node,
                ears=Ears(
                    at=NOW,
                    heard=frozenset(set(self.watchers.get(n, ())) - set(self.deaf[n])),
                    silent=self.deaf[n],
                    late_s=late.get(n, 0.0),
                ),
            )
            for n, node in self.nodes.items()
        }
        run = dataclasses.replace(
            self.run, trainers=tuple(self.trainers.values()), blames=tuple(self.blames), waits=tuple(self.words)
        )
        return Facts(
            now=NOW,
            runs=(run,),
            nodes=nodes,
            watchers=self.watchers,
            islands=self.islands,
            strain_s=self.strain_s,
            steady=self.steady,
            **changes,
        )

    def verdicts(self, **changes):
        return fold(self.facts(**changes))
