"""How a wire of a given rate is made out of the kernel's shapers, as lines for `tc -batch`.

Shapers act where frames leave, so each cable is shaped at both of its ends. The tree is the same everywhere: an HTB root
of the wire's rate, one leaf for all traffic, and one more leaf for each slowed destination (a u32 filter on the
address), so that slowing a pair replaces nothing that others are using. Unshaped wires have no tree until a pair on them
is slowed.

Burst: what may leave at once. One millisecond of the rate, at least two frames (or nothing would ever leave), at most
32 KB: with more, small messages are not shaped at all. Queue: what waits before frames are dropped; see `queue_bytes`.
"""

from __future__ import annotations

FRAME = 1514
MAX_BURST = 32 * 1024
_BURST_S = 0.001
# The largest piece that `piece_bytes` lets through. Half as many cost twice the CPU; see there.
MAX_PIECE = 24_000
# See `queue_bytes`.
QUEUE_S = 0.020
USUAL_QUEUE = 400_000
MAX_WAIT_S = 0.250
MIN_QUEUE = 64 * 1024
MAX_QUEUE = 4 * 1024 * 1024
# What HTB lets one leaf send before it looks at the next: it only matters between leaves of one wire.
_QUANTUM = 16 * 1024
# The root of a wire that has no rate of its own.
_UNSHAPED = 100e9
# A switch's port takes what its host's NIC sends whole: the limits of both count headers differently.
SPARE = 1024
_ROOT, _BULK, _FIRST_SLOW = "1:1", "1:10", 0x100


def burst_bytes(rate: float) -> int:
    """How much of a wire of `rate` bits a second may leave at once."""
    return int(min(MAX_BURST, max(2 * FRAME, rate / 8 * _BURST_S)))


def piece_bytes(rate: float) -> int:
    """What a kernel may hand to a wire in one piece, to be cut into frames at the end of the way.

    A shaper lets a whole piece go as soon as it may send one byte. With the usual 64 KB a message of that size crosses an
    idle wire of 50 Mbit/s in 0.2 ms in place of 11. Smaller pieces cost CPU, on fast wires too much.
    """
    return min(MAX_PIECE, burst_bytes(rate))


def in_pieces(device: str, rate: float | None, spare: int = 0) -> list[str]:
    """Lines for `ip` that limit the pieces of a device; larger ones that reach it are cut into frames there."""
    return [] if rate is None else [f"link set dev {device} gso_max_size {piece_bytes(rate) + spare}"]


def queue_bytes(rate: float) -> int:
    """How much waits at one end of the wire: some 400 KB as in the ports of a switch, at least 20 ms of the rate.

    Less, and Reno's sawtooth empties the queue of a wire that several flows share. Slow wires have less, down to 64 KB:
    a message behind 250 ms of bulk has waited long enough.
    """
    wanted = max(rate / 8 * QUEUE_S, min(USUAL_QUEUE, rate / 8 * MAX_WAIT_S))
    return int(min(MAX_QUEUE, max(MIN_QUEUE, wanted)))


def wire(device: str, rate: float | None) -> list[str]:
    """Lines that give an untouched `device` its rate; none where it has none."""
    return [] if rate is None else _tree(device, rate, burst_bytes(rate))


def slowed(device: str, wire_rate: float | None, number: int, address: str, rate: float) -> list[str]:
    """Lines that hold what goes to `address` to `rate`. `number`: the destination's, the same in `unslowed`.

    An unshaped device must have been given `unshaped_tree` before.
    """
    leaf = f"1:{_FIRST_SLOW + number:x}"
    return [
        *_leaf(device, leaf, min(rate, wire_rate or rate), burst_bytes(rate)),
        f"filter add dev {device} parent 1: protocol ip prio {number} u32 match ip dst {address}/32 flowid {leaf}",
    ]


def unslowed(device: str, number: int) -> list[str]:
    """Lines that end what `slowed` did for one destination; its own filter has its own priority, so only that goes."""
    return [
        f"filter del dev {device} parent 1: prio {number}",
        f"class del dev {device} classid 1:{_FIRST_SLOW + number:x}",
    ]


def unshaped_tree(device: str) -> list[str]:
    """Lines for the tree of a device without a rate, on which pairs can be slowed."""
    return _tree(device, _UNSHAPED, int(_UNSHAPED / 8 * _BURST_S))


def no_tree(device: str) -> list[str]:
    """Lines that take a device's tree away, with all that is slowed on it."""
    return [f"qdisc del dev {device} root"]


def _tree(device: str, rate: float, burst: int) -> list[str]:
    return [
        f"qdisc add dev {device} root handle 1: htb default 10",
        f"class add dev {device} parent 1: classid {_ROOT} htb rate {rate:.0f}bit burst {burst} cburst {burst}",
        *_leaf(device, _BULK, rate, burst),
    ]


def _leaf(device: str, leaf: str, rate: float, burst: int) -> list[str]:
    """A leaf owns a tenth of its rate and borrows the rest, so that all leaves together stay within the wire's."""
    minor = leaf.partition(":")[2]
    shape = f"htb rate {rate / 10:.0f}bit ceil {rate:.0f}bit burst {burst} cburst {burst} quantum {_QUANTUM}"
    return [
        f"class add dev {device} parent {_ROOT} classid {leaf} {shape}",
        f"qdisc add dev {device} parent {leaf} handle {minor}: bfifo limit {queue_bytes(rate)}",
    ]
