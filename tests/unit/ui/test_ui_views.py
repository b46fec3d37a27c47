from __future__ import annotations

import dataclasses
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from atoll.schema.checkpoints import Tier, TierState, TierView
from atoll.schema.ids import Epoch, Step
from atoll.schema.spec import JobKind
from atoll.schema.views import DrainView, EventView, MetricPoint, RunState
from atoll.ui import steps, views
from atoll.ui.wording import NOTHING, Tone


def by_label(tiles):
    return {tile.label: tile for tile in tiles}


def test_live_runs_stand_first_and_then_the_newest(run):
    rows = views.run_rows(
        [
            run("old", submitted_at=1.0),
            run("done", submitted_at=90.0, state=RunState.SUCCEEDED),
            run("new", submitted_at=50.0),
        ],
        now=100.0,
    )
    assert [row.run for row in rows] == ["new", "old", "done"]


def test_a_run_short_of_members_is_marked(run):
    short, whole, ended = views.run_rows(
        [run("a", members=3), run("b"), run("c", members=0, state=RunState.FAILED)], now=100.0
    )
    assert (short.short, short.members) == (True, "3 / 4")
    assert not whole.short
    assert (ended.short, ended.members) == (False, NOTHING)


def test_a_row_shows_the_training_loss_and_not_the_held_out_one(run, point):
    (row,) = views.run_rows([run(last=point(9, heldout_loss=9.0, loss=1.5))], now=100.0)
    assert row.loss == "1.500"


def test_a_serving_run_has_no_step(run):
    (row,) = views.run_rows([run(kind=JobKind.SERVE)], now=100.0)
    assert (row.step, row.loss) == ("serving", NOTHING)


def test_held_out_is_known_by_name():
    assert all(map(steps.is_held_out, ("heldout_loss", "val/loss", "eval-loss", "held_out_loss", "test_loss")))
    assert not any(map(steps.is_held_out, ("loss", "train_loss", "latest_loss", "evaluated_loss")))


def test_throughput_takes_tokens_where_they_are_reported(point):
    assert steps.rate(point(1, tokens_per_s=900.0)) == (900.0, "tokens/s")
    assert steps.rate(point(1, step_s=0.5, tokens=100.0)) == (200.0, "tokens/s")
    assert steps.rate(point(1, step_s=0.5, samples=10)) == (20.0, "samples/s")


def test_tiles_keep_the_last_held_out_loss_between_evaluations(run, point):
    points = [point(1, loss=3.0, heldout_loss=2.5), point(2, loss=2.9)]
    tiles = by_label(views.run_tiles(run(last=points[-1]), points, now=100.0))
    assert (tiles["Loss"].value, tiles["Held-out loss"].value) == ("2.900", "2.500")


def test_tiles_of_a_run_without_a_step_say_so(run):
    tiles = by_label(views.run_tiles(run(), [], now=100.0))
    assert (tiles["Loss"].value, tiles["Tokens/s"].value) == (NOTHING, NOTHING)
    assert (tiles["Step"].note, tiles["Last checkpoint"].note) == ("none committed yet", "none yet")


def test_the_members_tile_warns_while_one_is_missing(run):
    tile = by_label(views.run_tiles(run(members=3, spares=0), [], now=100.0))["Members"]
    assert (tile.value, tile.note, tile.tone) == ("3 / 4", "one short of 4", Tone.CARE)


def test_a_run_in_the_list_says_whose_it_is(run):
    rows = views.run_rows([run(submitted_at=40.0), run("b", submitted_at=39.0, owner="anna")], now=100.0)
    assert [row.age for row in rows] == ["1 min ago", "1 min ago by anna"]


def test_a_serving_run_shows_its_endpoint(run):
    tiles = by_label(views.run_tiles(run(kind=JobKind.SERVE, endpoint="http://127.0.0.1:1/v1"), [], now=0.0))
    assert tiles["Answering at"].value == "http://127.0.0.1:1/v1"


def test_the_last_checkpoint_says_its_step_and_age(run, checkpoint):
    tile = by_label(views.run_tiles(run(checkpoint=checkpoint()), [], now=195.0))["Last checkpoint"]
    assert (tile.value, tile.note) == ("50", "durable 40 s ago")


def test_members_stand_by_rank_then_spares_then_the_last_gone(trainer):
    trainers = [
        trainer("t9", "spare"),
        *[trainer(f"t{i}", "gone", state="lost") for i in range(2, 8)],
        trainer("t1", "worker", 1),
        trainer("t0", "worker", 0),
    ]
    cards = views.member_cards(trainers)
    assert [c.trainer for c in cards] == ["t0", "t1", "t9", "t7", "t6", "t5", "t4"]
    assert [c.title for c in cards[:4]] == ["Rank 0", "Rank 1", "Spare", "Gone"]
    assert cards[-1].gone
    assert (cards[-1].pill.text, cards[-1].pill.tone) == ("lost", Tone.BAD)


def test_a_role_that_nobody_here_has_heard_of_is_still_shown(trainer):
    (card,) = views.member_cards([trainer("t1", "observer", state="Looking")])
    assert (card.title, card.pill.text) == ("Observer", "looking")


