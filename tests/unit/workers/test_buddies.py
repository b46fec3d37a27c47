"""Places, buddies and what can be put together after losses."""

import random
from fractions import Fraction

import pytest

from atoll.workers.buddies import (
    Holding,
    Place,
    Standing,
    arrange,
    buddies,
    column_of,
    fallback,
    group_of,
    holders_of,
    kept,
    missing,
    needy,
    recovery,
    shard_size,
    shares_of,
)


def holding(index, size=3, step=7, *, copy=False, key="live", line=0):
    return Holding(key=key, size=size, index=index, step=step, copy=copy, line=line)


def member(index, size=3, *, group=0, node="n", held=(), live=True):
    place = Place(size=size, group=group, index=index)
    return Standing(node=node, place=place, live=live, holdings=(holding(index, size), *held))


NEW = Standing(node="n")


@pytest.mark.parametrize(
    ("members", "asked", "size"),
    [(4, None, 4), (4, 2, 2), (3, 2, 3), (5, 2, 5), (6, 4, 6), (8, 3, 4), (2, 4, 2), (1, 1, 1)],
)
def test_shards_never_get_larger_than_asked(members, asked, size):
    assert shard_size(members, asked) == size
    assert members % size == 0


def test_survivors_keep_their_places_and_a_spare_takes_the_vacant_one():
    places = arrange([NEW, member(0), member(2)], 3, 7)
    assert [p.index for p in places] == [1, 0, 2]
    assert needy([NEW, member(0), member(2)], places) == (0,)


def test_member_of_a_dissolved_group_takes_the_vacancy_whose_shard_it_holds():
    standings = [member(0, 2), member(0, 2, group=2), member(1, 2, group=1), member(1, 2, group=2)]
    places = arrange(standings, 2, 7)
    assert needy(standings, places) == ()
    assert sorted((p.group, p.index) for p in places) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_other_size_moves_everybody():
    standings = [member(0), member(2)]
    places = arrange(standings, 2, 7)
    assert needy(standings, places) == (0, 1)
    assert group_of(places, 1) == (0, 1)


def with_ward(index, size):
    """A member with its own shard and the copy of the one before it."""
    return member(index, size, held=[holding((index - 1) % size, size, copy=True, key="copy")])


def test_members_take_the_places_of_which_they_have_most_where_one_is_lost():
    survivors = [with_ward(i, 4) for i in range(3)]
    # Of four, each has two neighbouring quarters: the last third alone is not whole in anybody's memory.
    assert [p.index for p in arrange(survivors, 3, 7)] == [2, 0, 1]
    assert shares_of(survivors[0], 3, 7) == {0: Fraction(3, 4), 2: Fraction(3, 4)}
    assert shares_of(survivors[1], 3, 7) == {0: 1, 1: Fraction(1, 2)}


def test_members_take_the_places_of_which_they_have_all_where_one_comes():
    standings = [with_ward(2, 3), with_ward(0, 3), with_ward(1, 3), NEW]
    places = arrange(standings, 4, 7)
    assert [p.index for p in places] == [2, 0, 1, 3]
    assert all(shares_of(s, 4, 7)[p.index] == 1 for s, p in zip(standings[:3], places[:3], strict=True))


def test_holdings_of_another_step_give_no_place():
    assert [p.index for p in arrange([with_ward(i, 4) for i in range(3)], 3, 8)] == [0, 1, 2]


def test_shard_comes_from_whoever_holds_it_in_the_same_form():
    copies = [holding(0, copy=True, key="copy"), holding(0, step=6, copy=True, key="old")]
    standings = [member(0), member(1, held=copies), member(2)]
    found = recovery(standings, 7, 2, [0, 1])
    assert holders_of(standings, found, 0) == [(0, "live"), (1, "copy")]
    assert holders_of(standings, found, 2) == [(2, "live")]


