"""Runs training sessions as processes forked from one warm parent, and plays their control plane.

Called as a script with a JSON list of scenarios; prints one JSON result a line. A scenario names the trainers, who of
them is a member at first, and at which failpoint (after how many passes) which trainer kills itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import torch
import torch._dynamo  # optimizers import it when first made: once here, not in every child
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from atoll.collectives.tcp_transport import Listener
from atoll.fault.inject import arm
from atoll.schema.codec import Registry, encode
from atoll.schema.ids import Epoch, NodeId, Rank, RunId, TrainerId
from atoll.schema.messages import TRAINER_COMMANDS, TRAINER_FACTS, Member, Membership
from atoll.schema.spec import JobSpec
from atoll.workers import learning, torch_reducer
from atoll.workers.context import run_function
from atoll.workers.fs_account import read_account
from atoll.workers.host import Identity, Mailbox

STEPS = 8
LESSON_FROM = 3  # the step in which scenarios with lessons lose a member
SECRET = b"s" * 32
FACTS, COMMANDS = Registry(TRAINER_FACTS), Registry(TRAINER_COMMANDS)
SCENARIO_S = 30.0


def build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, 1),
    )


def train(ctx) -> None:
    inputs = torch.randn(96, 8, generator=torch.Generator().manual_seed(3))
    data = (inputs, inputs.square().sum(1, keepdim=True))
    model = build()
    model = DistributedDataParallel(model) if ctx.config["ddp"] else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    ctx.manage(model=model, optimizer=optimizer, scheduler=scheduler)
    steps, backup = ctx.config.get("steps", STEPS), ctx.config.get("backup", 0)
    for step in ctx.steps(data, global_batch=24, micro_batch=4, steps=steps, backup=backup):
        if ctx.config.get("learn") and step.index == LESSON_FROM:
            wait_for(ctx._host.identity.run_dir / "ready-s")
        with step:
            for x, y in step:
                compute_for(ctx, step)
                loss = nn.functional.mse_loss(model(x), y)
                step.backward(loss)
                step.report(loss=loss.detach())
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            scheduler.step()
    write_final(ctx, model, optimizer, scheduler)


def compute_for(ctx, step) -> None:
    """Emulated compute of a micro-batch, five times as long where this trainer has a bad step."""
    grain_s = ctx.config.get("grain_s", 0.0)
    if grain_s:
        bad = ctx._host.identity.trainer == "b" and random.Random(step.index).random() < ctx.config["bad"]
        time.sleep(grain_s * (5 if bad else 1))


def wait_for(path) -> None:
    """The spare is to be there before the loss, or there are no steps left in which it could learn."""
    deadline = time.monotonic() + SCENARIO_S / 2
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def write_final(ctx, model, optimizer, scheduler) -> None:
    tensors = list(model.state_dict().values())
    tensors += [t for s in optimizer.state_dict()["state"].values() for t in s.values()]
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()
    folder = ctx._host.identity.run_dir / "final"
    folder.mkdir(exist_ok=True)
    value = {"digest": digest, "lr": scheduler.get_last_lr()[0], "sums": [t.double().sum().item() for t in tensors]}
    (folder / f"{ctx._host.identity.trainer}.json").write_text(json.dumps(value))


class PipeHost:
    """A trainer's side of its line to the control plane."""

    def __init__(self, identity, line):
        self.identity, self.mailbox = identity, Mailbox()
        self.listener = Listener("127.0.0.1", identity.secret, identity.run)
        self._line = line
        threading.Thread(target=self._read, daemon=True, name="atoll-link").start()

    def tell(self, fact):
        self._line.sendall(encode(fact) + b"\n")
        if type(fact).__name__ == "TrainerReady":
            (self.identity.run_dir / f"ready-{self.identity.trainer}").touch()

    def heard(self):
        """No lifeline here."""

    def _read(self):
        for text in self._line.makefile("rb"):
            self.mailbox.put(COMMANDS.decode(text))


def run_trainer(name, scenario, run_dir, line) -> int:
    torch.set_num_threads(1)
    torch_reducer.BUCKET_BYTES = 2048
    if scenario.get("learn"):
        learning.LEARN_ABOVE_BYTES = 0
        arm("in-examination", (run_dir / f"examined-{name}").touch)
    if scenario.get("slow_lesson"):
        arm("in-lesson", lambda: time.sleep(0.1))  # so that updates come before the snapshot
    for kill in scenario["kills"]:
        if kill["trainer"] == name:
            arm(kill["at"], lambda: os.kill(os.getpid(), signal.SIGKILL), skip=kill["skip"])
    spec = JobSpec(
        name="test",
        working_dir=str(run_dir),
        file="t.py",
        seed=11,
        workers=len(scenario["members"]),
        config={"ddp": scenario["ddp"], "learn": scenario.get("learn"), **scenario.get("config", {})},
        checkpoint_every=scenario.get("checkpoint_every", 0),
    )
    identity = Identity(
        run=RunId("run"), trainer=TrainerId(name), node=NodeId("n"), spec=spec, run_dir=run_dir, secret=SECRET
    )
    host = PipeHost(identity, line)
    status = run_function(host, train)
    host.listener.close()
    return status


