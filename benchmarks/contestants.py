"""What a rank does: joins its communicator and a Gloo group over one NIC, and takes part in races between them.

Inputs of plain sums are small whole numbers, whose sum is exact in any order, so a result is right or wrong; those of
codecs are normally distributed. Making inputs and checking results happens outside the time that is taken.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
import xxhash

from atoll.collectives.plan_shapes import Recipe
from atoll.collectives.tcp_communicator import Communicator, connect
from atoll.collectives.tcp_transport import Listener
from atoll.collectives.torch_codecs import BLOCK
from atoll.collectives.torch_codecs import codec as codec_named
from atoll.schema.codec import from_plain, to_plain
from atoll.schema.ids import TrainerId
from atoll.schema.messages import Membership
from benchmarks.ranks import Rank

RUN = "bench"
STORE_PORT = 29555
_SECRET = b"a benchmark's secret is no secret"
_CONNECT_S = 30.0
_OPERATION_S = 90.0
# Whole numbers up to this add up exactly in float32 over any number of ranks a machine can hold.
_LARGEST = 1000

Contestant = dict[str, Any]


# -- joining -----------------------------------------------------------------------------------------------------------


def listen(rank: Rank, *, nics: Sequence[Sequence[str]], primary: str) -> dict[str, Any]:
    """Listen on these (name, address) pairs; returns what a membership says of this rank."""
    listener = Listener(primary, _SECRET, RUN, nics=[(name, address) for name, address in nics])
    rank.things["listener"], rank.things["primary"] = listener, primary
    return {"host": listener.host, "port": listener.port, "doors": to_plain(listener.doors)}


def join(rank: Rank, *, membership: dict[str, Any]) -> float:
    """Meet all others; returns how long that took."""
    begun = time.monotonic()
    rank.things["communicator"] = connect(
        from_plain(Membership, membership),
        TrainerId(trainer(rank.number)),
        rank.things["listener"],
        deadline_s=_CONNECT_S,
        cancelled=lambda: False,
    )
    return time.monotonic() - begun


def trainer(number: int) -> str:
    """The name of a rank's trainer."""
    return f"trainer-{number}"


def join_gloo(rank: Rank, *, store: str) -> None:
    """A Gloo group over the NIC of the primary address; its store is on rank 0."""
    rank.things["store"] = dist.TCPStore(store, STORE_PORT, rank.size, rank.number == 0)
    options = dist.ProcessGroupGloo._Options()  # noqa: SLF001 - torch has no public way to choose a NIC for one group
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=rank.things["primary"])]  # noqa: SLF001
    options._timeout = dt.timedelta(seconds=_OPERATION_S)  # noqa: SLF001
    rank.things["gloo"] = dist.ProcessGroupGloo(rank.things["store"], rank.number, rank.size, options)


def leave(rank: Rank) -> None:
    """Close the communicator and the listener; a Gloo group ends with its process."""
    if (communicator := rank.things.pop("communicator", None)) is not None:
        communicator.close()
    if (listener := rank.things.pop("listener", None)) is not None:
        listener.close()


# -- races -------------------------------------------------------------------------------------------------------------


def race(
    rank: Rank, *, order: Sequence[str], contestants: dict[str, Contestant], count: int, batch: int = 1
) -> dict[str, Any]:
    """For each name in `order`, `batch` all-reduces of `count` float32, one after the other, begun by all together.

    Returns lists in that order: starts, ends, CPU-seconds of this rank, digests of the results, errors, plans, and the
    bytes that each NIC of this host sent.
    """
    runs = {name: runner(rank, settings, count) for name, settings in contestants.items()}
    found: dict[str, list[Any]] = {name: [] for name in ("starts", "ends", "cpu", "digests", "errors", "plans")}
    counts: list[dict[str, int]] = []
    for name in order:
        settings = contestants[name]
        whole = "codec" not in settings
        given = inputs(rank, rank.number, count, whole=whole)
        buffers = [given.clone() for _ in range(batch)]
        # Behind this gate all ranks have all they waited for: nothing of the last operation is still on a wire.
        rank.gate()
        counts.append(sent())
        rank.gate()
        cpu, start = time.process_time(), time.monotonic()
        for buffer in buffers:
            runs[name](buffer)
        end = time.monotonic()
        found["cpu"].append(time.process_time() - cpu)
        found["starts"].append(start)
        found["ends"].append(end)
        found["digests"].append([digest(buffer) for buffer in buffers])
        check = wrong_by if whole else coded_error
        found["plans"].append(last_plan(rank) if settings["by"] == "atoll" else "")
        found["errors"].append(max(check(rank, buffer, settings) for buffer in buffers))
    rank.gate()
    counts.append(sent())
    found["sent"] = [{nic: b[nic] - a[nic] for nic in b} for a, b in pairwise(counts)]
    return found | {"changes": changes(rank)}


def sent() -> dict[str, int]:
    """Bytes that left each NIC of this rank's host so far; a piece of many frames counts one header."""
    counters = psutil.net_io_counters(pernic=True, nowrap=False)
    return {str(nic): int(count.bytes_sent) for nic, count in counters.items() if nic != "lo"}


