"""Islands found in measured links."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.collectives.islands import Why, islands
from atoll.schema.topology import Host, Link, Nic, Topology, Trunk

FAST, SLOW, WAN = 60e6, 6e6, 0.6e6


def network(rates, labels=None, trunks=()):
    """`rates[a, b]` in bytes/s, one way each."""
    nodes = sorted({n for pair in rates for n in pair} | set(labels or {}))
    hosts = tuple(
        Host(
            node=n,
            nics=(Nic(name="eth0", host=f"10.0.0.{i}"),),
            labels={"island": labels[n]} if labels and n in labels else {},
        )
        for i, n in enumerate(nodes)
    )
    links = tuple(
        Link(source=a, source_nic="eth0", target=b, target_nic="eth0", latency_s=1e-4, bandwidth=rate)
        for (a, b), rate in rates.items()
    )
    return Topology(hosts=hosts, links=links, trunks=tuple(trunks))


def full(groups, rate_of):
    nodes = [(n, g) for g, group in enumerate(groups) for n in group]
    return {(a, b): rate_of(ga, gb) for (a, ga), (b, gb) in itertools.permutations(nodes, 2)}


def two_level(groups):
    return full(groups, lambda a, b: FAST if a == b else SLOW)


def shape(island):
    """The tree as nested tuples of names."""
    return tuple(island.nodes) if not island.children else tuple(shape(child) for child in island.children)


def test_two_groups_with_slow_links_between_are_two_islands():
    tree = islands(network(two_level(["abc", "def"])))
    assert shape(tree) == (("a", "b", "c"), ("d", "e", "f"))
    assert tree.reason.why is Why.WHOLE
    assert tree.children[0].bandwidth == pytest.approx(FAST)
    assert tree.bandwidth == pytest.approx(SLOW)
    assert str(tree.children[0].reason) == "480 Mbit/s inside, 48 Mbit/s to the others"


def test_three_levels_are_found():
    where = {"a": (0, 0), "b": (0, 0), "c": (0, 1), "d": (0, 1), "e": (1, 0), "f": (1, 0)}
    rates = {
        (x, y): FAST if where[x] == where[y] else SLOW if where[x][0] == where[y][0] else WAN
        for x, y in itertools.permutations(where, 2)
    }
    assert shape(islands(network(rates))) == ((("a", "b"), ("c", "d")), ("e", "f"))


def test_a_host_with_only_a_slow_nic_is_an_island_of_its_own():
    rates = full(["abc", "d", "e"], lambda a, b: FAST if a == b == 0 else SLOW)
    tree = islands(network(rates))
    assert shape(tree) == (("a", "b", "c"), ("d",), ("e",))
    assert tree.children[1].reason.why is Why.ALONE


def test_equal_links_are_one_island():
    tree = islands(network(full(["abcd"], lambda _a, _b: FAST)))
    assert shape(tree) == tuple("abcd")
    assert tree.reason.inside == pytest.approx(FAST)


def test_one_slow_link_splits_no_island():
    rates = two_level(["abcd", "efgh"])
    rates["a", "b"] = rates["b", "a"] = SLOW
    assert shape(islands(network(rates))) == (tuple("abcd"), tuple("efgh"))


def test_one_fast_link_bridges_no_islands():
    rates = two_level(["abcd", "efgh"])
    rates["a", "e"] = rates["e", "a"] = FAST
    assert shape(islands(network(rates))) == (tuple("abcd"), tuple("efgh"))


def test_the_slower_direction_counts():
    rates = two_level(["ab", "cd"])
    for a, b in itertools.product("ab", "cd"):
        rates[a, b] = FAST
    assert shape(islands(network(rates))) == (tuple("ab"), tuple("cd"))


def test_a_trunk_as_fast_as_one_nic_parts_those_who_share_it():
    rates = full(["abcd", "efgh"], lambda _a, _b: FAST)
    trunks = [
        Trunk(sources=tuple(s), targets=tuple(t), bandwidth=FAST) for s, t in (("abcd", "efgh"), ("efgh", "abcd"))
    ]
    assert shape(islands(network(rates, trunks=trunks))) == (tuple("abcd"), tuple("efgh"))


def test_a_pair_without_measurement_is_no_link():
    rates = {k: v for k, v in two_level(["ab", "cd"]).items() if v == FAST}
    tree = islands(network(rates))
    assert shape(tree) == (tuple("ab"), tuple("cd"))
    assert (tree.bandwidth, tree.reason.why) == (None, Why.APART)


def test_a_few_missing_pairs_split_nothing():
    rates = two_level(["abcd", "efgh"])
    del rates["a", "b"], rates["b", "a"], rates["a", "e"]
    assert shape(islands(network(rates))) == (tuple("abcd"), tuple("efgh"))


def test_a_node_without_measurements_goes_where_its_label_says():
    rates = two_level(["abc", "def"])
    labels = {"a": "east", "b": "east", "c": "east", "d": "west", "x": "east", "y": "north"}
    tree = islands(network(rates, labels))
    assert shape(tree) == ((tuple("abcx"), tuple("def")), ("y",))
    east, north = tree.children[0].children[0], tree.children[1]
    assert (east.reason.why, east.reason.label) == (Why.LABELLED, "east")
    assert north.reason.why is Why.UNMEASURED


def test_labels_alone_make_islands_before_anything_is_measured():
    tree = islands(network({}, {"a": "x", "b": "y", "c": "x", "d": "y"}))
    assert shape(tree) == (("a", "c"), ("b", "d"))
    assert [str(i.reason) for i in tree.children] == ["label island=x", "label island=y"]
    assert tree.reason.why is Why.UNMEASURED


def test_nothing_known_is_one_island():
    hosts = tuple(Host(node=n, nics=()) for n in "ba")
    assert shape(islands(Topology(hosts=hosts))) == ("a", "b")


def test_no_node_and_one_node_are_islands_too():
    assert islands(Topology(hosts=())).nodes == ()
    assert islands(Topology(hosts=(Host(node="a", nics=()),))).nodes == ("a",)


def test_a_label_decides_where_the_gap_is_ambiguous():
    rates = full(["abc", "def"], lambda a, b: 1.7 if a == b else 1.0)
    labels = dict.fromkeys("abc", "east") | dict.fromkeys("def", "west")
    assert shape(islands(network(rates))) == tuple("abcdef")
    tree = islands(network(rates, labels))
    assert shape(tree) == (tuple("abc"), tuple("def"))
    assert tree.children[0].reason.why is Why.LABELLED
    rates = full(["abc", "def"], lambda a, b: 2.4 if a == b else 1.0)
    assert shape(islands(network(rates, dict.fromkeys("abcdef", "east")))) == tuple("abcdef")


def test_a_label_does_not_overrule_clear_measurements():
    labels = dict.fromkeys("abc", "east") | dict.fromkeys("def", "west")
    assert shape(islands(network(full(["abcdef"], lambda _a, _b: FAST), labels))) == tuple("abcdef")
    assert shape(islands(network(two_level(["ab", "cdef"]), labels))) == (tuple("ab"), tuple("cdef"))


@st.composite
def planted(draw):
    """A hidden tree of two levels, and measurements 30 % wrong either way, some pairs missing."""
    sizes = draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=3))
    ratio = draw(st.sampled_from([4.0, 6.0, 20.0, 100.0]))
    seed = draw(st.integers(0, 2**32))
    names = iter(f"n{i:02d}" for i in range(100))
    groups = [[[next(names) for _ in range(size)] for size in region] for region in sizes]
    chance = random.Random(seed)
    where = {n: (r, g) for r, region in enumerate(groups) for g, group in enumerate(region) for n in group}
    rates = {}
    for a, b in itertools.permutations(where, 2):
        level = 2 if where[a] == where[b] else 1 if where[a][0] == where[b][0] else 0
        rates[a, b] = 1e6 * ratio**level * chance.uniform(0.7, 1.3)
    return groups, rates, chance


def expected(groups):
    """The tree that measurements must give: groups of one are lone nodes, levels of one kind are one level."""
    regions = [[tuple(g) for g in region] for region in groups]
    trees = []
    for region in regions:
        if len(region) == 1:
            trees.append(region[0])
        elif all(len(g) == 1 for g in region):
            trees.append(tuple(n for g in region for n in g))
        else:
            trees.append(tuple(sorted(region)))
    if len(trees) == 1:
        return trees[0]
    if all(len(t) == 1 and isinstance(t[0], str) for t in trees):
        return tuple(n for t in trees for n in t)
    return tuple(trees)


@given(planted())
@settings(max_examples=80, deadline=None)
def test_planted_partitions_are_recovered_through_noise(case):
    groups, rates, _ = case
    assert shape(islands(network(rates, {n: "" for r in groups for g in r for n in g}))) == expected(groups)


@given(planted())
@settings(max_examples=40, deadline=None)
def test_the_order_of_hosts_and_links_changes_nothing(case):
    _, rates, chance = case
    pairs = list(rates.items())
    for pair in chance.sample(pairs, len(pairs) // 4):
        pairs.remove(pair)
    known = network(dict(pairs), {"n00": "", "n01": "x", "n02": "x"})
    hosts, links = list(known.hosts), list(known.links)
    chance.shuffle(hosts)
    chance.shuffle(links)
    assert islands(Topology(hosts=tuple(hosts), links=tuple(links))) == islands(known)


def test_two_hundred_nodes_take_seconds_at_most():
    groups = [[f"g{g}-{n:02d}" for n in range(25)] for g in range(8)]
    assert [len(i.nodes) for i in islands(network(two_level(groups))).innermost()] == [25] * 8
