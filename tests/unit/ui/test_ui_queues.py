from __future__ import annotations

from atoll.schema.sharing_views import GoodputView, QueueView, TopView
from atoll.ui.queues import goodput_line, queue_rows


def top(*goodput, **queue):
    fields = {"name": "lab", "weight": 1.0, "cohort": "", "share": 0.5, "lately": 0.25, "fair_share": 0.4}
    shown = QueueView(**(fields | {"running": 1, "waiting": 2, "quotas": ("fast: 8 GPU",)} | queue))
    return TopView(at=1.0, since=0.0, queues=(shown,), goodput=goodput)


def test_queue_says_what_it_uses_and_what_is_fair():
    (row,) = queue_rows(top())
    assert (row.name, row.used, row.runs) == ("lab", 0.5, "1 run, 2 waiting")
    assert row.share == "50% now, 25% lately, 40% fair"
    assert row.quotas == "fast: 8 GPU"


def test_share_beyond_the_cluster_fills_the_meter_and_no_more():
    assert queue_rows(top(share=1.5))[0].used == 1.0


def test_nothing_is_shown_while_the_control_plane_is_away():
    assert queue_rows(None) == []
    assert goodput_line(None) == ""


def test_goodput_line_names_what_the_time_went_into():
    spent = [
        GoodputView(by="device", name="cpu", useful=60.0, starting=20.0, idle=10.0),
        GoodputView(by="device", name="gpu", idle=10.0),
        GoodputView(by="run", name="gpt", useful=60.0),
    ]
    assert goodput_line(top(*spent)) == "device time: 60% useful, 20% starting, 20% idle; goodput 75%"
