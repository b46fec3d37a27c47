"""A worker under torchrun: DDP over Gloo, a checkpoint every few steps, from which restarted workers go on."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from peer_work import CHECKPOINT_EVERY, Stamps, loss_of, model, optimizer_of
from torch.nn.parallel import DistributedDataParallel


def main():
    add = (parser := argparse.ArgumentParser()).add_argument
    add("--stamps", required=True)
    add("--checkpoint", type=Path, required=True)
    asked = parser.parse_args()
    stamps = Stamps(asked.stamps)
    dist.init_process_group("gloo")
    module = model()
    first = 0
    if asked.checkpoint.exists():
        kept = torch.load(asked.checkpoint)
        first = kept["step"]
        module.load_state_dict(kept["model"])
    optimizer = optimizer_of(module)
    parallel = DistributedDataParallel(module)
    for step in range(first, 10**6):
        optimizer.zero_grad()
        loss_of(parallel).backward()
        optimizer.step()
        stamps.add(step)
        if dist.get_rank() == 0 and (step + 1) % CHECKPOINT_EVERY == 0:
            fresh = asked.checkpoint.with_suffix(".new")
            torch.save({"step": step + 1, "model": module.state_dict()}, fresh)
            fresh.replace(asked.checkpoint)


if __name__ == "__main__":
    main()
