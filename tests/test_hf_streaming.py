"""Weights go between files and the devices of a mesh in chunks, and every bit of them arrives."""

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from random_model import random_llama
from safetensors.numpy import save_file
from test_distributed import said
from test_hf import assert_same_bits, tensors
from test_llama import logits_BTV, tiny_hugging_face

from rationalyst_jax.lm.devices.sharding import make_mesh, shard_weights
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.model.lora import Adapters, LoraConfig
from rationalyst_jax.lm.weights import streaming
from rationalyst_jax.lm.weights.hf import load_llama, save_llama, stored_dtype
from rationalyst_jax.lm.weights.open import model_name, open_checkpoint
from rationalyst_jax.lm.weights.streaming import Layout
from rationalyst_jax.lm.weights.tensor_files import StoredTensor, stored_tensors, writing
from rationalyst_jax.train.export import export
from rationalyst_jax.world.checkpoint import SHIPPED, checkpoint_path

torch = pytest.importorskip("torch", reason="torch is the oracle here")

SIZES = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 6,
}
MESHES = [(2, 2, 2), (1, 8, 1), (1, 1, 2)]
SMALL = LlamaConfig(48, 16, 24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6)
SMALL_TIED = LlamaConfig(48, 16, 24, 3, 4, 2, 6, tie_embeddings=True)


def mesh_of(shape: tuple[int, int, int]) -> Mesh:
    replica, fsdp, tensor = shape
    return make_mesh(replica, fsdp, tensor, jax.devices()[: replica * fsdp * tensor])


def in_chunks(monkeypatch, weights: int = 1000) -> None:
    """Makes chunks so small that a tiny model has many, the last of a tensor not as long as the others."""
    monkeypatch.setattr(streaming, "CHUNK", weights)


def divided(model: Llama, mesh) -> Llama:
    graph, weights = nnx.split(model)
    return nnx.merge(graph, jax.device_put(weights, shard_weights(weights, mesh)))


def assert_same_weights(model: Llama, expected: Llama) -> None:
    found, wanted = (dict(nnx.to_flat_state(nnx.state(m))) for m in (model, expected))
    assert found.keys() == wanted.keys()
    for name, parameter in wanted.items():
        assert found[name].dtype == parameter.dtype, name
        assert np.asarray(found[name][...]).tobytes() == np.asarray(parameter[...]).tobytes(), name


# ---- Loading ----


@pytest.fixture(scope="module", params=["bfloat16-files", "bfloat16-tied", "float32", "float32-tied-files"])
def checkpoint(request, tmp_path_factory):
    """A checkpoint of Hugging Face's, and the same weights read by it."""
    changes = {"tie_word_embeddings": "tied" in request.param}
    theirs = tiny_hugging_face(**SIZES, **changes).to(getattr(torch, request.param.split("-")[0]))
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder, max_shard_size="40KB" if "files" in request.param else "1GB")
    assert (len(list(folder.glob("*.safetensors"))) > 1) == ("files" in request.param)
    return folder


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [((2, 2, 2), False), ((1, 8, 1), False), ((1, 1, 2), False), ((2, 2, 2), True), ((1, 8, 1), True)],
)
def test_a_model_goes_straight_into_the_shards_of_a_mesh(checkpoint, shape, chunks, monkeypatch):
    expected = load_llama(checkpoint)
    mesh = mesh_of(shape)
    if chunks:
        in_chunks(monkeypatch)
    model = load_llama(checkpoint, mesh=mesh)
    assert_same_weights(model, expected)
    state = nnx.state(model)
    for weight, sharding in zip(
        jax.tree.leaves(state), jax.tree.leaves(shard_weights(state, mesh)), strict=True
    ):
        assert weight.sharding == sharding and weight.committed

    save_llama(model, checkpoint / "again", max_shard_bytes=40_000)
    assert_same_bits(tensors(checkpoint / "again"), tensors(checkpoint))


def test_chunks_on_the_default_device_make_the_same_model(checkpoint, monkeypatch):
    expected = load_llama(checkpoint)
    in_chunks(monkeypatch)
    model = load_llama(checkpoint)
    assert_same_weights(model, expected)
    assert not any(weight.committed for weight in jax.tree.leaves(nnx.state(model)))
    save_llama(model, checkpoint / "again")
    assert_same_bits(tensors(checkpoint / "again"), tensors(checkpoint))


def test_the_dtype_is_changed_on_the_way(checkpoint, monkeypatch):
    dtype = "bfloat16" if stored_dtype(checkpoint) == "float32" else "float32"
    expected = load_llama(checkpoint, lambda stored: dtype)
    assert expected.embed_VD.dtype == dtype
    in_chunks(monkeypatch)
    assert_same_weights(load_llama(checkpoint, lambda stored: dtype, mesh_of((1, 4, 2))), expected)


