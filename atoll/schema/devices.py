"""What a node's labels say of its device and its market. Whoever asks has the same answer: arbiter, autoscaler, offers."""

from __future__ import annotations

from collections.abc import Mapping

# Set by Atoll's autoscaler, or by whoever starts a node; where they are missing Ray's own count.
DEVICE, MARKET = "device", "market"
RAYS_DEVICE, RAYS_MARKET = "ray.io/accelerator-type", "ray.io/market-type"
SPOT = "spot"


def device_of(labels: Mapping[str, str], gpus: float) -> str:
    """The device in small letters, as speeds are looked up by it: "h200", or "gpu" or "cpu" where no label names it."""
    return (labels.get(DEVICE) or labels.get(RAYS_DEVICE) or ("gpu" if gpus else "cpu")).casefold()


def is_spot(labels: Mapping[str, str]) -> bool:
    """Whether its provider may take the node back."""
    return (labels.get(MARKET) or labels.get(RAYS_MARKET) or "").casefold() == SPOT


def by_device(speeds: Mapping[str, float]) -> dict[str, float]:
    """Speeds by device, as `device_of` writes it."""
    return {device.casefold(): speed for device, speed in speeds.items()}
