"""A handle on the embedded cluster of the integration tests, and a program that trains a line at twenty steps a second."""

import json

from atoll.control_plane import fs_cluster
from atoll.control_plane.grpc_client import invoke_once
from atoll.control_plane.sql_history import HistoryReader
from atoll.schema.codec import from_plain
from atoll.schema.views import RunView

PROGRAM = """
import time
import torch

def train(ctx):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model, optimizer = ctx.manage(model=model, optimizer=optimizer)
    rows = [(torch.randn(4), torch.randn(1)) for _ in range(64)]
    for step in ctx.steps(rows, global_batch=8, micro_batch=2, steps=ctx.config["steps"]):
        with step:
            for x, y in step:
                loss = ((model(x) - y) ** 2).mean()
                step.backward(loss)
            time.sleep(0.05)
            optimizer.step()
            step.report(loss=loss.item())
"""


class Cluster:
    def __init__(self, info):
        self.info = info
        self.record = fs_cluster.load(info.cluster_dir)
        self.secret = bytes.fromhex((info.cluster_dir / "secret").read_text())
        self.reader = HistoryReader(info.cluster_dir / "history.sqlite")

    def call(self, method, body=None, deadline_s=20.0):
        return invoke_once(self.record.control, self.secret, method, body or {}, deadline_s=deadline_s)

    def submit(self, folder, steps, program=PROGRAM, **spec):
        (folder / "program.py").write_text(program)
        wanted = {
            "name": "tiny",
            "working_dir": str(folder),
            "file": "program.py",
            "workers": 2,
            "spares": 1,
            "detach": True,
            "config": {"steps": steps},
            **spec,
        }
        return self.call("submit", {"spec": wanted})["run"]

    def view(self, run):
        return from_plain(RunView, self.reader.run(run))

    def step(self, run):
        return self.view(run).step

    def committed(self, run):
        """Steps committed, from what the trainers themselves wrote down."""
        files = (self.info.home / "runs" / run / "account").glob("*.jsonl")
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return sorted({line["committed"] for line in lines if "committed" in line})

    def commits(self, run):
        return [(p["step"], p["at"]) for p in self.reader.metrics(run)]
