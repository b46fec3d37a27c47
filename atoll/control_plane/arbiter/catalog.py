"""Classes of nodes as small integers, the flavor of each, and which of them a selector means.

Ten thousand nodes are a few hundred classes: selectors are matched against classes only, once for each selector, until a
new class or other flavors come. `version` counts those changes; whoever keeps a result compares it.
"""

from __future__ import annotations

from atoll.control_plane.arbiter.model import OTHER_FLAVOR, Flavor, NodeClass

Selector = dict[str, tuple[str, ...]]
# Values that came by events are kept by identity so long; more would only be garbage of decoders.
_KEPT = 20_000


def selects(selector: Selector, labels: dict[str, str]) -> bool:
    """Whether all keys match: the label is one of the values, or none of those behind a `!`."""
    for key, values in selector.items():
        label = labels.get(key)
        allowed = [v for v in values if not v.startswith("!")]
        if (allowed and label not in allowed) or any(label == v[1:] for v in values if v.startswith("!")):
            return False
    return True


def labels_of(kind: NodeClass) -> dict[str, str]:
    """A class's labels, with those that follow from it."""
    return {"device": kind.device, "class": kind.name, "spot": str(kind.spot).lower(), **kind.labels}


class Catalog:
    """All classes seen so far."""

    def __init__(self) -> None:
        self.kinds: list[NodeClass] = []
        self.flavor_of: list[str] = []
        self.flavors: tuple[Flavor, ...] = ()
        self.version = 0
        self._numbers: dict[tuple[object, ...], int] = {}
        self._by_identity: dict[int, tuple[NodeClass, int]] = {}
        self._found: dict[tuple[object, ...], frozenset[int]] = {}

    def number(self, kind: NodeClass) -> int:
        """The class's number, a new one if it was never seen."""
        known = self._by_identity.get(id(kind))
        if known is not None:
            return known[1]
        key = (kind.name, kind.device, kind.total.cpus, kind.total.gpus, *sorted(kind.labels.items()))
        key = (*key, kind.price_per_hour, kind.spot)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.kinds)
            self.kinds.append(kind)
            self.flavor_of.append(self._flavor(kind))
            self._forget()
        if len(self._by_identity) >= _KEPT:
            self._by_identity.clear()
        self._by_identity[id(kind)] = (kind, number)
        return number

    def set_flavors(self, flavors: tuple[Flavor, ...]) -> None:
        """These are the flavors from now on."""
        self.flavors = flavors
        self.flavor_of = [self._flavor(kind) for kind in self.kinds]
        self._forget()

    def _forget(self) -> None:
        self.version += 1
        self._found.clear()

    def _flavor(self, kind: NodeClass) -> str:
        labels = labels_of(kind)
        return next((f.name for f in self.flavors if selects(f.selector, labels)), OTHER_FLAVOR)

    def matching(self, flavors: tuple[str, ...], selector: Selector) -> frozenset[int]:
        """Classes of one of these flavors (none named: of any) that the selector means."""
        key = (flavors, *sorted(selector.items()))
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = frozenset(
                number
                for number, kind in enumerate(self.kinds)
                if (not flavors or self.flavor_of[number] in flavors)
                and (not selector or selects(selector, labels_of(kind)))
            )
        return found
