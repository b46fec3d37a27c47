"""Ray Train's driver: TorchTrainer with Gloo, a checkpoint every few steps, as many restarts as it takes.

With `--elastic` it may go on with one worker less, or else a killed host could not be done without.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

import ray
import ray.train
import torch
from peer_work import CHECKPOINT_EVERY, Stamps, loss_of, model, optimizer_of
from ray.train.torch import TorchTrainer, prepare_model


def train(config):
    stamps = Stamps(config["stamps"])
    module = model()
    first = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            kept = torch.load(f"{folder}/kept.pt")
        first = kept["step"]
        module.load_state_dict(kept["model"])
    optimizer = optimizer_of(module)
    parallel = prepare_model(module)
    for step in range(first, 10**6):
        optimizer.zero_grad()
        loss_of(parallel).backward()
        optimizer.step()
        stamps.add(step)
        if (step + 1) % CHECKPOINT_EVERY == 0:
            report(step + 1, module)


def report(step, module):
    """All workers have to, the first with the checkpoint."""
    if ray.train.get_context().get_world_rank():
        ray.train.report({})
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"step": step, "model": module.state_dict()}, f"{folder}/kept.pt")
        ray.train.report({}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def main():
    add = (parser := argparse.ArgumentParser()).add_argument
    add("--stamps", required=True)
    add("--storage", required=True)
    add("--workers", type=int, required=True)
    add("--interface", required=True)
    add("--elastic", action="store_true")
    asked = parser.parse_args()
    # Workers are started by this interpreter, which has Ray Train, whichever one the nodes were started by.
    runtime_env = {"env_vars": {"GLOO_SOCKET_IFNAME": asked.interface}, "py_executable": sys.executable}
    ray.init(runtime_env=runtime_env)
    workers = (asked.workers - 1, asked.workers) if asked.elastic else asked.workers
    trainer = TorchTrainer(
        train,
        train_loop_config={"stamps": asked.stamps},
        scaling_config=ray.train.ScalingConfig(num_workers=workers),
        run_config=ray.train.RunConfig(
            name=f"peer-{os.getpid()}",
            storage_path=asked.storage,
            failure_config=ray.train.FailureConfig(max_failures=-1),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
