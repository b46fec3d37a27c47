"""Train a small GPT on the source of Python's own standard library, byte by byte, on as many workers as are given."""

import sysconfig
from pathlib import Path

import torch
from gpt import CONTEXT, GPT
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

import atoll


def corpus(*, held_out):  # every 20th file is held out
    files = sorted(p for p in Path(sysconfig.get_paths()["stdlib"]).rglob("*.py") if "site-packages" not in p.parts)
    return b"\n".join(p.read_bytes() for i, p in enumerate(files) if (i % 20 == 0) == held_out)


def loss_of(model, batch):  # batch: [windows, CONTEXT + 1] bytes
    return cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def heldout_loss(model, windows):
    model.eval()
    loss = loss_of(model, torch.stack([windows[i * (len(windows) // 32)] for i in range(32)]))
    model.train()
    return loss


def train(ctx):
    model, steps = GPT().to(ctx.device), ctx.config.get("steps", 200)
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or not n.startswith("blocks.")]
    muon = torch.optim.Muon(matrices, lr=5e-3, weight_decay=0, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95))
    rates = [OneCycleLR(o, o.defaults["lr"], steps + 1, pct_start=0.15, cycle_momentum=False) for o in (muon, adam)]
    ctx.manage(model, muon, adam, *rates)
    data, held = (atoll.TokenFile(corpus(held_out=held), window=CONTEXT) for held in (False, True))
    for step in ctx.steps(data, global_batch=16, micro_batch=4, steps=steps):
        with step:
            for batch in step:
                loss = loss_of(model, batch)
                step.backward(loss)
                step.report(loss=loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for part in (muon, adam, *rates):
                part.step()
            if step.index % 20 == 0 or step.index == steps - 1:
                step.report(heldout_loss=heldout_loss(model, held))


if __name__ == "__main__":
    atoll.run(train, model=GPT, workers=4, checkpoint_every=25)
