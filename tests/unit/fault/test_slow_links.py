import pytest

from atoll.fault.slow_links import LinkRestored, SlowLink, SlowLinks
from atoll.schema.topology import Change, What

MB = 125e3


def carried(after, *, before=48 * MB, place=What.LINK, **rest):
    ends = {"sources": ("a",), "targets": ("b",), "nic": "fast"} | rest
    return Change(
        what=place,
        before=before,
        after=None if after is None else after * MB,
        evidence="two windows",
        **ends,
    )


def test_link_at_a_fifth_of_its_best_is_slow_and_told_once():
    links = SlowLinks()
    verdict = links.take(carried(9.6))
    assert isinstance(verdict, SlowLink)
    assert verdict.evidence == "the link a -> b: 9.6 Mbit/s, 5.0 times less than before (48 Mbit/s)"
    assert links.take(carried(5.0, before=9.6 * MB)) is None


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (What.SENDER, "what NIC fast of a sends"),
        (What.RECEIVER, "what NIC fast of b receives"),
        (What.TRUNK, "the trunk a -> b"),
        (What.LINK, "the link a -> b"),
    ],
)
def test_verdict_names_the_place_to_look_at(place, text):
    assert SlowLinks().take(carried(10, place=place)).evidence.startswith(f"{text}: 10 Mbit/s")


def test_change_within_half_is_no_slow_link():
    assert SlowLinks().take(carried(30)) is None


def test_slow_decline_counts_against_the_best():
    links = SlowLinks()
    assert links.take(carried(35)) is None
    assert isinstance(links.take(carried(22, before=35 * MB)), SlowLink)


def test_link_that_carries_as_before_is_restored():
    links = SlowLinks()
    links.take(carried(9))
    assert links.take(carried(30, before=9 * MB)) is None
    assert isinstance(links.take(carried(45, before=30 * MB)), LinkRestored)
    assert links.take(carried(48, before=45 * MB)) is None


def test_link_that_became_fast_or_was_just_found_is_none():
    links = SlowLinks()
    assert links.take(carried(480)) is None
    assert links.take(carried(48, before=None, sources=("c",))) is None


def test_trunk_that_is_gone_is_slow_no_more():
    links = SlowLinks()
    links.take(carried(9, place=What.TRUNK))
    assert links.take(carried(None, before=9 * MB, place=What.TRUNK)) is None
    assert isinstance(links.take(carried(9, place=What.TRUNK)), SlowLink)