@pytest.mark.parametrize("seed", range(60))
def test_places_are_a_partition_and_nobody_moves_without_need(seed):
    draw = random.Random(seed)
    size = draw.randint(1, 4)
    groups = draw.randint(1, 3)
    old = [Place(size=size, group=g, index=i) for g in range(draw.randint(1, 4)) for i in range(size)]
    draw.shuffle(old)
    standings = [Standing(node="n", place=p, live=True) for p in old[: size * groups]]
    standings += [NEW] * (size * groups - len(standings))
    draw.shuffle(standings)
    places = arrange(standings, size, 7)
    assert len(set(places)) == len(places) == size * groups
    for standing, place in zip(standings, places, strict=True):
        if standing.place is not None and standing.place.group < groups:
            assert place == standing.place
    for rank in range(len(places)):
        assert [places[r].index for r in group_of(places, rank)] == list(range(size))
        assert [places[r].group for r in column_of(places, rank)] == list(range(groups))


def ring(nodes, islands=None):
    places = [Place(size=len(nodes), group=0, index=i) for i in range(len(nodes))]
    return buddies(places, nodes, islands or [range(len(nodes))])


@pytest.mark.parametrize("seed", range(100))
def test_every_shard_has_one_buddy_and_every_member_one_ward(seed):
    draw = random.Random(seed)
    nodes = [draw.choice("abcde") for _ in range(draw.randint(2, 9))]
    inside = [draw.randrange(3) for _ in nodes]
    islands = [[r for r, i in enumerate(inside) if i == k] for k in range(3)]
    found = ring(nodes, [i for i in islands if i])
    assert sorted(found) == list(range(len(nodes)))
    assert all(buddy != rank for rank, buddy in enumerate(found))


@pytest.mark.parametrize("seed", range(60))
def test_buddy_lives_on_another_node_of_the_island_where_no_node_has_more_than_half(seed):
    draw = random.Random(seed)
    islands, nodes = [], []
    for k in range(2):
        counts = [draw.randint(1, 3) for _ in range(draw.randint(2, 4))]
        if 2 * max(counts) > sum(counts):
            counts = [1, 1]
        start = len(nodes)
        nodes += [f"{k}-{n}" for n, count in enumerate(counts) for _ in range(count)]
        islands.append(list(range(start, len(nodes))))
    for rank, buddy in enumerate(ring(nodes, islands)):
        assert nodes[buddy] != nodes[rank]
        assert nodes[buddy][0] == nodes[rank][0]


def test_islands_of_one_node_give_each_other_buddies():
    found = ring(["a", "a", "b", "b"], [[0, 1], [2, 3]])
    assert {("a", "b")[r < 2] for r in (0, 1)} == {"b"}
    assert all((rank < 2) != (buddy < 2) for rank, buddy in enumerate(found))


def test_alone_or_with_other_owners_nobody_keeps_copies():
    assert ring(["a"]) == (None,)
    places = [Place(size=2, group=g, index=i) for g in range(2) for i in range(2)]
    assert buddies(places, list("abcd"), [range(4)]) == (None,) * 4


def test_lost_shard_is_found_at_its_buddy():
    standings = [NEW, member(0, held=[holding(1, copy=True, key="copy")]), member(2)]
    found = recovery(standings, 7, 3, [1])
    assert found.holders == {1: (1, "copy")}


def test_owner_comes_before_the_copy():
    standings = [member(2, held=[holding(0, copy=True, key="copy")]), member(0), member(1)]
    assert recovery(standings, 7, 2, [0, 1]).holders == {0: (1, "live"), 1: (2, "live"), 2: (0, "live")}


def test_shard_of_another_step_is_no_source():
    standings = [NEW, member(0, held=[holding(1, copy=True, step=6)]), member(2)]
    assert recovery(standings, 7, 3, [1]) is None
    assert missing(standings, 7, 3) == (1,)


def test_layouts_are_not_mixed():
    standings = [member(0), member(1, 2), NEW]
    assert recovery(standings, 7, 3, [0, 1, 2]) is None


def test_only_what_is_wanted_must_be_there_where_the_size_stays():
    doubtful = Standing(node="n", place=Place(size=3, group=0, index=2), live=True)
    standings = [NEW, member(0, held=[holding(1, copy=True, key="copy")]), doubtful]
    assert recovery(standings, 7, 3, [1]).holders == {1: (1, "copy")}


