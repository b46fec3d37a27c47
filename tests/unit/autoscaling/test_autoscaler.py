"""The autoscaler on a virtual clock: what it starts, waits for, replaces and ends."""

import itertools

from imagined_machines import World, ask, kind, only

from atoll.control_plane.autoscaling.spec import Scaling


def world(*kinds, **options):
    names = Scaling.__dataclass_fields__
    settings = {name: options.pop(name) for name in list(options) if name in names}
    return World(Scaling(cluster="c", types=kinds, **{"room_s": 60.0, **settings}), **options)


def told(w, words):
    return [text for _, text in w.notes if words in text]


def test_gang_that_waits_gets_the_machines_that_complete_it():
    w = world(kind("small", cpus=4))
    w.submit(ask("r", workers=10, cpus=1))
    w.go(1)
    assert w.launches == []
    w.go(9)
    assert len(w.launches) == 3
    assert w.running.keys() == {"r"}
    w.go(60)
    assert len(w.launches) == 3


def test_gang_that_cannot_be_completed_starts_nothing_and_says_why():
    w = world(kind("small", cpus=4, most=2), kind("big", cpus=64, price_per_hour=9.0), budget_per_hour=5.0)
    w.submit(ask("r", workers=10, cpus=1))
    w.go(30)
    assert w.launches == []
    assert len(told(w, "nothing is started")) == 1
    assert "small: fewer may be started than the gang needs" in w.notes[-1][1]
    assert "big: the budget of an hour would be exceeded (0 is spent, 9 more, budget 5)" in w.notes[-1][1]


def test_gang_uses_what_is_free_and_starts_only_what_lacks():
    w = world(kind("small", cpus=4))
    w.stand("own", cpus=6)
    w.submit(ask("r", workers=10, cpus=1))
    w.go(10)
    assert len(w.launches) == 1
    assert set(w.running["r"][1]) == {"own", "n-small-x1"}


def test_two_gangs_do_not_count_on_the_same_machine():
    w = world(kind("small", cpus=4, most=8))
    w.submit(ask("r", workers=4))
    w.submit(ask("s", workers=4))
    w.go(10)
    assert len(w.launches) == 2
    assert w.running.keys() == {"r", "s"}


def test_cheapest_work_wins_over_the_cheapest_machine():
    slow = kind("slow", cpus=4, price_per_hour=1.0, device="old", speed=1.0)
    fast = kind("fast", cpus=4, price_per_hour=3.0, device="new", speed=4.0)
    w = world(slow, fast)
    w.submit(ask("r", workers=4))
    w.go(5)
    assert w.launches[0][1] == "fast"
    measured = world(slow, fast)
    measured.submit(ask("r", workers=4, measured={"new": 200.0, "old": 190.0}))
    measured.go(5)
    assert measured.launches[0][1] == "slow"


def test_figure_of_one_device_scales_the_declared_speed_of_others():
    slow = kind("slow", cpus=4, price_per_hour=1.0, device="old", speed=1.0)
    fast = kind("fast", cpus=4, price_per_hour=3.0, device="new", speed=4.0)
    w = world(slow, fast)
    w.submit(ask("r", workers=4, measured={"old": 1000.0}))
    w.go(5)
    assert w.launches[0][1] == "fast"


def test_ordered_options_go_to_the_first_that_can_be_completed():
    a = kind("a", cpus=4, most=1, labels={"rack": "a"})
    b = kind("b", cpus=4, price_per_hour=5.0, labels={"rack": "b"})
    w = world(a, b)
    w.submit(ask("r", workers=8, options=(only({"rack": "a"}), only({"rack": "b"}))))
    w.go(5)
    assert [name for _, name in w.launches] == ["b", "b"]


def test_gang_of_one_island_is_not_spread():
    a = kind("a", cpus=4, most=1, island="east")
    b = kind("b", cpus=4, most=2, island="west", price_per_hour=7.0)
    w = world(a, b)
    w.submit(ask("r", workers=8, options=(only(islands=1),)))
    w.go(5)
    assert [name for _, name in w.launches] == ["b", "b"]


def test_elastic_run_is_started_at_its_least_size():
    w = world(kind("small", cpus=4))
    w.submit(ask("r", workers=12, least=4))
    w.go(5)
    assert len(w.launches) == 1


def test_type_sold_out_is_paused_and_the_next_is_taken():
    w = world(kind("cheap", cpus=4, price_per_hour=1.0), kind("dear", cpus=4, price_per_hour=2.0))
    w.sold_out.add("cheap")
    w.submit(ask("r", workers=4))
    w.go(12)
    assert [name for _, name in w.launches] == ["cheap", "dear"]
    assert w.running.keys() == {"r"}
    assert told(w, "cheap: sold out; not asked for in the next 60 s (failure 1 in a row)")


def test_pauses_of_a_type_that_stays_sold_out_double():
    w = world(kind("only", cpus=4), sold_out_s=10.0, sold_out_most_s=80.0)
    w.sold_out.add("only")
    w.submit(ask("r", workers=4))
    w.go(400)
    times = [at for at, _ in w.launches]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert [round(g) for g in gaps[:5]] == [10, 20, 40, 80, 80]


def test_machines_of_a_gang_that_cannot_be_completed_any_more_are_given_back():
    w = world(kind("a", cpus=4, most=2, idle_s=5.0), kind("b", cpus=4, most=1, idle_s=5.0))
    w.sold_out.add("b")
    w.submit(ask("r", workers=12))
    w.go(40)
    assert w.standing() == []
    assert len([t for t in w.launches if t[1] == "a"]) == 2


