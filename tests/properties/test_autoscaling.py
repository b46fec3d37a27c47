"""Whatever is asked for and whatever fails, in whatever order: the autoscaler keeps within its limits and comes to rest.

`imagined_machines` holds after each command that no budget and no `max` is exceeded, and that no machine with a run on it
is ended. Here histories are drawn at random, and their ends judged.
"""

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from imagined_machines import World, ask, kind, only

from atoll.control_plane.autoscaling.spec import Scaling

NAMES = ("a", "b", "c")
KINDS = st.lists(
    st.builds(
        dict,
        cpus=st.sampled_from([2, 4, 8]),
        gpus=st.sampled_from([0, 1]),
        least=st.sampled_from([0, 0, 1]),
        most=st.integers(1, 4),
        price_per_hour=st.sampled_from([0.0, 1.0, 2.5]),
        island=st.sampled_from(["", "east", "west"]),
        speed=st.sampled_from([0.5, 1.0, 4.0]),
    ),
    min_size=1,
    max_size=3,
)
EVENTS = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 12), st.integers(0, 1), st.integers(0, 1)),
    st.tuples(st.just("odd"), st.integers(1, 4), st.just(0), st.just(0)),
    st.tuples(st.sampled_from(["finish", "kill", "notice", "unsee", "restart", "deaf"]), st.integers(0, 5)),
    st.tuples(st.sampled_from(["sold", "mute"]), st.sampled_from(NAMES)),
)
HISTORY = st.lists(st.tuples(EVENTS, st.sampled_from([1, 3, 10, 40])), max_size=25)


class Story:
    """One random history."""

    def __init__(self, kinds, budget):
        made = tuple(kind(name, **options) for name, options in zip(NAMES, kinds, strict=False))
        always = sum(k.least * k.price_per_hour for k in made)
        scaling = Scaling(
            cluster="c", types=made, budget_per_hour=None if budget is None else max(budget, always), room_s=40.0
        )
        self.world = World(scaling)
        self.count = 0

    def befall(self, what, *rest):
        world = self.world
        match what:
            case "submit" | "odd":
                self.count += 1
                workers, gpus, islands = rest
                run = f"{what}{self.count}"
                world.submit(ask(run, workers=workers, gpus=gpus, options=(only(islands=islands),)))
                if what == "odd":
                    world.takes_nothing.add(run)
            case "finish":
                runs = [*world.running, *(a.run for a in world.waiting)]
                if runs:
                    world.finish(runs[rest[0] % len(runs)])
            case "kill" | "notice" | "unsee":
                self.befall_a_machine(what, rest[0])
            case "restart":
                world.restart()
            case "deaf":
                world.deaf = not world.deaf
            case _:
                failing = world.sold_out if what == "sold" else world.mute
                failing.symmetric_difference_update({rest[0]})

    def befall_a_machine(self, what, number):
        names = [m for m in self.world.machines if self.world.machines[m].node]
        if not names:
            return
        name = names[number % len(names)]
        match what:
            case "kill":
                self.world.kill(name)
            case "notice":
                self.world.notice(name, 15)
            case _:
                self.world.machines[name].unseen ^= True


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(KINDS, st.sampled_from([None, 2.0, 6.0]), HISTORY)
def test_limits_hold_and_at_the_end_only_what_is_needed_stands(kinds, budget, history):
    story = Story(kinds, budget)
    world = story.world
    for what, seconds in history:
        story.befall(*what)
        world.go(seconds)
    for run in [*world.running, *(a.run for a in world.waiting)]:
        world.finish(run)
    world.deaf = False
    for machine in world.machines.values():
        machine.unseen = False
    world.sold_out.clear()
    world.mute.clear()
    world.go(600, look_s=5.0)
    event(f"launches: {min(len(world.launches), 10)}")
    for one in world.scaling.types:
        assert len(world.standing(one.name)) <= one.least, world.notes[-8:]
    paused = world.core.fleet.paused(world.now)
    if not paused:
        for one in world.scaling.types:
            assert len(world.standing(one.name)) == one.least


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(KINDS, st.sampled_from(["sold_out", "mute", "odd", "well"]), st.integers(1, 20))
def test_launches_of_one_waiting_gang_are_few_however_long_it_waits(kinds, trouble, workers):
    world = Story(kinds, None).world
    names = {k.name for k in world.scaling.types}
    if trouble in {"sold_out", "mute"}:
        getattr(world, trouble).update(names)
    if trouble == "odd":
        world.takes_nothing.add("r")
    world.submit(ask("r", workers=workers))
    hours = 2
    world.go(hours * 3600, look_s=10.0)
    # Pauses of 60 s, doubled to an hour: at most so many tries of each type, of at most `max` machines each.
    tries = 6 + hours
    most = sum(one.most for one in world.scaling.types) * (tries + 4)
    assert len(world.launches) <= most
    last_hour = [at for at, _ in world.launches if at > world.now - 3600]
    assert len(last_hour) <= 2 * sum(one.most for one in world.scaling.types)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(KINDS, st.lists(st.tuples(st.integers(1, 10), st.integers(0, 1)), min_size=1, max_size=5))
def test_gang_that_could_be_completed_runs_in_the_end(kinds, gangs):
    world = Story(kinds, None).world
    for n, (workers, gpus) in enumerate(gangs):
        world.submit(ask(f"r{n}", workers=workers, gpus=gpus))
        world.go(2)
    world.go(120, look_s=2.0)
    first = ask("r0", workers=gangs[0][0], gpus=gangs[0][1])
    per = {k.name: min(k.cpus, k.gpus if gangs[0][1] else k.cpus) for k in world.scaling.types}
    could = sum(per[k.name] * k.most for k in world.scaling.types) >= first.least
    assert ("r0" in world.running) == could
    partial = [a.run for a in world.waiting]
    event(f"waiting: {len(partial)}")
