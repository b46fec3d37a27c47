"""The lab file: what it says, and what it is told where it contradicts itself."""

from pathlib import Path

import pytest

from atoll.errors import SpecError
from atoll.lab.spec import check, parse_rate, payload_rate, reaching_all, segments
from atoll.lab.spec_toml import parse

ROOT = Path(__file__).resolve().parents[3]
HEADER = """
[networks.lan]
rate = "100 Mbit/s"
[networks.wide]
"""
HOST = '[[hosts]]\nname = "a"\nnics = { n = "lan" }\n'


def refused(text):
    with pytest.raises(SpecError) as refusal:
        parse(text, "f.toml")
    return str(refusal.value)


@pytest.mark.parametrize("file", sorted((ROOT / "examples" / "lab").glob("*.toml")), ids=lambda f: f.stem)
def test_every_example_is_a_lab(file):
    spec = parse(file.read_text(), file.name, file.stem.replace("_", "-"))
    assert check(spec) is spec
    assert spec.head in {n.name for n in spec.networks}


def test_a_file_becomes_hosts_networks_and_trunks():
    text = HEADER + (
        '[[hosts]]\nnames = ["a", "b"]\nnics = { n = "lan", w = { network = "wide", rate = "5 Mbit/s" } }\n'
        'cpus = 0.5\nnum_cpus = 2\nlabels = { island = "east", rack = 3 }\n'
    )
    spec = parse(text, "f.toml", "two")
    assert (spec.name, [h.name for h in spec.hosts], spec.head) == ("two", ["a", "b"], "lan")
    host = spec.hosts[1]
    assert (host.cpus, host.num_cpus, host.labels) == (0.5, 2, {"island": "east", "rack": "3"})
    assert [spec.rate_of(nic) for nic in host.nics] == [100e6, 5e6]


def test_a_host_named_twice_is_refused_with_both_places():
    assert "host 'a' is named twice, as number 1 and number 2" in refused(HEADER + HOST + HOST)


def test_an_unknown_network_is_refused_with_those_that_are_known():
    said = refused(HEADER + HOST.replace('"lan"', '"lam"'))
    assert said.startswith("f.toml: host 'a': NIC 'n' names the network 'lam'")
    assert "['lan', 'wide']" in said


@pytest.mark.parametrize("rate", ["fast", "100", "100 MB/s", "-5 Mbit/s", "", "1.5.2 Mbit/s"])
def test_a_rate_that_is_none_is_refused_with_its_value(rate):
    said = refused(HEADER.replace("100 Mbit/s", rate) + HOST)
    assert said.startswith("f.toml: network 'lan'")
    assert repr(rate) in said


def test_a_rate_too_small_for_tcp_is_refused():
    assert "128 kbit/s" in refused(HEADER.replace("100 Mbit/s", "64 kbit/s") + HOST)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[networks.lan", "not TOML"),
        ("color = 'red'", "unknown key 'color'"),
        (HEADER, "no hosts"),
        (HEADER + "[[hosts]]\nnics = { n = 'lan' }\n", "name"),
        (HEADER + "[[hosts]]\nname = 'a'\n", "host 'a' has no NIC"),
        (HEADER + HOST + "cpus = 0\n", "cpus = 0 is no share"),
        (HEADER + HOST + "cpus = true\n", "cpus = True is no number"),
        (HEADER + HOST + "num_cpus = 1.5\n", "num_cpus = 1.5 is no whole number"),
        (HEADER + HOST + "num_cpus = -1\n", "num_cpus = -1 is negative"),
        (HEADER + HOST.replace('"a"', '"head"'), "belongs to the head"),
        (HEADER + HOST.replace('"a"', '"A b"'), "'A b' is no name"),
        (HEADER + HOST.replace("n =", "longer-than-fifteen ="), "no name of a NIC"),
        (HEADER + HOST + "[[trunks]]\nbetween = ['lan']\n", "exactly two networks"),
        (HEADER + HOST + "[[trunks]]\nbetween = ['lan', 'lan']\n", "closes a ring"),
        (HEADER + HOST + "[[trunks]]\nbetween = ['lan', 'nowhere']\n", "names the network 'nowhere'"),
        ("head = 3\n" + HEADER + HOST, "head = 3"),
        ("head = 'moon'\n" + HEADER + HOST, "the head names the network 'moon'"),
        (HEADER + HOST.replace('{ n = "lan" }', '{ n = "lan", m = "lan" }'), "NICs 'n' and 'm' on one segment"),
        (HEADER + HOST + HOST.replace('"a"', '"b"').replace("lan", "wide"), "no network reaches every host"),
    ],
)
def test_what_cannot_be_is_refused_by_name(text, words):
    said = refused(text)
    assert said.startswith("f.toml")
    assert words in said


def test_a_ring_of_trunks_is_refused():
    trunks = "".join(
        f'[[trunks]]\nbetween = ["{a}", "{b}"]\n' for a, b in (("lan", "wide"), ("wide", "far"), ("far", "lan"))
    )
    assert "closes a ring of ['far', 'lan', 'wide']" in refused(HEADER + "[networks.far]\n" + HOST + trunks)


def test_without_a_head_hosts_need_not_all_meet():
    spec = parse("head = false\n" + HEADER + HOST + HOST.replace('"a"', '"b"').replace("lan", "wide"), "f.toml")
    assert spec.head is None
    assert reaching_all(spec) is None


def test_networks_joined_by_trunks_are_one_segment():
    text = HEADER + "[networks.far]\n" + HOST + "[[trunks]]\nbetween = ['far', 'lan']\n"
    assert [sorted(s) for s in segments(parse(text, "f.toml"))] == [["far", "lan"], ["wide"]]


@pytest.mark.parametrize(
    ("text", "bits"),
    [("50 Mbit/s", 50e6), ("500kbit", 500e3), ("1.5 Gbps", 1.5e9), ("200000 bit/s", 200e3)],
)
def test_rates_are_read_in_the_units_nics_are_sold_in(text, bits):
    assert parse_rate(text, "here") == bits


def test_payload_is_what_frames_leave():
    assert payload_rate(100e6) == pytest.approx(12.5e6 * 0.956, rel=1e-3)
    assert payload_rate(None) is None
