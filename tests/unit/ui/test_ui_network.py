from __future__ import annotations

import json

import pytest
from imagined_network import imagined_network

from atoll.schema.codec import decode_as, encode
from atoll.schema.views import TopologyView, unknown_topology
from atoll.ui import network

NOW = 1e9


@pytest.fixture
def view():
    return imagined_network(NOW)


def test_the_view_survives_its_json_form(view):
    assert decode_as(TopologyView, encode(view)) == view


def test_islands_are_told_as_a_tree_with_nics_rates_and_reasons(view):
    rows = network.island_rows(view)
    assert [(r.depth, r.title) for r in rows] == [
        (0, "All hosts"),
        (1, "Island 1"),
        (2, "node-a"),
        (2, "node-b"),
        (1, "Island 2"),
        (2, "node-c"),
        (2, "node-d"),
        (1, "node-z"),
    ]
    assert rows[1].note == "9.2 Gbit/s inside, 940 Mbit/s to the others"
    assert rows[2].note == "ib0 10.1.0.4 9.2 Gbit/s, eth0 10.0.0.4 940 Mbit/s"
    assert "no faster link than 940 Mbit/s" in rows[-1].note
    assert len({r.name for r in rows}) == len(rows)


def test_links_are_listed_once_the_slowest_first(view):
    rows = network.link_rows(view, now=NOW)
    assert len(rows) == len(view.both_ways()) == len(view.links) / 2
    assert rows[-1].source == "node-c ib0"
    assert (rows[-1].there, rows[-1].back, rows[-1].latency, rows[-1].age) == (
        "9.2 Gbit/s",
        "9.2 Gbit/s",
        "20 \u00b5s",
        "1 min ago",
    )
    assert rows[0].there == "940 Mbit/s"


def test_a_link_known_one_way_only_is_shown(view):
    one = TopologyView(
        version=1, at=NOW, hosts=view.hosts, links=view.links[:1], trunks=(), islands=view.islands, unmeasured=9
    )
    assert [row.back for row in network.link_rows(one, now=NOW)] == ["\u2013"]
    assert network.tiles(one)[2].note == "9 pairs not measured yet"


def test_tiles_count_hosts_islands_and_links(view):
    assert [(t.label, t.value) for t in network.tiles(view)] == [
        ("Hosts", "5"),
        ("Islands", "3"),
        ("Links", "11"),
        ("Trunks", "0"),
    ]


def test_the_picture_draws_each_host_once_and_the_best_link_of_each_pair(view):
    series = network.picture(view)["series"][0]
    assert sorted(h["name"] for h in series["data"]) == sorted(h.node for h in view.hosts)
    places = [(h["x"], h["y"]) for h in series["data"]]
    assert len(set(places)) == len(places)
    lines = {(k["source"], k["target"]): k for k in series["links"]}
    assert len(lines) == 9
    inside, across = lines["node-a", "node-b"], lines["node-a", "node-c"]
    assert (inside["value"], inside["lineStyle"]["type"]) == ("9.2 Gbit/s", "solid")
    assert across["lineStyle"]["width"] < inside["lineStyle"]["width"]
    assert across["lineStyle"]["type"] != "solid"
    json.dumps(network.picture(view))


def test_many_hosts_are_linked_island_by_island(view, monkeypatch):
    monkeypatch.setattr(network, "HOSTS_LINKED", 3)
    assert len(network.picture(view)["series"][0]["links"]) == 3


def test_nothing_known_is_drawn_as_nothing():
    nothing = unknown_topology()
    assert network.picture(nothing)["series"][0]["data"] == []
    assert network.link_rows(nothing, now=NOW) == []
    assert network.tiles(nothing)[0].value == "0"
    assert network.island_rows(imagined_network(NOW, measured=False))[0].title == "All hosts"
