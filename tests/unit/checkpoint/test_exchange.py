"""Steps out of other programs' files, and other programs' files out of steps."""

import json
import os
import pickle  # noqa: TID251 - what must be refused
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import metadata

from atoll.checkpoint import format1
from atoll.checkpoint.exchange import Form, Kind
from atoll.checkpoint.fs_files import Disk
from atoll.checkpoint.fs_store import Store
from atoll.checkpoint.fs_stream import Heading
from atoll.checkpoint.manifest import seal
from atoll.checkpoint.torch_dcp import StorageReader
from atoll.checkpoint.torch_export import export_step
from atoll.checkpoint.torch_import import import_step
from atoll.checkpoint.torch_state import flatten, unflatten
from atoll.errors import CheckpointError, NotFoundError, StateError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is", "ignore:TypedStorage is deprecated")

HEADING = Heading(run="import", step=5, now=1.0)


def same(one, other):
    mine, theirs = flatten(one), flatten(other)
    assert mine.meta == theirs.meta
    assert mine.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(t, theirs.tensors[name]) for name, t in mine.tensors.items())


def llama():
    """The weights of a model of two layers, under the names that Llama's have."""
    shapes = {"model.embed_tokens.weight": (32, 16), "model.norm.weight": (16,), "lm_head.weight": (32, 16)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{p}_proj.weight": (16, 16) for p in "qkvo"}
        shapes |= {f"{at}.mlp.{p}_proj.weight": (24, 16) for p in ("gate", "up")} | {
            f"{at}.mlp.down_proj.weight": (16, 24)
        }
        shapes |= {f"{at}.{p}_layernorm.weight": (16,) for p in ("input", "post_attention")}
    made = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=made).bfloat16() for name, shape in shapes.items()}


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def hf(tmp_path):
    """A Hugging Face directory of two files."""
    folder, weights = tmp_path / "llama", llama()
    folder.mkdir()
    names = sorted(weights)
    files = {n: f"model-{1 + (i >= 9):05d}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(files.values()):
        save_file({n: weights[n] for n in names if files[n] == file}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def loads_as_huggingface_reads_it(folder):
    """All tensors by the rules of `from_pretrained`: the index's files, else the one file; each marked as torch's."""
    index = folder / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"] if index.exists() else None
    found = {}
    for file in sorted(set(files.values())) if files else ["model.safetensors"]:
        with safe_open(folder / file, framework="pt") as opened:
            assert opened.metadata()["format"] == "pt"
        found |= load_file(folder / file)
    assert files is None or files.keys() == found.keys()
    assert json.loads((folder / "config.json").read_text()) == CONFIG
    return found


def test_hugging_face_directory_becomes_a_step_that_is_one_too(tmp_path, hf):
    told = []
    import_step(hf, Kind.HF, tmp_path / "steps", HEADING, told=lambda count, total: told.append((count, total)))
    store = Store(tmp_path / "steps")
    assert store.verify(5).ok
    same(unflatten(store.open(5)), {"model": llama()})
    same(loads_as_huggingface_reads_it(store.step_directory(5)), llama())
    assert sum(count for count, _ in told) >= told[0][1] == sum(t.nbytes for t in llama().values())


@pytest.mark.parametrize("most", [1 << 30, 1500])
def test_step_exports_to_hugging_face_in_files_of_any_size(tmp_path, hf, most):
    import_step(hf, Kind.HF, tmp_path / "steps", HEADING)
    assert export_step(tmp_path / "steps", Form.HF, tmp_path / "out", shard_bytes=most) == 5
    same(loads_as_huggingface_reads_it(tmp_path / "out"), llama())
    assert max(p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors")) < 1 << 16
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == (1 if most > 1500 else 11)


def test_directories_load_with_transformers(tmp_path, hf):
    transformers = pytest.importorskip("transformers")
    import_step(hf, Kind.HF, tmp_path / "steps", HEADING)
    export_step(tmp_path / "steps", Form.HF, tmp_path / "out")
    for folder in (Store(tmp_path / "steps").step_directory(5), tmp_path / "out"):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16)
        same({k: v.contiguous() for k, v in model.state_dict().items()}, llama())


def test_packs_and_weights_that_writers_made_open_with_safetensors(tmp_path, crew, state):
    made = crew(2)
    made.save_and_wait(flatten(state()), 1, weights="model")
    made.finish()
    files = {p.name: load_file(p) for p in Store(made.directory).step_directory(1).glob("*.safetensors")}
    model = next(tensors for name, tensors in files.items() if name.startswith("model-"))
    assert torch.equal(model["a/b"], state()["model"]["a/b"])
    packed = {name: t for tensors in files.values() if tensors is not model for name, t in tensors.items()}
    assert torch.equal(packed["optimizer.state.0.m"], state()["optimizer"]["state"][0]["m"])


@pytest.mark.parametrize("zipped", [True, False])
def test_file_of_torch_save_becomes_a_step(tmp_path, zipped):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3}
    torch.save(state, tmp_path / "state.pt", _use_new_zipfile_serialization=zipped)
    import_step(tmp_path / "state.pt", Kind.TORCH, tmp_path / "steps", HEADING)
    same(unflatten(Store(tmp_path / "steps").open(5)), state)


def test_weights_that_stand_alone_come_under_a_model_or_what_is_said(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    import_step(tmp_path / "w.pt", Kind.TORCH, tmp_path / "steps", HEADING)
    import_step(tmp_path / "w.pt", Kind.TORCH, tmp_path / "other", HEADING, under="net")
    assert Store(tmp_path / "steps").open(5).tensors.keys() == {"model.w"}
    assert Store(tmp_path / "other").open(5).tensors.keys() == {"net.w"}


class Evil:
    """Runs a program when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("was-run",)


@pytest.mark.parametrize("kind", [Kind.TORCH, Kind.DCP])
def test_pickle_that_runs_something_is_refused_and_not_run(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(Evil()))
    torch.save({"w": Evil()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="mkdir"):
        import_step(tmp_path / ("w.pt" if kind is Kind.TORCH else "dcp"), kind, tmp_path / "steps", HEADING)
    assert not (tmp_path / "was-run").exists()
    assert Store(tmp_path / "steps").list() == []


def test_value_of_a_dcp_directory_that_runs_something_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dcp.save({"w": torch.ones(1), "evil": Evil()}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    with pytest.raises(StateError, match="'evil' is no plain value"):
        import_step(tmp_path / "dcp", Kind.DCP, tmp_path / "steps", HEADING)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("holder", "name", "readable"),
    [
        ("_MEM_FORMAT_ENCODING", "TORCH_CHANNELS_LAST", True),
        ("_MEM_FORMAT_ENCODING", "mro", False),
        ("Metadata", "__init__", False),
    ],
)
def test_description_that_asks_a_class_for_a_name_gets_members_of_enumerations_only(tmp_path, holder, name, readable):
    dcp.save({"w": torch.ones(1)}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    # As Python before 3.11.4 writes a member: getattr(class, name).
    asks = f"cbuiltins\ngetattr\n(ctorch.distributed.checkpoint.metadata\n{holder}\nV{name}\ntR.".encode()
    (tmp_path / "dcp" / ".metadata").write_bytes(asks)
    problem = "describes no checkpoint" if readable else "which DCP does not write there"
    with pytest.raises(CheckpointError, match=problem):
        import_step(tmp_path / "dcp", Kind.DCP, tmp_path / "steps", HEADING)


def nested():
    return {
        "model": {
            "w": torch.arange(12.0).view(3, 4),
            "b": torch.full((3,), 2, dtype=torch.bfloat16),
            "e": torch.empty(0, 3),
        },
        "optimizer": {"state": {"0": {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
        "note": {"$odd": "text", "none": None, "numbers": [1, 2, [3]]},
    }


def test_dcp_directory_becomes_a_step_and_a_step_becomes_one(tmp_path):
    dcp.save(nested(), checkpoint_id=tmp_path / "dcp", no_dist=True)
    import_step(tmp_path / "dcp", Kind.DCP, tmp_path / "steps", HEADING)
    same(unflatten(Store(tmp_path / "steps").open(5)), nested())
    export_step(tmp_path / "steps" / "step-00000005", Form.DCP, tmp_path / "again")
    state = flatten(nested())
    into = unflatten(type(state)(tensors={n: torch.zeros_like(t) for n, t in state.tensors.items()}, meta=state.meta))
    into["note"] = {"$odd": "", "none": 1, "numbers": []}
    dcp.load(into, checkpoint_id=tmp_path / "again", no_dist=True)
    same(into, nested())


def test_damaged_and_missing_sources_are_named_and_leave_nothing(tmp_path, hf):
    (hf / "model-00002-of-00002.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        import_step(hf, Kind.HF, tmp_path / "steps", HEADING)
    with pytest.raises(NotFoundError, match="nothing is at"):
        import_step(tmp_path / "nowhere", Kind.TORCH, tmp_path / "steps", HEADING)
    with pytest.raises(CheckpointError, match="give a directory that DCP wrote"):
        import_step(hf, Kind.DCP, tmp_path / "steps", HEADING)
    index = {"weight_map": {"w": "../outside.safetensors"}}
    (hf / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not in its folder"):
        import_step(hf, Kind.HF, tmp_path / "steps", HEADING)
    assert list((tmp_path).glob("steps/*/*")) == []


def test_export_into_what_is_there_or_of_what_is_not_is_refused_and_leaves_nothing(tmp_path, hf):
    import_step(hf, Kind.HF, tmp_path / "steps", HEADING)
    with pytest.raises(CheckpointError, match="is there already"):
        export_step(tmp_path / "steps", Form.HF, hf)
    with pytest.raises(NotFoundError, match="there are model: use --under"):
        export_step(tmp_path / "steps", Form.HF, tmp_path / "out", under="net")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llama", "steps"]


def test_import_that_breaks_off_can_be_tried_again(tmp_path, hf):
    store = Store(tmp_path / "steps")
    import_step(hf, Kind.HF, store.directory, HEADING)
    (store.step_directory(5) / "commit.json").unlink()
    import_step(hf, Kind.HF, store.directory, HEADING)
    assert store.verify(5).ok
    with pytest.raises(CheckpointError, match="committed already"):
        import_step(hf, Kind.HF, store.directory, HEADING)


def test_tensors_of_many_blocks_come_and_go_whole(tmp_path):
    state = {"model": {"w": torch.arange(5 << 18).view(5, -1), "b": torch.ones(3)}, "m": torch.arange(1 << 21).float()}
    torch.save(state, tmp_path / "state.pt")
    import_step(tmp_path / "state.pt", Kind.TORCH, tmp_path / "steps", HEADING)
    store = Store(tmp_path / "steps")
    assert store.verify(5).ok
    assert sum(len(segment.blocks()) for segment in store.record(5).segments) == 3 + 3
    same(unflatten(store.open(5)), state)
    export_step(tmp_path / "steps", Form.HF, tmp_path / "out")
    same(load_file(tmp_path / "out" / "model.safetensors"), state["model"])


def test_format_1_step_exports_as_any(tmp_path):
    directory = tmp_path / "old" / "step-00000003"
    directory.mkdir(parents=True)
    save_file({"model.w": torch.arange(4.0)}, directory / "pack.safetensors")
    data = (directory / "pack.safetensors").read_bytes()
    pack = format1.PackRecord(
        file="pack.safetensors",
        run="run",
        step=3,
        epoch=1,
        rank=0,
        size=1,
        bytes=len(data),
        block_bytes=1 << 20,
        blocks=(xxhash.xxh3_64_hexdigest(data),),
        tensors=("model.w",),
    )
    tree = {"model": {"w": {"$tensor": "model.w"}}}
    record = format1.CommitRecord(format=1, run="run", step=3, epoch=1, at=1.0, packs=(pack,), tree=tree)
    (directory / "commit.json").write_bytes(seal(record))
    export_step(directory, Form.HF, tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["w"], torch.arange(4.0))
    into = {"model": {"w": torch.zeros(4)}}
    dcp.load(into, storage_reader=StorageReader(directory), no_dist=True)
    assert into["model"]["w"].tolist() == [0, 1, 2, 3]


def test_description_that_sets_a_field_of_a_class_leaves_torch_as_it_is(tmp_path):
    def named(name):
        return f"c{metadata.__name__}\n{name}\n".encode()

    before = metadata.MetadataIndex.__init__
    (tmp_path / "dcp").mkdir()
    hostile = b"\x80\x02" + named("MetadataIndex") + b"N}X\x08\x00\x00\x00__init__" + named("StorageMeta") + b"s\x86b."
    (tmp_path / "dcp" / ".metadata").write_bytes(hostile)
    try:
        with pytest.raises(CheckpointError, match="describes no checkpoint"):
            import_step(tmp_path / "dcp", Kind.DCP, tmp_path / "steps", HEADING)
        assert metadata.MetadataIndex.__init__ is before
    finally:
        metadata.MetadataIndex.__init__ = before


def described(**changes):
    properties = metadata.TensorProperties(dtype=changes.get("dtype", torch.float32))
    size = changes.get("size", torch.Size([2]))
    chunk = metadata.ChunkStorageMetadata(
        offsets=changes.get("offsets", torch.Size([0])), sizes=changes.get("sizes", torch.Size([2]))
    )
    one = metadata.TensorStorageMetadata(properties=properties, size=size, chunks=[chunk])
    return metadata.Metadata(
        state_dict_metadata=changes.get("entries", {"w": one}),
        planner_data=changes.get("paths"),
        storage_data=changes.get("places", {}),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "abc"},
        {"size": None},
        {"offsets": torch.Size([0, 0])},
        {"offsets": torch.Size([-2])},
        {"offsets": torch.Size([1])},
        {"entries": [1]},
        {"paths": {"w": 5}},
        {"places": {1: 2}},
        {"size": torch.Size([2**50]), "sizes": torch.Size([2**50])},
    ],
)
def test_odd_description_is_refused_in_words(tmp_path, changes):
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(described(**changes)))
    with pytest.raises(CheckpointError, match=r"describes no checkpoint|cannot be"):
        import_step(tmp_path / "dcp", Kind.DCP, tmp_path / "steps", HEADING)
    assert Store(tmp_path / "steps").list() == []


def test_folder_without_an_index_whose_files_hold_tensors_of_one_name_is_refused(tmp_path):
    (tmp_path / "two").mkdir()
    for file, scale in (("a", 1.0), ("b", 2.0)):
        save_file({"w": torch.full((2,), scale), file: torch.ones(1)}, tmp_path / "two" / f"{file}.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors and .*b\.safetensors both hold tensor 'w'"):
        import_step(tmp_path / "two", Kind.HF, tmp_path / "steps", HEADING)
    assert Store(tmp_path / "steps").committed_steps() == []


def test_every_file_of_an_exported_directory_is_durable_before_it_has_its_name(tmp_path, hf, monkeypatch):
    synced, plain = {}, Disk.sync

    def sync(self, handle):
        plain(self, handle)
        path = Path(f"/proc/self/fd/{handle}").readlink()
        synced[path.name] = path.parent.name if path.is_file() else ""

    import_step(hf, Kind.HF, tmp_path / "steps", HEADING)
    monkeypatch.setattr(Disk, "sync", sync)
    export_step(tmp_path / "steps", Form.HF, tmp_path / "out", shard_bytes=1500)
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors.index.json"} <= files
    assert {name for name, folder in synced.items() if folder.startswith(".out.")} == files
    assert "out" not in synced.values()