@pytest.fixture
def numbers_read(monkeypatch) -> Counter[str]:
    """How many numbers are read of each stored tensor."""
    found: Counter[str] = Counter()
    read = StoredTensor.read

    def counted(self, regions):
        values = read(self, regions)
        found[self.key] += sum(block.size for block in values)
        return values

    monkeypatch.setattr(StoredTensor, "read", counted)
    return found


@pytest.mark.parametrize("shape", [*MESHES, (8, 1, 1)])
def test_every_number_is_read_once_whatever_the_number_of_copies(checkpoint, shape, numbers_read):
    load_llama(checkpoint, mesh=mesh_of(shape))
    stored = stored_tensors(checkpoint)
    assert numbers_read == {key: np.prod(tensor.shape) for key, tensor in stored.items()}


def test_in_chunks_little_is_read_twice(checkpoint, numbers_read, monkeypatch):
    in_chunks(monkeypatch)
    load_llama(checkpoint, mesh=mesh_of((1, 4, 2)))
    for key, tensor in stored_tensors(checkpoint).items():
        assert np.prod(tensor.shape) <= numbers_read[key] < 1.3 * np.prod(tensor.shape), key


def test_programs_are_few_and_a_small_model_needs_none(tmp_path, monkeypatch):
    save_llama(random_llama(SMALL, 0), tmp_path)
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    mesh = mesh_of((1, 4, 2))
    parameters = len(jax.tree.leaves(nnx.state(load_llama(tmp_path))))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        load_llama(tmp_path, mesh=mesh)
        assert not compiled
        in_chunks(monkeypatch, 50)
        model = load_llama(tmp_path, mesh=mesh)
        assert 0 < len(compiled) <= 2 * parameters  # to make an array and to write a chunk
        before = len(compiled)
        save_llama(model, tmp_path / "again")
        assert len(compiled) - before <= parameters
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_mesh_that_does_not_divide_the_model_is_named(checkpoint):
    with pytest.raises(ValueError, match=r"mesh: does not divide the model: .*kv_heads among 4 of tensor"):
        load_llama(checkpoint, mesh=mesh_of((1, 2, 4)))


def test_a_file_cut_while_it_is_read_is_named(tmp_path, monkeypatch):
    save_llama(random_llama(SMALL, 0), tmp_path)
    file = tmp_path / "model.safetensors"
    read = StoredTensor.read

    def cut_before_reading(self, regions):
        os.truncate(file, file.stat().st_size - 100)
        return read(self, regions)

    monkeypatch.setattr(StoredTensor, "read", cut_before_reading)
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged") as caught:
        load_llama(tmp_path, mesh=mesh_of((1, 2, 2)))
    assert "\n" not in str(caught.value)


def test_a_repeated_head_is_compared_row_by_row(tmp_path, monkeypatch):
    save_llama(random_llama(SMALL_TIED, 0), tmp_path)
    head = tensors(tmp_path)["model.embed_tokens.weight"]
    file = tmp_path / "model.safetensors"
    monkeypatch.setattr("rationalyst_jax.lm.weights.tensor_files._BLOCK", 100)
    for change, fits in ((0, True), (1, False)):
        head[-1, -1] += change
        stored = {**tensors(tmp_path), "lm_head.weight": head}
        with writing(file, {key: (value.shape, value.dtype) for key, value in stored.items()}) as write:
            for key, value in stored.items():
                write(key, 0, value)
        if fits:
            load_llama(tmp_path)
        else:
            with pytest.raises(ValueError, match=r"lm_head\.weight differs"):
                load_llama(tmp_path)


# ---- Saving ----


