"""Ray Train's driver for `scheduling_first_step`: connected once, then a run for each line that it reads.

It says when it submits each, right before `fit`, so that neither imports nor connecting to Ray are counted.
"""

from __future__ import annotations

import argparse
import sys
import time

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, prepare_model
from scheduling_job import STEPS, model, stamp


def train(config):
    parallel = prepare_model(model())
    optimizer = torch.optim.SGD(parallel.parameters(), lr=1e-6)
    for step in range(STEPS):
        optimizer.zero_grad()
        parallel(torch.ones(4, 1)).mean().backward()
        optimizer.step()
        if step == 0:
            stamp(config["stamps"])


def main():
    add = (parser := argparse.ArgumentParser()).add_argument
    add("--address", required=True)
    add("--storage", required=True)
    add("--workers", type=int, required=True)
    add("--cpus", type=float, required=True)
    asked = parser.parse_args()
    ray.init(address=asked.address, log_to_driver=False)
    print("ready", flush=True)
    for line in sys.stdin:
        stamps = line.strip()
        trainer = TorchTrainer(
            train,
            train_loop_config={"stamps": stamps},
            scaling_config=ray.train.ScalingConfig(num_workers=asked.workers, resources_per_worker={"CPU": asked.cpus}),
            run_config=ray.train.RunConfig(name=f"first-{time.monotonic_ns()}", storage_path=asked.storage),
        )
        begun = time.monotonic()
        trainer.fit()
        print(repr(begun), flush=True)


if __name__ == "__main__":
    main()
