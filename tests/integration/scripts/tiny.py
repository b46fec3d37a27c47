"""A classifier of a made-up data set: small enough for tests, with dropout, batch norm, clipping and a schedule."""

import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import atoll


class Points(torch.utils.data.Dataset):
    """512 points in 16 dimensions; the class of a point is the sign of a fixed direction."""

    def __init__(self):
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(512, 16, generator=generator)
        self.y = (self.x @ torch.randn(16, generator=generator) > 0).long()

    def __len__(self):
        return 512

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def train(ctx):
    print("tiny begins, lr", ctx.config.get("lr", "none"), flush=True)  # noqa: T201 - tests look for it in logs
    net = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    net, optimizer, schedule = ctx.manage(net, optimizer, schedule)
    for step in ctx.steps(Points(), global_batch=32, micro_batch=4, steps=ctx.config.get("steps", 60)):
        with step:
            for x, y in step:
                loss = cross_entropy(net(x), y)
                if step.index == ctx.config.get("nan_at", -1):
                    loss = loss * float("nan")
                if step.index == ctx.config.get("raise_at", -1):
                    raise RuntimeError("the script's own mistake")
                step.backward(loss)
                step.report(loss=loss)
            time.sleep(ctx.config.get("pause_s", 0.0))
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()


if __name__ == "__main__":
    atoll.run(train, workers=3, checkpoint_every=20)
