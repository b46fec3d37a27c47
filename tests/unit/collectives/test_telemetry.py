"""What operations tell of themselves, on a clock that stands still."""

from __future__ import annotations

from atoll.collectives.telemetry import KEPT, Edge, Telemetry, Trace


def test_first_and_last_byte_are_those_of_the_first_and_last_message():
    edge = Edge()
    assert (edge.first_s, edge.last_s) == (None, None)
    for now in (3.0, 4.5, 9.0):
        edge.came(now)
    assert (edge.first_s, edge.last_s) == (3.0, 9.0)


def test_waits_that_overlap_are_starved_once():
    edge = Edge()
    edge.waits(1.0)
    edge.waits(2.0)
    edge.got(3.0)
    edge.got(5.0)
    edge.waits(10.0)
    edge.got(10.5)
    assert edge.starved_s == 4.5
    assert edge.waiting == 0


def test_a_trace_adds_up_its_edges():
    trace = Trace()
    for rank in (1, 2):
        edge = trace.edge(rank)
        edge.sent_bytes += 10 * rank
        edge.received_bytes += rank
        edge.blocked_s += 0.5
        edge.starved_s += 0.25 * rank
    assert trace.edge(1) is trace.edges[1]
    assert (trace.sent_bytes, trace.received_bytes, trace.blocked_s, trace.starved_s) == (30, 3, 1.0, 0.75)


def test_a_trace_that_is_off_has_no_edges():
    trace = Trace(on=False)
    assert trace.edge(1) is None
    assert trace.edges == {}
    assert trace.sent_bytes == 0


def test_sums_outlive_the_traces_that_are_forgotten():
    telemetry = Telemetry()
    for number in range(KEPT + 10):
        trace = Trace(number=number)
        trace.edge(3).sent_bytes = 1
        trace.edge(3).received_bytes = 2
        telemetry.add(trace)
    recent = telemetry.recent()
    assert [recent[0].number, recent[-1].number, len(recent)] == [10, KEPT + 9, KEPT]
    assert (telemetry.operations, telemetry.sent_bytes, telemetry.received_bytes) == (266, 266, 532)
    assert telemetry.totals[3].sent_bytes == 266
