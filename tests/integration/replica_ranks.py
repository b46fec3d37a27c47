"""Runs sessions in processes of which one has a bit flipped in its weights, and plays a control plane that compares.

Called as a script with a JSON list of scenarios; prints one JSON result a line. `flip` is [trainer, step] or nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import session_ranks
import sharded_ranks
import torch
from session_ranks import SECRET, ControlPlane, PipeHost, train

from atoll.fault import inject
from atoll.fault.facts import Digest, RunFacts, TrainerFacts
from atoll.fault.replicas import Comparisons, judge
from atoll.schema.ids import NodeId, RunId, TrainerId
from atoll.schema.spec import JobSpec
from atoll.workers import learning
from atoll.workers.context import run_function
from atoll.workers.fs_account import read_account
from atoll.workers.host import Identity

STEPS = 60


def run_trainer(name, scenario, run_dir, line) -> int:
    torch.set_num_threads(1)
    if scenario.get("learn"):
        learning.LEARN_ABOVE_BYTES = 0
    if scenario["flip"] and scenario["flip"][0] == name:
        inject.arm("step-entry", inject.flip, skip=scenario["flip"][1] - 1)
    spec = JobSpec(
        name="test",
        working_dir=str(run_dir),
        file="t.py",
        seed=11,
        config={"ddp": False, "plain": False, "shard": scenario.get("shard")},
        chaos=True,
        compare_every=scenario["every"],
    )
    identity = Identity(
        run=RunId("run"), trainer=TrainerId(name), node=NodeId("n"), spec=spec, run_dir=run_dir, secret=SECRET
    )
    host = PipeHost(identity, line)
    status = run_function(host, sharded_ranks.train if scenario.get("shard") else train)
    host.listener.close()
    return status


class Comparing(ControlPlane):
    """Kills whom the comparison of replicas names."""

    def __init__(self, scenario, run_dir):
        super().__init__(scenario, run_dir)
        self.comparisons, self.named, self.compared = Comparisons(), [], []
        self.read = dict.fromkeys(self.trainers, 0)

    def appoint(self):
        for name, trainer in self.trainers.items():
            new, self.read[name] = trainer.facts[self.read[name] :], len(trainer.facts)
            for fact in new:
                if type(fact).__name__ == "ReplicaDigested":
                    self.take(fact)
        super().appoint()

    def take(self, fact):
        digest = Digest(
            trainer=fact.trainer, numeric=fact.numeric, value=fact.weights, rest=fact.rest, shard=fact.shard
        )
        compared = self.comparisons.take(fact.epoch, fact.step, fact.of, digest)
        if compared is None:
            return
        self.compared.append([fact.step, fact.of])
        members = tuple(
            TrainerFacts(trainer=TrainerId(n), node=NodeId("n"), rank=i) for i, n in enumerate(self.members)
        )
        verdict = judge(RunFacts(run=RunId("run"), epoch=fact.epoch, trainers=members, compared=self.comparisons.found))
        if verdict is not None:
            self.comparisons.concluded()
            self.named.append(
                [type(verdict).__name__, fact.step, verdict.agreed, list(getattr(verdict, "trainers", []))]
            )
            for name in getattr(verdict, "trainers", []):
                if name in self.alive:
                    os.kill(self.alive[name].pid, signal.SIGKILL)


def _final(told):
    """Of a whole state its digest, of a shard its place and values."""
    return told.get("digest") or [told["index"], hash(json.dumps([told["shards"], told["same"]]))]


def outcome(scenario):
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        plane = Comparing({"spare_first": False, "kills": [], "ddp": False, **scenario}, run_dir)
        hung = plane.run()
        account = read_account(run_dir)
        finals = {p.stem: _final(json.loads(p.read_text())) for p in sorted((run_dir / "final").glob("*.json"))}
        return {
            "name": scenario["name"],
            "hung": hung,
            "epochs": plane.epoch,
            "named": plane.named,
            "compared": plane.compared,
            "account": [account.steps, account.lost, account.repeated, list(account.problems)],
            "finals": finals,
            "failed": [
                f.problem for t in plane.trainers.values() for f in t.facts if type(f).__name__ == "TrainerFailed"
            ],
        }


if __name__ == "__main__":
    session_ranks.STEPS = sharded_ranks.STEPS = STEPS
    session_ranks.run_trainer = run_trainer
    for each in json.loads(sys.argv[1]):
        print(json.dumps(outcome(each)), flush=True)  # noqa: T201 - the result