def test_epochs_are_read_from_commits_with_the_gap_before_them(point):
    points = [point(1, at=1.0), point(2, at=2.0), point(3, at=4.5, epoch=3, members=3), point(4, at=5.0, epoch=3)]
    first, second = steps.epoch_spans(points)
    assert (first.epoch, first.first, first.last, first.gap_s) == (1, 1, 2, None)
    assert (second.epoch, second.steps, second.gap_s) == (3, 2, 2.5)
    assert steps.span_words(second) == "steps 3\u20134, 4 members, 2.50 s after the commit before it"
    assert steps.span_words(first) == "steps 1\u20132, 4 members"


def test_a_lost_node_and_one_without_agent_are_told_apart_in_words(node):
    rows = views.node_rows([node("c", alive=False), node("b", agent=False), node("a")])
    assert [(row.node, row.pill.text) for row in rows] == [("a", "ready"), ("b", "no agent"), ("c", "lost")]
    assert rows[0].used == 0.8


def test_overview_counts_only_what_lives(run, node):
    tiles = by_label(
        views.overview_tiles(
            [run(members=3), run("b", state=RunState.STOPPED, members=0)], [node(), node("b", alive=False)]
        )
    )
    assert (tiles["Live runs"].value, tiles["Members"].value, tiles["Members"].tone) == ("1", "3 / 4", Tone.CARE)
    assert (tiles["Nodes"].value, tiles["CPUs held"].value) == ("1 / 2", "1.6 / 2")


def test_an_empty_cluster_has_an_overview():
    assert by_label(views.overview_tiles([], []))["Members"].value == NOTHING


def event(subject, kind, run="r1"):
    return EventView(seq=1, at=0.0, run=run, subject=subject, kind=kind, text="why")


def test_an_event_names_whom_it_happened_to_unless_it_is_the_run():
    lost = views.event_line(event("r1-t3", "lost"))
    assert (lost.title, lost.text, lost.tone, lost.time) == ("t3: lost", "why", Tone.CARE, "00:00:00")
    assert views.event_line(event("r1", "epoch")).title == "New epoch"
    assert views.event_line(event("node-a", "node-lost", run=None)).title == "node-a: node lost"


def test_names_lose_only_the_name_of_their_run():
    assert views.short_name("r1-t3", "r1") == "t3"
    assert views.short_name("node-a", "r1") == "node-a"
    assert views.short_name("r1", "r1") == "r1"


def test_a_trainer_that_finished_is_no_loss(trainer):
    ends = [views.member_cards([trainer("t1", "gone", state=s)])[0].pill for s in ("finished", "dismissed", "lost")]
    assert [pill.tone for pill in ends] == [Tone.GOOD, Tone.CALM, Tone.BAD]
    assert len({pill.glyph for pill in ends}) == 3


def test_an_ended_run_misses_no_member(run):
    tile = by_label(views.run_tiles(run(state=RunState.SUCCEEDED, members=0), [], now=0.0))["Members"]
    assert (tile.value, tile.tone) == (NOTHING, Tone.CALM)


def test_checkpoints_stand_newest_first(checkpoint):
    lines = views.checkpoint_lines([checkpoint(50), checkpoint(100)])
    assert [line.title for line in lines] == ["Step 100", "Step 50"]
    assert lines[0].note == "3.0 MiB in 500 ms, 00:02:30 UTC"


def test_each_copy_of_a_checkpoint_has_a_light_of_its_own(checkpoint):
    copies = (
        TierView(tier=Tier.LOCAL, state=TierState.WHOLE, detail="/c/step-50"),
        TierView(tier=Tier.REMOTE, state=TierState.COPYING, detail="40 %"),
    )
    pills = views.checkpoint_lines([dataclasses.replace(checkpoint(50), tiers=copies)])[0].copies
    assert [(p.text, p.tone) for p in pills] == [("local whole", Tone.GOOD), ("remote copying 40 %", Tone.ACTIVE)]


@given(st.lists(st.integers(1, 3), min_size=0, max_size=60), st.integers(4, 20))
def test_compaction_keeps_the_edges_of_epochs_and_the_newest_half(changes, limit):
    epochs = list(accumulate(change == 1 for change in changes))
    points = [
        MetricPoint(step=Step(i), at=float(i), step_s=0.1, samples=1, members=1, epoch=Epoch(e))
        for i, e in enumerate(epochs)
    ]
    kept = steps.compact(points, limit)
    assert kept[len(kept) - len(points) // 2 :] == points[len(points) - len(points) // 2 :]
    assert [(s.epoch, s.first, s.last) for s in steps.epoch_spans(kept)] == [
        (s.epoch, s.first, s.last) for s in steps.epoch_spans(points)
    ]


def test_bookkeeping_is_kept_off_the_page_and_a_loss_is_not():
    kinds = ("seat-taken", "assigned", "started", "lost", "gone", "epoch", "seat-lost")
    assert [kind for kind in kinds if views.is_news(event("r1-t3", kind))] == ["lost", "epoch", "seat-lost"]


def test_node_row_tells_how_far_a_drain_is(node):
    def pill(**rest):
        drain = DrainView(**({"until": 9.0, "reason": "", "trainers": 2, "left": False} | rest))
        return views.node_rows([node("a", drain=drain)])[0].pill

    assert (pill().text, pill().tone) == ("draining, 2 trainers", Tone.CARE)
    assert (pill(left=True).text, pill(left=True).tone) == ("drained", Tone.CALM)
