"""What a race counts beside its times."""

from benchmarks.races import sent_by


def test_bytes_of_all_hosts_add_up_by_network_and_contestant():
    one = [{"wide": 10, "east": 5}, {"wide": 100, "east": 0}, {"wide": 12, "east": 5}]
    other = [{"wide": 20}, {"wide": 200}, {"wide": 24}]
    found = sent_by(["atoll", "gloo", "atoll"], [one, other])
    assert found == {"atoll": {"wide": 33, "east": 5}, "gloo": {"wide": 300, "east": 0}}


def test_network_of_some_hosts_only_counts_nothing_for_the_others():
    assert sent_by(["atoll"], [[{"wide": 1, "west": 7}], [{"wide": 2, "east": 3}]]) == {
        "atoll": {"wide": 3, "west": 7, "east": 3}
    }
