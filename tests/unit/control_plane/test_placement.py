from atoll.control_plane.placement import Room, place, units
from atoll.schema.spec import JobSpec


def room(name, cpus, free=None, gpus=0):
    have = units(cpus)
    return Room(
        node=name, cpus=have, gpus=units(gpus), cpus_free=have if free is None else units(free), gpus_free=units(gpus)
    )


def spec(workers, spares=1, cpus=0.4, gpus=0.0):
    return JobSpec(
        name="n",
        working_dir="/",
        file="f.py",
        workers=workers,
        spares=spares,
        cpus_per_worker=cpus,
        gpus_per_worker=gpus,
    )


def test_five_seats_of_two_fifths_fill_two_cores():
    assert place(spec(4), [room("a", 2)], least=4, most=5) == ["a"] * 5


def test_fullest_fit_comes_first_and_one_node_is_enough():
    assert place(spec(2), [room("a", 2, free=0.4), room("b", 2)], least=2, most=3) == ["b"] * 3


def test_run_spans_nodes_where_it_must():
    assert place(spec(4, spares=0), [room("a", 1), room("b", 1)], least=4, most=4) == ["a", "a", "b", "b"]


def test_run_waits_while_its_workers_do_not_fit_now():
    assert place(spec(3), [room("a", 2, free=0.8)], least=3, most=4) is None


def test_seats_that_ask_for_nothing_are_sixty_four_to_a_device():
    assert place(spec(64, cpus=0.0), [room("a", 1)], least=64, most=100) == ["a"] * 64
    assert place(spec(65, cpus=0.0), [room("a", 1)], least=65, most=65) is None
    assert place(spec(9, gpus=1e-9, cpus=0.0), [room("a", 1, gpus=1)], least=1, most=100) == ["a"] * 64
