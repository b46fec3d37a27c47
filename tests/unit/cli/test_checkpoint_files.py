"""`atoll checkpoints` on folders of this machine: exit codes, and what is said."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from atoll.checkpoint.exchange import Kind
from atoll.checkpoint.fs_files import reading
from atoll.checkpoint.fs_store import COMMIT, Store
from atoll.checkpoint.fs_stream import Heading
from atoll.checkpoint.torch_import import import_step


@pytest.fixture
def steps(tmp_path):
    """`steps(run, *numbers)` makes steps whose one tensor holds their number; gives their folder."""

    def make(run, *numbers, folder="steps"):
        for number in numbers:
            torch.save({"model": {"w": torch.full((4,), float(number))}, "step": number}, tmp_path / "state.pt")
            import_step(tmp_path / "state.pt", Kind.TORCH, tmp_path / folder, Heading(run=run, step=number, now=1.0))
        return tmp_path / folder

    return make


def damage(folder, step):
    file = next((folder / f"step-{step:08d}").glob("model-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")


def test_folder_lists_its_steps_and_names_records_that_cannot_be_read(atoll, steps):
    folder = steps("mine", 3, 12)
    code, out, _ = atoll("checkpoints", "ls", str(folder))
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [["3", "mine"], ["12", "mine"]]
    (folder / "step-00000003" / COMMIT).write_text("{}")
    code, out, err = atoll("checkpoints", "ls", str(folder))
    assert (code, len(out.splitlines())) == (3, 2)
    assert "step-00000003/commit.json is not a readable record" in err


def test_verify_tells_damage_by_tensor_and_ends_with_3(atoll, steps):
    folder = steps("mine", 3, 12)
    assert atoll("checkpoints", "verify", str(folder))[0] == 0
    damage(folder, 12)
    code, out, err = atoll("checkpoints", "verify", str(folder))
    assert code == 3
    assert "step 3: ok" in out
    assert "tensor 'model.w', written by rank 0" in out
    assert "1 checkpoint(s)" in err
    assert atoll("checkpoints", "verify", str(folder), "--step", "3")[0] == 0
    assert atoll("checkpoints", "verify", str(folder), "--step", "4")[0] == 2


def test_diff_tells_what_differs_by_digest_and_by_how_much_with_values(atoll, steps):
    folder = steps("mine", 3, 12)
    one, other = str(folder / "step-00000003"), str(folder)
    code, out, _ = atoll("checkpoints", "diff", one, other)
    assert code == 1
    assert out.splitlines()[0].startswith("model.w: other values: digest ")
    assert out.splitlines()[1:] == ["step: other value: 3, 12", "2 differences"]
    assert (
        "model.w: other values: 4 of 4 elements, by 9 at most"
        in atoll("checkpoints", "diff", one, other, "--values")[1]
    )
    assert atoll("checkpoints", "diff", one, one)[:2] == (0, "no difference\n")


def test_diff_by_digest_reads_no_data(atoll, steps):
    folder = steps("mine", 3, 12)
    damage(folder, 12)
    assert atoll("checkpoints", "diff", str(folder / "step-00000003"), str(folder))[0] == 1
    code, _, err = atoll("checkpoints", "diff", str(folder / "step-00000003"), str(folder), "--values")
    assert (code, "written by rank 0" in err) == (3, True)


def test_import_and_export_say_what_was_made(atoll, tmp_path):
    save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors")
    arguments = ("checkpoints", "import", "w.safetensors", "--from", "hf", "--into", "steps", "--step", "4")
    assert atoll(*arguments)[:2] == (0, "1 tensors, 0.0 MB: step 4 in steps\n")
    code, _, err = atoll(*arguments)
    assert (code, "never written again" in err) == (3, True)
    assert atoll("checkpoints", "export", "steps", "--to", "hf", "-o", "out")[:2] == (0, "step 4 is in out\n")
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].tolist() == [1, 1, 1]
    code, _, err = atoll("checkpoints", "export", "steps", "--to", "hf", "-o", "out")
    assert (code, err.count("\n")) == (3, 1)
    assert "is there already" in err


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_dcp_directories_go_out_and_come_in(atoll, steps):
    folder = steps("mine", 3)
    assert atoll("checkpoints", "export", str(folder), "--to", "dcp", "-o", "dcp")[0] == 0
    assert atoll("checkpoints", "import", "dcp", "--from", "dcp", "--into", "again")[0] == 0
    assert atoll("checkpoints", "diff", str(folder), "again")[:2] == (0, "no difference\n")


def test_diff_of_steps_with_equal_nan_tells_no_difference(tmp_path, atoll):
    nan = float("nan")
    for step, last in ((1, 0.0), (2, 0.0), (3, 0.5)):
        state = {"model": {"w": torch.tensor([nan, last])}, "best": nan, "history": [nan, 1.0]}
        torch.save(state, tmp_path / "state.pt")
        import_step(tmp_path / "state.pt", Kind.TORCH, tmp_path / "steps", Heading(run="mine", step=step, now=1.0))
    one, same, other = (str(tmp_path / "steps" / f"step-{step:08d}") for step in (1, 2, 3))
    assert atoll("checkpoints", "diff", one, same)[:2] == (0, "no difference\n")
    code, out, _ = atoll("checkpoints", "diff", one, other, "--values")
    assert (code, out.splitlines()) == (1, ["model.w: other values: 1 of 2 elements, by 0.5 at most", "1 differences"])


def left(folder):
    return [s.step for s in Store(folder).list()]


def test_gc_only_says_what_would_go_when_asked_to(atoll, steps):
    folder = steps("mine", 1, 2, 3, 4)
    code, out, _ = atoll("checkpoints", "gc", str(folder), "--keep", "2", "--dry-run")
    assert code == 0
    assert [line.split(":")[1].strip() for line in out.splitlines()[:2]] == ["step 1 of run mine", "step 2 of run mine"]
    assert out.splitlines()[2].startswith("2 would go, ")
    assert left(folder) == [1, 2, 3, 4]


def test_gc_keeps_the_last_of_each_run_and_takes_what_never_counted(atoll, steps):
    folder = steps("mine", 1, 2, 3, 4)
    steps("other", 10)
    for broken in (2, 4):
        (folder / f"step-{broken:08d}" / COMMIT).unlink()
    code, out, _ = atoll("checkpoints", "gc", str(folder), "--keep", "1")
    assert code == 0
    assert [line.split(", ")[1] for line in out.splitlines()] == [
        "nothing keeps it",
        "left over by a save that never counted",
    ]
    assert left(folder) == [3, 10]
    # Step 4 is newer than any that counts: it may be under way.
    assert sorted(p.name for p in folder.glob("step-*")) == ["step-00000003", "step-00000004", "step-00000010"]
    assert atoll("checkpoints", "gc", str(folder), "--keep", "1")[1] == "nothing to do\n"


def test_gc_takes_what_a_killed_deletion_left_and_damaged_steps_when_asked_to(atoll, steps):
    folder = steps("mine", 1)
    places = [folder / "claims-0" / "over-1.a", folder / "damaged-step-00000009-b"]
    for place in places:
        place.mkdir(parents=True)
        (place / "file").write_bytes(b"12345")
    out = atoll("checkpoints", "gc", str(folder))[1]
    assert out == f"gone: 0.0 MB, left over by a deletion that was cut off, {places[0]}\n"
    assert [p.exists() for p in places] == [False, True]
    out = atoll("checkpoints", "gc", str(folder), "--damaged")[1]
    assert out == f"gone: 0.0 MB, damaged, and set aside, {places[1]}\n"
    assert not places[1].exists()


def test_gc_lets_nothing_go_behind_a_newest_step_that_is_damaged_or_while_it_is_read(atoll, steps):
    folder = steps("mine", 1, 2, 3)
    with reading(folder / "step-00000001" / COMMIT):
        code, out, err = atoll("checkpoints", "gc", str(folder), "--keep", "1")
    assert (code, left(folder)) == (3, [1, 3])
    assert "step 1 of run mine is being read, and stays" in err
    assert "gone: step 2" in out
    damage(folder, 3)
    code, _, err = atoll("checkpoints", "gc", str(folder), "--keep", "1")
    assert (code, left(folder)) == (3, [1, 3])
    assert "step 3 of run mine does not read back, older steps stay" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ls", "./nowhere"], "no directory"),
        (["diff", "./nowhere", "./nowhere"], "no directory"),
        (["export", "./nowhere", "--to", "hf", "-o", "out"], "no directory"),
        (["import", "nowhere", "--from", "torch", "--into", "steps"], "nothing is at"),
        (["gc", "./nowhere"], "no directory"),
    ],
)
def test_bad_paths_are_one_line_and_exit_code_2(atoll, arguments, words):
    code, _, err = atoll("checkpoints", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert words in err


def test_one_checkpoint_is_no_folder_to_collect_from(atoll, steps):
    code, _, err = atoll("checkpoints", "gc", str(steps("mine", 1) / "step-00000001"))
    assert (code, "give the folder" in err) == (2, True)


def test_bar_counts_bytes_on_a_terminal_and_is_silent_elsewhere(monkeypatch, capsys):
    from atoll.cli_bars import bar

    with bar("verifying") as told:
        told(1 << 20, 2 << 20)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with bar("verifying") as told:
        told(1 << 20, 2 << 20)
    assert "1.0/2.1 MB" in capsys.readouterr().err
