"""The autoscaler with hosts of a lab as machines and real Ray nodes on them: gangs, sold out, mute, spot, idle."""

import lab_specs
import pytest
from lab_machines import SCRIPTS, machines

from atoll.schema.sharing import Alternative
from atoll.schema.spec import JobSpec
from atoll.schema.views import RunState
from benchmarks import networks

pytestmark = [
    pytest.mark.root,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(540),
    pytest.mark.skipif(bool(lab_specs.REFUSED), reason=lab_specs.REFUSED),
]
GANG = """
cluster = "machines"
provider = "lab"
patience_s = 0.5
sold_out_s = 30.0
[types.cheap]
cpus = 1
max = 2
price_per_hour = 1.0
idle_s = 5.0
launch_s = 120.0
settings.lab.hosts = ["a0"]
[types.dear]
cpus = 1
max = 2
price_per_hour = 2.0
idle_s = 5.0
launch_s = 120.0
settings.lab.hosts = ["b0", "b1"]
"""
SPOT = """
cluster = "machines"
provider = "lab"
patience_s = 0.5
sold_out_s = 30.0
[types.mute]
cpus = 1
max = 1
price_per_hour = 1.0
launch_s = 8.0
settings.lab = { hosts = ["m0"], never_join = ["m0"] }
[types.spot]
cpus = 1
max = 2
spot = true
price_per_hour = 2.0
idle_s = 30.0
launch_s = 120.0
settings.lab.hosts = ["s0", "s1"]
"""
UNLIKE = """
cluster = "machines"
provider = "lab"
patience_s = 0.5
[types.slow]
cpus = 1
max = 3
price_per_hour = 1.0
nics = { wide = "50 Mbit/s" }
idle_s = 5.0
launch_s = 120.0
settings.lab.hosts = ["z0", "z1", "z2"]
[types.fast]
cpus = 1
max = 3
price_per_hour = 3.0
nics = { fast = "500 Mbit/s", wide = "50 Mbit/s" }
idle_s = 5.0
launch_s = 120.0
settings.lab.hosts = ["a0", "a1", "a2"]
"""


def running(here, run):
    return here.client.run(run).state is RunState.RUNNING


def test_gang_gets_its_machines_from_two_types_when_one_is_sold_out_and_they_go_when_idle():
    with machines(["a0", "b0", "b1"], GANG) as here:
        here.until(here.client.nodes)
        run = here.submit("gang", workers=2, cpus_per_worker=1)
        here.until(lambda: running(here, run), 180)
        assert set(here.machines()) == {"a0", "b0"}
        assert here.told("cheap: cheap is sold out")
        assert {m.kind for m in here.lab.record.machines} == {"cheap", "dear"}
        here.client.stop(run)
        here.until(lambda: here.client.run(run).state.ended)
        here.until(lambda: not here.machines(), 150)
        ended = here.told("end ")
        assert len(ended) == 2
        assert all("nobody needed it for" in line for line in ended)
        assert here.loop._core.fleet.held == {}


def test_machine_that_never_joins_is_given_up_and_a_spot_machine_is_replaced_before_it_goes():
    with machines(["m0", "s0", "s1"], SPOT, command=True) as here:
        here.until(lambda: here.told("2 types of machines by way of lab"))
        run = here.submit("one", workers=1, cpus_per_worker=1)
        here.until(lambda: running(here, run), 180)
        assert [line for line in here.told("end mute-") if "it has not joined the cluster within" in line]
        assert set(here.machines()) == {"s0"}
        here.inside("s0", "drain", "--here", "--within", "60s")
        here.until(lambda: here.told("in place of"))
        here.until(lambda: "s1" in here.machines() and on(here, run) == {here.machines()["s1"].node}, 90)
        here.until(lambda: here.told("its provider wants it back, and everybody has left it"), 90)
        assert running(here, run)
        story = [event.text for event in here.client.story("autoscaler")]
        assert [text for text in story if text.startswith("start spot-") and "in place of" in text]


def test_gang_that_asks_for_fast_nics_gets_their_type_although_another_is_cheaper_and_it_goes_when_idle():
    with machines(networks.islands([3], [networks.FAST], networks.SLOW, only_slow=3), UNLIKE) as here:
        here.until(here.client.nodes)
        spec = JobSpec(
            name="gang",
            working_dir=str(SCRIPTS),
            file="tiny.py",
            workers=3,
            spares=0,
            cpus_per_worker=1.0,
            alternatives=(Alternative(labels={"nic-fast": "500M"}),),
            config={"steps": 1_000_000, "pause_s": 0.2},
            detach=True,
        )
        # Until the autoscaler has said what it could start, such a job could never run.
        here.until(lambda: here.client.plan(spec).to_start == {"fast": 3})
        run = here.client.submit(spec)
        here.until(lambda: running(here, run), 240)
        assert set(here.machines()) == {"a0", "a1", "a2"}
        assert len({t.node for t in here.client.run(run).trainers}) == 3
        here.client.stop(run)
        here.until(lambda: here.client.run(run).state.ended)
        here.until(lambda: not here.machines(), 150)
        assert {m.kind for m in here.lab.record.machines} == set()
        assert not here.told("start slow")
        assert len(here.told("start fast")) == 3


def on(here, run):
    """The nodes where the run's living trainers are."""
    return {t.node for t in here.client.run(run).trainers if t.role != "gone"}
