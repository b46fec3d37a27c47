"""A buddy's copy applies the owner's updates to the bit, whatever the optimizer keeps."""

import pytest
import torch
import torch.distributed as dist
from local_peers import Exchange
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from atoll.collectives.torch_backend import Options
from atoll.errors import InternalError
from atoll.workers.torch_copies import Copies, Shadow, Trained, local
from atoll.workers.torch_moves import checked, verified
from atoll.workers.torch_shards import local_state

SIZE, INDEX = 3, 2


@pytest.fixture
def mesh():
    dist.init_process_group("atoll", store=HashStore(), rank=INDEX, world_size=SIZE, pg_options=Options(adopts=True))
    yield init_device_mesh("cpu", (SIZE,), mesh_dim_names=("shard",))
    dist.destroy_process_group()


def owner(mesh, kind, **options):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 1))
    fully_shard(model, mesh=mesh)
    optimizer = kind(model.parameters(), lr=0.1, **options)
    names = tuple(f"model.{name}" for name, _ in model.named_parameters())
    return model, optimizer, Trained(optimizer, "optimizer", names)


def state(model, optimizer, mesh):
    return local_state({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, mesh)


def copy_of(shards, trained, step):
    shadow = Shadow(shards, trained, size=SIZE, index=INDEX, step=step)
    for name, tensor in shadow.tensors().items():
        tensor.copy_(shards.flat.tensors[name])
    return shadow


def update(model, optimizer, trained, shadow):
    """One step of the owner; the buddy gets the gradient's bytes and the hyperparameters."""
    for param in model.parameters():
        part = torch.randn(param.to_local().shape)
        param.grad = DTensor.from_local(
            part, param.device_mesh, param.placements, shape=param.shape, stride=param.stride()
        )
    present = [True] * len(trained.names)
    message = checked([local(p.grad) for p in trained.params])
    assert message.numel() == shadow.gradient_bytes(present)
    groups = trained.groups()
    optimizer.step()
    shadow.advance(shadow.gradients(verified(message, "the gradient"), present), groups)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.Adam, {"amsgrad": True, "foreach": True}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.SGD, {}),
        (torch.optim.RMSprop, {"centered": True}),
    ],
)
def test_copy_follows_updates_to_the_bit(mesh, kind, options):
    model, optimizer, trained = owner(mesh, kind, **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    shadow = copy_of(state(model, optimizer, mesh), trained, 0)
    for step in range(4):
        update(model, optimizer, trained, shadow)
        schedule.step()
        now = state(model, optimizer, mesh)
        sharded = {n: t for n, t in now.flat.tensors.items() if now.specs[n].dim is not None}
        held = shadow.tensors()
        assert sharded.keys() == held.keys()
        assert all(torch.equal(held[name], tensor) for name, tensor in sharded.items())
        if step == 1:
            shadow = copy_of(now, trained, step)  # taken anew in the middle, now with the optimizer's own state


def test_changed_bytes_are_noticed():
    message = checked([torch.arange(4.0)])
    message[3] += 1
    with pytest.raises(InternalError, match="the gradient changed on the way"):
        verified(message, "the gradient")


def keepers(mesh):
    """A rank, whose state is not made of small tensors alone, and its buddy. Each takes itself for the other's like."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(300, 500), nn.Linear(500, 3))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.Adam(model.parameters())
    trained = Trained(optimizer, "optimizer", tuple(f"model.{name}" for name, _ in model.named_parameters()))
    comms, copies = Exchange(2).peers, (Copies(), Copies())
    for comm in comms:
        comm.epoch = 1
    copies[0].regrouped(buddy=1, ward=None, keep=False)
    copies[1].regrouped(buddy=None, ward=0, keep=False)
    return state(model, optimizer, mesh), trained, comms, copies


def test_copy_comes_whole_before_the_vote(mesh):
    own, trained, comms, (owner, buddy) = keepers(mesh)
    owner.send(comms[0], own)
    shadow = Shadow(own, trained, size=SIZE, index=INDEX, step=3)
    for tensor in shadow.tensors().values():
        tensor.fill_(9)
    buddy.receive(comms[1], shadow)
    assert buddy.shadow is None
    for comm, one in zip(comms, (owner, buddy), strict=True):
        assert one.prepare(comm, 4, trained, updating=False)
    assert buddy.shadow is shadow
    found = shadow.tensors()
    assert sorted(found) == sorted(n for n, s in own.specs.items() if s.dim is not None)
    assert all(torch.equal(found[name], own.flat.tensors[name]) for name in found)


def test_copy_whose_bytes_changed_on_their_way_ends_the_run(mesh):
    own, trained, comms, (owner, buddy) = keepers(mesh)
    plain = comms[0].send

    def send(buffer, **options):
        return plain(buffer ^ 1 if buffer.numel() > 1000 else buffer, **options)

    comms[0].send = send
    owner.send(comms[0], own)
    buddy.receive(comms[1], Shadow(own, trained, size=SIZE, index=INDEX, step=3))
    with pytest.raises(InternalError, match="changed on its way to its buddy"):
        buddy.prepare(comms[1], 4, trained, updating=False)