def test_rank_and_buddy_lost_names_the_shard():
    survivors = [member(2, held=[holding(0, copy=True)]), NEW, NEW]
    assert recovery(survivors, 7, 3, [0, 1]) is None
    assert missing(survivors, 7, 3) == (1,)


@pytest.mark.parametrize("seed", range(60))
def test_any_single_loss_is_recoverable_with_copies(seed):
    draw = random.Random(seed)
    size = draw.randint(2, 7)
    nodes = [draw.choice("abc") for _ in range(size)]
    keepers = ring(nodes)
    standings = [
        member(i, size, node=nodes[i], held=[holding(keepers.index(i), size, copy=True, key="copy")])
        for i in range(size)
    ]
    lost = draw.randrange(size)
    survivors = [s for i, s in enumerate(standings) if i != lost]
    assert recovery(survivors, 7, size - 1, range(size - 1)) is not None
    assert kept(standings[keepers[lost]], Place(size=size, group=0, index=lost), 7) is not None


def kept_of(index, *steps, ward=None, size=3, line=0):
    """What a member keeps where all are copied each few steps: its own shard and its ward's."""
    own = tuple(holding(index, size, s, key=f"kept-{s}", line=line) for s in steps)
    copies = tuple(holding(ward, size, s, key=f"copy-{s}", copy=True, line=line) for s in steps if ward is not None)
    return own + copies


def test_all_fall_back_to_the_newest_step_of_which_every_shard_is_held():
    standings = [NEW, member(0, held=kept_of(0, 3, 6, ward=1)), member(2, held=kept_of(2, 3, 6, ward=0))]
    assert recovery(standings, 7, 3, [1]) is None
    found = fallback(standings, 7, 3)
    assert (found.step, found.size) == (6, 3)
    assert found.holders == {0: (1, "kept-6"), 1: (1, "copy-6"), 2: (2, "kept-6")}


def test_copy_that_did_not_arrive_before_the_loss_leads_back_further():
    arrived = (*kept_of(0, 3, ward=1), *kept_of(0, 6))
    standings = [NEW, member(0, held=arrived), member(2, held=kept_of(2, 3, 6, ward=0))]
    assert fallback(standings, 7, 3).step == 3


def test_copies_of_a_step_that_was_undone_are_not_mixed_with_those_of_its_second_time():
    standings = [NEW, member(0, held=kept_of(0, 6, ward=1, line=1)), member(2, held=kept_of(2, 6, ward=0, line=2))]
    assert fallback(standings, 7, 3) is None


def test_rank_and_buddy_lost_leave_nothing_to_fall_back_to():
    standings = [NEW, NEW, member(2, held=kept_of(2, 3, 6, ward=1))]
    assert fallback(standings, 7, 3) is None


def test_shards_of_the_old_size_are_fallen_back_to_where_nobody_takes_the_place():
    standings = [member(0, held=kept_of(0, 6, ward=1)), member(2, held=kept_of(2, 6, ward=0))]
    found = fallback(standings, 7, 2)
    assert (found.step, found.size, sorted(found.holders)) == (6, 3, [0, 1, 2])


@pytest.mark.parametrize("seed", range(60))
def test_any_single_loss_leads_back_to_the_last_step_that_all_buddies_acknowledged(seed):
    draw = random.Random(seed)
    size = draw.randint(2, 7)
    keepers = ring([draw.choice("abc") for _ in range(size)])
    lost = draw.randrange(size)
    newest = [draw.random() < 0.5 for _ in range(size)]
    standings = []
    for i in range(size):
        ward = keepers.index(i)
        held = [*kept_of(i, 3, 6, size=size), *kept_of(i, 3, ward=ward, size=size)[1:]]
        held += [holding(ward, size, 6, key="copy-6", copy=True)] if newest[i] else []
        standings.append(member(i, size, held=held))
    survivors = [s for i, s in enumerate(standings) if i != lost]
    assert fallback([*survivors, NEW], 7, size).step == (6 if newest[keepers[lost]] else 3)