def test_machine_that_never_joins_is_ended_and_its_type_paused():
    w = world(kind("mute", cpus=4, price_per_hour=1.0), kind("well", cpus=4, price_per_hour=2.0))
    w.mute.add("mute")
    w.submit(ask("r", workers=4))
    w.go(31)
    assert w.running == {}
    w.go(12)
    assert told(w, "end mute-x1: it has not joined the cluster within 30 s")
    assert [name for _, name in w.launches] == ["mute", "well"]
    assert w.running.keys() == {"r"}


def test_idle_machine_is_drained_and_ended_after_its_time():
    w = world(kind("small", cpus=4))
    w.submit(ask("r", workers=4))
    w.go(10)
    w.finish("r")
    w.go(19)
    assert w.standing() == ["small-x1"]
    w.go(10)
    assert w.machines == {}
    assert [t.split(":")[0] for _, t in w.notes[-2:]] == ["drain n-small-x1", "end small-x1"]


def test_least_of_a_type_always_stands():
    w = world(kind("small", cpus=4, least=2))
    w.go(100)
    assert len(w.standing()) == 2
    w.kill(w.standing()[0])
    w.go(60)
    assert len(w.standing()) == 2


def test_work_that_comes_back_within_idle_time_keeps_the_machine():
    w = world(kind("small", cpus=4))
    w.submit(ask("r", workers=4))
    w.go(10)
    for n in range(5):
        w.finish("r" if n == 0 else f"s{n}")
        w.go(15)
        w.submit(ask(f"s{n + 1}", workers=4))
        w.go(5)
    assert len(w.launches) == 1
    assert w.ended == []


def test_drain_is_taken_back_when_a_gang_needs_the_machine():
    w = world(kind("small", cpus=4), patience_s=0.0)
    w.submit(ask("r", workers=4))
    w.go(10)
    w.finish("r")
    while not told(w, "drain n-small-x1"):
        w.go(1)
    w.submit(ask("s", workers=4))
    w.go(3)
    assert told(w, "undrain n-small-x1: s needs it now")
    assert w.running.keys() == {"s"}
    assert len(w.launches) == 1


def test_machine_that_its_provider_takes_is_replaced_before_it_goes():
    w = world(kind("spot", cpus=4, spot=True))
    w.submit(ask("r", workers=4))
    w.go(10)
    w.notice("spot-x1", 30)
    w.go(2)
    assert told(w, "launch spot-x2: in place of n-spot-x1, which leaves in 29 s")
    w.go(6)
    assert w.standing() == ["spot-x1", "spot-x2"]
    w.go(30)
    assert w.standing() == ["spot-x2"]
    assert w.running.keys() == {"r"}
    assert len(w.launches) == 2


def test_machine_in_place_of_another_is_started_once_while_its_workers_move():
    w = world(kind("spot", cpus=4, spot=True), kind("other", cpus=4, price_per_hour=9.0))
    w.submit(ask("r", workers=4))
    w.go(10)
    w.notice("spot-x1", 60)
    w.go(8)
    moved, _ = w.running["r"]
    w.running["moved"] = (moved, {"n-spot-x2": 4})
    w.go(20)
    assert [name for _, name in w.launches] == ["spot", "spot"]


def test_replacement_that_is_lost_is_started_anew():
    w = world(kind("spot", cpus=4, spot=True))
    w.submit(ask("r", workers=4))
    w.go(10)
    w.notice("spot-x1", 90)
    w.go(8)
    w.kill("spot-x2")
    w.go(60)
    assert len(w.launches) == 3


def test_nothing_is_started_while_the_provider_does_not_answer():
    w = world(kind("small", cpus=4, least=1), deaf=True)
    w.submit(ask("r", workers=4))
    w.go(30)
    assert w.launches == []
    w.deaf = False
    w.go(10)
    assert len(w.launches) == 1


def test_machines_of_an_earlier_autoscaler_are_taken_over():
    w = world(kind("small", cpus=4, most=2))
    w.submit(ask("r", workers=4))
    w.go(10)
    w.restart()
    w.submit(ask("s", workers=4))
    w.go(10)
    assert len(w.standing()) == 2
    w.finish("r")
    w.finish("s")
    w.go(40)
    assert w.machines == {}


def test_gang_that_does_not_take_its_room_is_left_alone_for_longer_and_longer():
    w = world(kind("small", cpus=4), room_s=30.0)
    w.takes_nothing.add("odd")
    w.submit(ask("odd", workers=4))
    w.go(2000)
    assert told(w, "odd did not take the room that stood for it")
    assert 2 <= len(w.launches) <= 6
    assert w.go(100) is None


def test_dead_machine_is_forgotten_when_its_provider_lists_it_no_more():
    w = world(kind("small", cpus=4))
    w.submit(ask("r", workers=4))
    w.go(10)
    w.kill("small-x1")
    w.go(60)
    assert list(w.core.fleet.held) == ["small-x2"]
    assert w.running.keys() == {"r"}


def test_machine_that_ray_has_lost_stands_while_its_trainers_work_and_takes_no_gang():
    w = world(kind("small", cpus=4))
    w.submit(ask("r", workers=2))
    w.go(10)
    w.machines["small-x1"].unseen = True
    w.go(200)
    assert w.ended == []
    w.submit(ask("s", workers=2))
    w.go(10)
    assert w.running["s"][1] == {"n-small-x2": 2}
    w.finish("r")
    w.go(1200)
    assert "small-x1" in w.ended


def test_node_that_a_person_drains_is_left_to_that_person():
    w = world(kind("small", cpus=4))
    w.submit(ask("r", workers=4))
    w.go(10)
    w.finish("r")
    w.machines["small-x1"].leaving_at = w.now + 5
    w.go(100)
    assert w.ended == []
