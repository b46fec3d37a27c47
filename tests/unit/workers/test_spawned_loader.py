import torch

from atoll.workers.data import TokenFile
from atoll.workers.samples import Plan
from atoll.workers.torch_loader import LocalLoader, SpawnedLoader

PLAN = Plan(seed=2, size=33, global_batch=6, micro_batch=2, steps=4)


def test_spawned_loader_reads_ahead_and_follows_a_new_share():
    rows = TokenFile(list(range(100)), window=3)
    local, mine = LocalLoader(rows, PLAN), [0, 1]

    def following(spot):
        step, grain = spot
        later = [g for g in mine if g > grain]
        if later:
            return step, later[0]
        return (step + 1, mine[0]) if step < PLAN.steps else None

    loader = SpawnedLoader(rows, PLAN, 1, following)
    try:
        for step, share in ((1, [0, 1]), (2, [0, 1]), (2, [0]), (3, [0]), (4, [1, 2])):
            if share != mine:
                mine[:] = share
                loader.restart()
            for grain in share:
                ids, batch = loader.fetch(step, grain)
                expected_ids, expected = local.fetch(step, grain)
                assert ids == expected_ids == PLAN.grain(step, grain)
                assert torch.equal(batch, expected)
    finally:
        loader.close()