class Trainer:
    """The control plane's side."""

    def __init__(self, name, scenario, run_dir, parent_lines):
        self.name, self.ready, self.facts, self.buffer = name, None, [], b""
        self.line, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            status = 71
            try:
                for line in (*parent_lines, self.line):
                    line.close()
                status = run_trainer(name, scenario, run_dir, theirs)
            except BaseException:  # noqa: BLE001 - the child ends here, with its story
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        theirs.close()

    def read(self) -> bool:
        """Take what came; False when the process has ended."""
        try:
            data = self.line.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        self.buffer += data
        *lines, self.buffer = self.buffer.split(b"\n")
        for text in lines:
            fact = FACTS.decode(text)
            self.facts.append(fact)
            if type(fact).__name__ == "TrainerReady":
                self.ready = fact
        return bool(data)

    def has(self, kind) -> bool:
        return any(type(f).__name__ == kind for f in self.facts)


class ControlPlane:
    """Epochs as the real one raises them: survivors, and a ready spare for each member lost."""

    def __init__(self, scenario, run_dir):
        self.scenario, self.epoch, self.members, self.killed = scenario, 0, [], 0
        self.trainers = {}
        for name in scenario["trainers"]:
            lines = [t.line for t in self.trainers.values()]
            self.trainers[name] = Trainer(name, scenario, run_dir, lines)
        self.alive = dict(self.trainers)

    def run(self):
        deadline = time.monotonic() + SCENARIO_S
        while self.alive and time.monotonic() < deadline:
            lines = {t.line: t for t in self.alive.values()}
            for line in select.select(list(lines), [], [], 0.2)[0]:
                if not lines[line].read():
                    self.ended(lines[line])
            self.appoint()
            if self.over():
                break
        hung = [n for n in self.unfinished() if n in self.alive]
        for trainer in list(self.alive.values()):
            os.kill(trainer.pid, signal.SIGKILL)
            self.reap(trainer)
        return hung

    def over(self) -> bool:
        return self.epoch > 0 and not [n for n in self.unfinished() if n in self.alive]

    def unfinished(self):
        """Members still needed. Once one has finished, the last step is decided: who never took part is not."""
        begun = [n for n in self.members if not self.trainers[n].has("TrainerFinished")]
        finished = any(t.has("TrainerFinished") for t in self.trainers.values())
        return [n for n in begun if not finished or self.trainers[n].has("EpochJoined")]

    def ended(self, trainer):
        self.killed += self.reap(trainer) == -signal.SIGKILL

    def reap(self, trainer) -> int:
        del self.alive[trainer.name]
        trainer.line.close()
        return os.waitstatus_to_exitcode(os.waitpid(trainer.pid, 0)[1])

    def appoint(self):
        """Raise the epoch when a member was lost, or at first when all are ready."""
        if self.epoch == 0:
            if all(t.ready for t in self.trainers.values()):
                self.raise_epoch(self.scenario["members"])
            return
        members = self.unfinished()
        lost = [n for n in members if n not in self.alive]
        if lost:
            keep = [n for n in members if n in self.alive]
            finished = any(t.has("TrainerFinished") for t in self.trainers.values())
            spares = [n for n, t in self.alive.items() if n not in self.members and t.ready and not finished]
            self.raise_epoch(
                [*spares[: len(lost)], *keep] if self.scenario["spare_first"] else [*keep, *spares[: len(lost)]]
            )

    def raise_epoch(self, names):
        self.epoch, self.members = self.epoch + 1, list(names)
        ready = [self.trainers[n].ready for n in names]
        membership = Membership(
            run=RunId("run"),
            epoch=Epoch(self.epoch),
            reason="test",
            members=tuple(
                Member(trainer=TrainerId(n), rank=Rank(i), node=NodeId("n"), host=r.host, port=r.port)
                for i, (n, r) in enumerate(zip(names, ready, strict=True))
            ),
        )
        for name in names:
            if name in self.alive:
                try:
                    self.trainers[name].line.sendall(encode(membership) + b"\n")
                except (BrokenPipeError, ConnectionResetError):
                    continue


def outcome(scenario):
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        plane = ControlPlane(scenario, run_dir)
        began = time.monotonic()
        hung = plane.run()
        losses, words = {}, []
        for trainer in plane.trainers.values():
            for fact in trainer.facts:
                if type(fact).__name__ != "StepCommitted":
                    continue
                words += [fact.backup] if fact.backup else []
                if fact.metrics:
                    losses.setdefault(fact.step, []).append(fact.metrics["loss"])
        account = read_account(run_dir)
        finals = {p.stem: json.loads(p.read_text()) for p in sorted((run_dir / "final").glob("*.json"))}
        return {
            "name": scenario["name"],
            "seconds": time.monotonic() - began,
            "hung": hung,
            "killed": plane.killed,
            "epochs": plane.epoch,
            "losses": [losses.get(s, []) for s in range(1, scenario.get("config", {}).get("steps", STEPS) + 1)],
            "words": words,
            "left_out": account.left_out,
            "samples": account.samples,
            "again": list(account.again),
            "told_again": sorted(
                {f.step for t in plane.trainers.values() for f in t.facts if getattr(f, "again", False)}
            ),
            "account": [account.steps, account.lost, account.repeated, list(account.problems)],
            "finals": finals,
            "examined": sorted(p.name.removeprefix("examined-") for p in run_dir.glob("examined-*")),
            "failed": [
                f.problem for t in plane.trainers.values() for f in t.facts if type(f).__name__ == "TrainerFailed"
            ],
        }


if __name__ == "__main__":
    for each in json.loads(sys.argv[1]):
        print(json.dumps(outcome(each)), flush=True)  # noqa: T201 - the result
