import dataclasses

import pytest

from atoll.schema.views import DrainView, NodeView


@pytest.fixture
def node(cluster):
    view = NodeView(node="node-1", address="h", alive=True, cpus=2.0, gpus=0.0, cpus_free=2.0, agent=True)
    cluster.reader.hosts = [view]
    return view


def test_drain_asks_the_control_plane_and_stays_until_the_node_is_empty(atoll, cluster, node):
    code, out, _ = atoll("drain", "node-1", "--within", "2m", "--reason", "maintenance")
    assert cluster.control.asked == [("drain", {"node": "node-1", "within_s": 120.0, "reason": "maintenance"})]
    assert code == 0
    assert "node-1 is drained after" in out


def test_drain_tells_how_many_are_left_and_fails_when_the_deadline_passed_unproven(atoll, cluster, node, monkeypatch):
    leaving = DrainView(until=0.0, reason="", trainers=2, left=False)
    monkeypatch.setattr(cluster.control, "_drain", lambda method, body: {"until": 0.0})
    cluster.reader.hosts = [dataclasses.replace(node, drain=leaving)]
    code, out, err = atoll("drain", "node-1")
    assert code == 3
    assert "node-1: 2 processes there, 0 s left" in out
    assert "the end of 2 processes is not proven; `atoll story node-1`" in err


def test_drain_need_not_wait(atoll, cluster, node):
    assert atoll("drain", "node-1", "--no-wait")[1].startswith("node-1 is drained by ")


def test_unknown_node_and_bad_span_are_refused(atoll, cluster, node):
    assert atoll("drain", "nowhere")[0] == 2
    assert "no span of time" in atoll("drain", "node-1", "--within", "soon")[2]
    assert "node" in atoll("drain", "../etc")[2]
    assert [method for method, _ in cluster.control.asked] == ["drain"]


def test_drain_wants_one_node_or_this_machine(atoll):
    assert "say which node" in atoll("drain")[2]
    assert "say which node" in atoll("drain", "node-1", "--here")[2]


def test_drain_of_this_machine_leaves_a_notice_and_needs_no_cluster(atoll, tmp_path):
    home = tmp_path / "home"
    assert "no agent has served this machine" in atoll("drain", "--here")[2]
    (home / "nodes" / "node-1" / "key").mkdir(parents=True)
    code, out, _ = atoll("drain", "--here", "--within", "90s")
    assert (code, out) == (0, f"its agent reads {home / 'nodes' / 'node-1' / 'notice'}\n")
    assert (home / "nodes" / "node-1" / "notice").read_text() == "90s\n"


def test_undrain_takes_the_node_back(atoll, cluster, node):
    assert "may be placed on node-1 again" in atoll("undrain", "node-1")[1]
    assert cluster.control.asked == [("undrain", {"node": "node-1"})]


def test_status_shows_how_far_a_drain_is(atoll, cluster, node):
    assert "DRAIN" not in atoll("status")[1]
    going = DrainView(until=0.0, reason="", trainers=3, left=False)
    cluster.reader.hosts = [dataclasses.replace(node, drain=going)]
    assert "3 to leave by" in atoll("status")[1]
    cluster.reader.hosts = [dataclasses.replace(node, drain=dataclasses.replace(going, left=True))]
    assert "drained" in atoll("status")[1]