@pytest.mark.parametrize(("shape", "tied"), [*zip(MESHES, (False, True, True), strict=True)])
def test_hugging_face_computes_what_a_divided_model_does_from_its_export(shape, tied, tmp_path, monkeypatch):
    tiny_hugging_face(**SIZES, tie_word_embeddings=tied).save_pretrained(tmp_path / "theirs")
    in_chunks(monkeypatch)
    model = load_llama(tmp_path / "theirs", mesh=mesh_of(shape))
    save_llama(model, tmp_path / "ours", max_shard_bytes=50_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    tokens_BT = np.random.default_rng(0).integers(0, 160, (2, 64))
    with torch.no_grad():
        expected_BTV = again(torch.from_numpy(tokens_BT)).logits.numpy()
    np.testing.assert_allclose(logits_BTV(model, jnp.asarray(tokens_BT)), expected_BTV, rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunks", [False, True])
def test_weights_are_rounded_as_torch_rounds_them(chunks, tmp_path, monkeypatch):
    theirs = tiny_hugging_face(**SIZES)
    theirs.save_pretrained(tmp_path / "float32")
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "bfloat16")
    if chunks:
        in_chunks(monkeypatch)
    model = load_llama(tmp_path / "float32", mesh=mesh_of((1, 4, 2)))
    save_llama(model, tmp_path / "ours", dtype=jnp.dtype("bfloat16"))
    assert_same_bits(tensors(tmp_path / "ours"), tensors(tmp_path / "bfloat16"))
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_llama(tmp_path / "ours").embed_VD.dtype == "bfloat16"


@pytest.mark.parametrize("axes", [(), (None, "replica"), (None, "fsdp", ("tensor", "replica"))])
def test_weights_divided_otherwise_are_saved_as_well(axes, tmp_path, monkeypatch):
    model = random_llama(SMALL, 0)
    save_llama(model, tmp_path / "before")
    graph, weights = nnx.split(model)
    sharding = NamedSharding(mesh_of((2, 2, 2)), PartitionSpec(*axes))
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    divisible = {name for name in ("q_DNH", "gate_DF", "down_FD", "up_DF")}
    weights = jax.tree.map_with_path(
        lambda path, w: jax.device_put(w, sharding if path[-2].key in divisible else whole), weights
    )
    in_chunks(monkeypatch, 100)
    save_llama(nnx.merge(graph, weights), tmp_path / "after")
    assert_same_bits(tensors(tmp_path / "after"), tensors(tmp_path / "before"))


def test_what_the_format_has_no_place_for_is_named(tmp_path):
    model = random_llama(SMALL, 0)
    with pytest.raises(ValueError, match=r"weights in float8_e4m3fn, wanted F32, BF16, F16"):
        save_llama(model, tmp_path, dtype=jnp.float8_e4m3fn)
    model.adapters = Adapters(model.layers, LoraConfig(rank=1, projections=("q",)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"no place for adapters\.q_in, adapters\.q_out"):
        save_llama(model, tmp_path)
    assert not list(tmp_path.iterdir())


def full_disk(folder, monkeypatch, small_disk) -> None:
    """No space is left when weights are written."""

    def full(array, layout, layer, dtype):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rationalyst_jax.lm.weights.hf.stored_rows", full)


def full_device(folder, monkeypatch, small_disk) -> None:
    """The second file of weights goes to a device that is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full, a device that is always full, is a thing of Linux")
    (folder / "model-00002-of-00004.safetensors.unfinished").symlink_to("/dev/full")


def full_mount(folder, monkeypatch, small_disk) -> None:
    """A file system of 64 KiB takes the place of the folder, whose files move into it."""
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    small_disk(folder, "64k")
    for name, content in before.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("fill", [full_disk, full_device, full_mount])
def test_a_full_disk_is_one_line_and_the_earlier_checkpoint_stays(fill, tmp_path, monkeypatch, small_disk):
    save_llama(random_llama(SMALL_TIED, 0), tmp_path)
    before = tensors(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    fill(tmp_path, monkeypatch, small_disk)
    with pytest.raises(OSError, match=r"No space left on device: .*model-0000.*safetensors") as caught:
        save_llama(random_llama(SMALL, 1), tmp_path, max_shard_bytes=10_000)
    assert caught.value.errno == errno.ENOSPC and "\n" not in str(caught.value)
    assert {file.name for file in tmp_path.iterdir()} == names
    assert_same_bits(tensors(tmp_path), before)
    load_llama(tmp_path)


# ---- Several processes ----

PROGRAM = """
from collections import Counter
from rationalyst_jax.lm.weights import streaming
from rationalyst_jax.lm.weights.hf import load_llama, save_llama
from rationalyst_jax.lm.devices.sharding import make_mesh
from rationalyst_jax.lm.weights.streaming import Layout
from rationalyst_jax.lm.weights.tensor_files import StoredTensor

read, numbers = StoredTensor.read, 0
def counted(self, regions):
    global numbers
    values = read(self, regions)
    numbers += sum(v.size for v in values)
    return values
StoredTensor.read = counted

folder = Path(sys.argv[3]).parent
mesh = make_mesh(1, 4, 2, jax.devices())
model = load_llama(folder, mesh=mesh)
whole = numbers
save_llama(model, folder / "whole", max_shard_bytes=30_000)
streaming.CHUNK = 1000
save_llama(load_llama(folder, mesh=mesh), folder / "chunks", max_shard_bytes=30_000)
say(whole, sorted(file.name for file in (folder / "chunks").glob("*.safetensors")))
"""


def test_two_processes_read_their_halves_and_write_one_checkpoint(tmp_path):
    save_llama(random_llama(SMALL, 0, jnp.bfloat16), tmp_path)
    expected = tensors(tmp_path)
    first, second = said(PROGRAM, tmp_path)
    assert first == second  # both see the files: the second waited for the first to write them
    assert int(first.split()[0]) * 2 == sum(value.size for value in expected.values())
    for folder in ("whole", "chunks"):
        assert_same_bits(tensors(tmp_path / folder), expected)
        assert not list((tmp_path / folder).glob("*.unfinished"))


# ---- Checkpoints and export ----


def test_a_checkpoint_knows_its_config_and_dtype_and_loads_onto_a_mesh(tmp_path):
    base = open_checkpoint(SHIPPED)
    assert base.config.vocab_size == len(base.tokenizer) and base.stored_dtype() == "float32"
    mesh = make_mesh(1, 2, 1, jax.devices()[:2])
    model = base.load(jnp.bfloat16, mesh)
    export(model, base.path, tmp_path, name="world")
    exported = open_checkpoint(tmp_path)
    assert base.base is None and exported.base == "world"
    assert exported.stored_dtype() == "bfloat16"
    assert exported.config == base.config
    assert_same_weights(exported.load_for_inference(mesh), model)
    assert_same_weights(base.load(mesh=mesh), load_llama(checkpoint_path("world")))
    export(model, base.path, tmp_path, dtype="float32")
    assert exported.stored_dtype() == "float32"


def test_a_record_of_the_base_that_is_malformed_is_named(tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((SHIPPED / name).read_bytes())
    (tmp_path / "base.json").write_text('{"base": 3}')
    with pytest.raises(ValueError, match=r"base\.json: base must be text, found 3$"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("models/Meta-Llama-3-8B", "Meta-Llama-3-8B"),
        ("hub/models--meta-llama--Meta-Llama-3-8B/snapshots/0a1b", "meta-llama/Meta-Llama-3-8B"),
        ("hub/models--gpt2/snapshots/0a1b", "gpt2"),
        ("my-models--v2--x/runs/first/hf", "first/hf"),
        ("runs/first/hf", "first/hf"),
        ("world", "world"),
    ],
)
def test_a_model_is_called_as_its_folder_or_on_the_hub(place, name):
    assert model_name(place) == name


def test_the_stored_dtype_of_several_holds_them_all(tmp_path):
    save_llama(random_llama(SMALL, 0, jnp.bfloat16), tmp_path)
    file = tmp_path / "model.safetensors"

    def rewrite(dtype):
        stored = tensors(tmp_path)
        stored["model.norm.weight"] = np.zeros(16, dtype)
        save_file(stored, file)

    rewrite(np.float32)
    assert stored_dtype(tmp_path) == "float32"
    rewrite(np.int8)
    with pytest.raises(ValueError, match=r"weights in I8, wanted F32, BF16, F16"):
        stored_dtype(tmp_path)


# ---- Memory ----


@pytest.mark.aot
@pytest.mark.parametrize(
    ("layout", "shape", "axes"),
    [
        (Layout(False, 0), (128256, 4096), ("tensor", "fsdp")),
        (Layout(True, 1), (32, 4096, 32, 128), (None, "fsdp", "tensor", None)),
        (Layout(True, 2), (32, 32, 128, 4096), (None, "tensor", None, "fsdp")),
    ],
)
def test_a_tpu_writes_a_chunk_in_place_and_reads_it_alone(tpu_topology, layout, shape, axes):
    """Compiled for chips that are not here, not run."""
    sharding = NamedSharding(make_mesh(1, 2, 2, tpu_topology("v5e:2x2")), PartitionSpec(*axes))
    bfloat16 = jnp.dtype("bfloat16")
    number = jax.ShapeDtypeStruct((), jnp.int32)
    array = jax.ShapeDtypeStruct(shape, bfloat16, sharding=sharding)
    shard_bytes = 2 * int(np.prod(sharding.shard_shape(shape)))
    rows = 16
    chunk_shape = list(shape)
    chunk_shape[layout.row_axis] = rows
    chunk_sharding = NamedSharding(sharding.mesh, layout.stored_spec(sharding, len(shape)))
    chunk = jax.ShapeDtypeStruct(layout.stored_shape(chunk_shape), bfloat16, sharding=chunk_sharding)
    write = streaming._writer(layout, sharding, len(shape), bfloat16)
    memory = write.lower(array, chunk, number, number).compile().memory_analysis()
    assert memory.alias_size_in_bytes == shard_bytes
    assert memory.temp_size_in_bytes < 2**20
    for shared in (False, True):
        read = streaming._reader(layout, sharding, len(shape), rows // 2, bfloat16, shared)
        memory = read.lower(array, number, number).compile().memory_analysis()
        assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 2**25


@pytest.mark.slow
def test_the_host_holds_less_than_a_gibibyte_beside_four_gigabytes_of_weights():
    script = Path(__file__).parents[1] / "benchmarks" / "loading.py"
    run = subprocess.run([sys.executable, script, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    memory = {key: value for key, value in found.items() if key.endswith(("_resident", "_anonymous"))}
    assert len(memory) == 4
    assert not {key: gibibytes for key, gibibytes in memory.items() if gibibytes >= 1}
