"""Seats on a Ray that is played."""

from types import SimpleNamespace

from atoll.control_plane import effects as fx
from atoll.control_plane.ray_seats import RaySeats, Seat, node_id


class Remote:
    """What `ray.remote` makes: it notes what it was started with."""

    def __init__(self, ray, wrapped):
        self._ray, self._wrapped = ray, wrapped

    def options(self, **options):
        self._ray.asked.append((self._wrapped, options))
        return self

    def remote(self, *_):
        held = SimpleNamespace(remote=lambda: {"devices": [1], "cwd": "/w"})
        return SimpleNamespace(hold=held) if self._wrapped is Seat else 4711


class PlayedRay:
    """One host."""

    def __init__(self):
        self.wrapped, self.asked = [], []

    def remote(self, wrapped):
        self.wrapped.append(wrapped)
        return Remote(self, wrapped)

    def get(self, value, timeout):
        assert timeout > 0
        return value

    def nodes(self):
        return [{"NodeManagerAddress": "10.0.0.1", "NodeID": "ab" * 28, "Alive": True}]


def test_however_many_seats_are_made_ray_is_given_one_class():
    ray, node = PlayedRay(), node_id("10.0.0.1")
    seats = RaySeats(ray=ray, home_address="10.0.0.1", agent_config=lambda n, address: {"node": n, "at": address})
    for i in range(3):
        wanted = fx.CreateSeat(seat=f"r-s{i}", node=node, cpus=1.0, gpus=0.0, working_dir_uri=None)
        assert seats.create_seat(wanted).devices == (1,)
        assert seats.start_agent(node) == 4711
    assert ray.wrapped.count(Seat) == 1
    assert [options["name"] for kind, options in ray.asked if kind is Seat] == [f"seat/r-s{i}" for i in range(3)]
