"""What `build` may return, and the handle to it before and after."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from atoll.collectives.torch_backend import Options
from atoll.errors import StateError
from atoll.workers.torch_built import Built, made_of


@pytest.fixture
def mesh():
    dist.init_process_group("atoll", store=HashStore(), rank=0, world_size=2, pg_options=Options(adopts=True))
    yield init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    dist.destroy_process_group()


def sharded(mesh):
    model = nn.Linear(4, 4)
    fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters())


def test_handle_before_the_loop_says_when_it_will_be_there():
    with pytest.raises(StateError, match="build is called when the members are known"):
        _ = Built().model


def test_handle_gives_the_objects_of_now():
    parts = Built()
    parts.objects = {"model": 1}
    assert parts.model == 1
    parts.objects = {"model": 2}
    assert parts.model == 2
    with pytest.raises(AttributeError, match="build returned no scheduler"):
        _ = parts.scheduler


def test_unsharded_model_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(StateError, match="fully_shard"):
        made_of((model, torch.optim.SGD(model.parameters())))


def test_two_optimizers_are_refused(mesh):
    model, optimizer = sharded(mesh)
    with pytest.raises(StateError, match="2 optimizers"):
        made_of((model, optimizer, torch.optim.SGD(model.parameters())))


def test_optimizer_that_looks_at_whole_tensors_is_refused_unless_its_class_says_otherwise(mesh):
    model, _ = sharded(mesh)
    with pytest.raises(StateError, match="Adafactor may need the whole"):
        made_of((model, torch.optim.Adafactor(model.parameters())))
    own = type("Own", (torch.optim.SGD,), {"elementwise": True})(model.parameters())
    assert made_of((model, own)) == (model, own)


def test_model_and_optimizer_in_any_order_are_taken(mesh):
    model, optimizer = sharded(mesh)
    assert made_of((optimizer, model)) == (optimizer, model)


def test_groups_out_of_the_mesh_are_refused(mesh):
    dist.group.WORLD.divisible = False
    with pytest.raises(ValueError, match="no groups can be made of the mesh"):
        dist.new_group([0])