def runner(rank: Rank, settings: Contestant, count: int) -> Callable[[torch.Tensor], None]:
    """All-reduces a buffer in place, as `settings` say: {"by": "gloo"} or {"by": "atoll", "codec", "recipe", "telemetry"}."""
    if settings["by"] == "gloo":
        return lambda buffer: _by_gloo(rank.things["gloo"], buffer)
    communicator: Communicator = rank.things["communicator"]
    codec, in_place = settings.get("codec"), settings.get("in_place", False)
    recipe = recipe_of(settings["recipe"]) if "recipe" in settings else None

    def ours(buffer: torch.Tensor) -> None:
        if "telemetry" in settings:
            communicator.telemetry.on = settings["telemetry"]
        work = communicator.all_reduce(buffer, codec=codec, recipe=recipe, in_place=in_place)
        if not work.wait(_OPERATION_S):
            raise RuntimeError(f"all_reduce of {count} elements: {work.poison or 'not done in time'}")

    return ours


def _by_gloo(group: Any, buffer: torch.Tensor) -> None:
    group.allreduce([buffer]).wait()


def changes(rank: Rank) -> list[str]:
    """What the traffic so far has shown to be otherwise than the topology said."""
    return [str(change) for change in rank.things["communicator"].changes]


def last_plan(rank: Rank) -> str:
    """The name of the plan that the last all-reduce followed."""
    traces = rank.things["communicator"].telemetry.recent()
    return str(next(t.what for t in reversed(traces) if t.what.startswith("all_reduce")).partition(" by ")[2])


def plans(rank: Rank, *, count: int, codec: str | None = None) -> list[dict[str, Any]]:
    """All that were thought of, fastest first."""
    return [
        {
            "name": choice.name,
            "shape": choice.recipe.shape,
            "meet": choice.recipe.meet,
            "star": choice.recipe.star,
            "recipe": to_plain(choice.recipe),
            "predicted_s": choice.predicted_s,
            "lower_bound_s": choice.reason.lower_bound_s,
        }
        for choice in rank.things["communicator"].plans(count, codec=codec)
    ]


def recipe_of(plain: dict[str, Any]) -> Recipe:
    """What `plans` said."""
    words = {name: value for name, value in plain.items() if name != "type"}
    return Recipe(**words | {"groups": _group(plain["groups"]), "weights": tuple(plain["weights"])})


def _group(plain: Any) -> Any:
    return plain if isinstance(plain, int) else tuple(_group(member) for member in plain)


def watch(rank: Rank, *, count: int, operations: int) -> dict[str, Any]:
    """All-reduces by the chosen plan, one after the other: times, the plan of each, what was learned, whether right."""
    found: dict[str, Any] = {"starts": [], "ends": [], "plans": [], "digests": [], "wrong": False}
    run = runner(rank, {"by": "atoll"}, count)
    for _ in range(operations):
        buffer = inputs(rank, rank.number, count, whole=True).clone()
        rank.gate()
        found["starts"].append(time.monotonic())
        run(buffer)
        found["ends"].append(time.monotonic())
        found["plans"].append(last_plan(rank))
        found["digests"].append(digest(buffer))
        found["wrong"] |= wrong_by(rank, buffer, {}) > 0
    return found | {"changes": changes(rank)}


# -- inputs and results --------------------------------------------------------------------------------------------------


def inputs(rank: Rank, number: int, count: int, *, whole: bool) -> torch.Tensor:
    """What rank `number` contributes: [count] float32. Not to be written into."""
    key = ("inputs", number, count, whole)
    if key not in rank.things:
        chance = torch.Generator().manual_seed(number)
        rank.things[key] = (
            torch.randint(-_LARGEST, _LARGEST, (count,), generator=chance, dtype=torch.float32)
            if whole
            else torch.randn(count, generator=chance)
        )
    made: torch.Tensor = rank.things[key]
    return made


def digest(buffer: torch.Tensor) -> str:
    """Of its bits."""
    return str(xxhash.xxh3_64_hexdigest(buffer.numpy().tobytes()))


def wrong_by(rank: Rank, result: torch.Tensor, settings: Contestant) -> float:
    """The largest deviation from the sum of whole numbers, which is exact: 0 unless something is broken."""
    del settings
    exact = total(rank, range(rank.size), result.numel(), whole=True)
    return float((result - exact).abs().max())


def coded_error(rank: Rank, result: torch.Tensor, settings: Contestant) -> float:
    """The largest deviation from the sum as a share of what the codec states, which must not pass 1.

    Each group of `settings["groups"]` sends its sum coded, so the stated errors of these sums add up. A plan may lay its
    blocks across those of the message, so a value's bound is the largest of its own block and the two beside it.
    """
    key = ("stated", result.numel(), settings["codec"])
    if key not in rank.things:
        stated = np.zeros(result.numel(), np.float32)
        for group in settings["groups"]:
            part = codec_named(settings["codec"]).error_bound(total(rank, group, result.numel(), whole=False).numpy())
            stated += np.maximum(np.maximum(np.roll(part, BLOCK), np.roll(part, -BLOCK)), part)
        # Beside the codec's, that of adding in float32: half a unit of the last place for each addition.
        largest = total(rank, range(rank.size), result.numel(), whole=False).abs().max()
        rank.things[key] = torch.from_numpy(stated) + largest * rank.size * 2**-24
    exact = total(rank, range(rank.size), result.numel(), whole=False)
    return float(((result - exact).abs() / rank.things[key]).max())


def total(rank: Rank, numbers: Sequence[int], count: int, *, whole: bool) -> torch.Tensor:
    """The sum of what these ranks contribute."""
    key = ("total", tuple(numbers), count, whole)
    if key not in rank.things:
        found = inputs(rank, rank.number, count, whole=whole).new_zeros(count, dtype=torch.float64)
        for number in numbers:
            found += inputs(rank, number, count, whole=whole)
            if number != rank.number:
                del rank.things["inputs", number, count, whole]
        rank.things[key] = found.float()
    made: torch.Tensor = rank.things[key]
    return made
