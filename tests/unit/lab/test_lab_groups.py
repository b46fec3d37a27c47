"""CPU quotas and freezing on both versions of cgroups, on folders that look like them."""

from pathlib import Path

import pytest

from atoll.errors import LabError
from atoll.lab import fs_cgroups
from atoll.lab.fs_cgroups import Groups, Place, Places


def test_a_quota_on_version_one_is_a_share_of_a_period(tmp_path):
    groups = Groups(cpu=str(tmp_path / "g"))
    fs_cgroups.make(groups, 0.25)
    assert (tmp_path / "g/cpu.cfs_period_us").read_text() == "100000"
    assert (tmp_path / "g/cpu.cfs_quota_us").read_text() == "25000"


def test_a_quota_on_version_two_is_one_line(tmp_path):
    (tmp_path / "g").mkdir()
    (tmp_path / "g/cpu.max").write_text("max 100000")
    fs_cgroups.make(Groups(cpu=str(tmp_path / "g")), 1.5)
    assert (tmp_path / "g/cpu.max").read_text() == "150000 100000"


def test_hosts_without_a_quota_have_a_group_only_to_be_frozen_by():
    places = Places(cpu=Place(base="/c", version=1), freezer=Place(base="/f", version=2))
    assert fs_cgroups.groups_of(places, "atoll-1-a", None).paths() == ["/f/atoll-1-a"]
    assert fs_cgroups.groups_of(places, "atoll-1-a", 0.5).paths() == ["/c/atoll-1-a", "/f/atoll-1-a"]
    assert fs_cgroups.groups_of(Places(), "atoll-1-a", 0.5).paths() == []


def test_one_group_serves_for_both_where_it_can():
    place = Place(base="/c", version=2)
    assert fs_cgroups.groups_of(Places(cpu=place, freezer=place), "atoll-1-a", 0.5).paths() == ["/c/atoll-1-a"]


@pytest.mark.parametrize(
    ("version", "file", "asked", "answer"),
    [
        (1, "freezer.state", "FROZEN", ("freezer.state", "FROZEN")),
        (2, "cgroup.freeze", "1", ("cgroup.events", "frozen 1")),
    ],
)
def test_freezing_writes_what_the_version_wants_and_waits_for_it(tmp_path, version, file, asked, answer):
    group = tmp_path / "g"
    group.mkdir()
    (group / answer[0]).write_text(f"populated 1\n{answer[1]}\n" if version == 2 else answer[1])
    assert fs_cgroups.set_frozen(Groups(freezer=str(group), freezer_version=version), frozen=True)
    assert (group / file).read_text() == asked


def test_a_group_that_does_not_freeze_is_told_after_the_deadline(tmp_path):
    (tmp_path / "cgroup.events").write_text("frozen 0")
    groups = Groups(freezer=str(tmp_path), freezer_version=2)
    with pytest.raises(LabError, match="did not freeze within"):
        fs_cgroups.set_frozen(groups, frozen=True, deadline_s=0.02)


def test_without_a_group_nothing_is_frozen_by_it(tmp_path):
    assert not fs_cgroups.set_frozen(Groups(), frozen=True)
    assert not fs_cgroups.set_frozen(Groups(freezer=str(tmp_path / "away")), frozen=True)


def test_a_group_that_cannot_be_made_is_told_with_what_to_do(tmp_path):
    with pytest.raises(LabError, match="leave `cpus` out, or run as root"):
        fs_cgroups.make(Groups(cpu=str(tmp_path / "no" / "g")), 0.5)


def test_only_groups_of_the_lab_are_removed(tmp_path):
    for name in ("atoll-1-a", "atoll-1-b", "atoll-12-a", "others"):
        (tmp_path / name).mkdir()
    fs_cgroups.remove([str(tmp_path)], "atoll-1-")
    assert sorted(p.name for p in Path(tmp_path).iterdir()) == ["atoll-12-a", "others"]
