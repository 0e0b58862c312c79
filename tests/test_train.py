"""Fine-tuning on token trees: the same mathematics as separate sequences, and exact after an interruption."""

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from random_model import random_llama
from tensorboardX.record_writer import masked_crc32c

from rationalyst_jax.lm.devices.sharding import make_mesh
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.flops import training_flops
from rationalyst_jax.lm.model.llama import Llama, tree_attend
from rationalyst_jax.lm.weights.hf import copy_tokenizer, load_llama, save_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.train.batches import Batches, TrainBatch, ordered_steps, shuffled_steps
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.examples import Example
from rationalyst_jax.train.export import export
from rationalyst_jax.train.loop import FitResult, fit
from rationalyst_jax.train.step import loss_and_gradient, take_apart, train_step
from rationalyst_jax.train.store import TreeStore, open_store
from rationalyst_jax.world.checkpoint import SHIPPED

TINY = LlamaConfig(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8
)
FAST = TrainConfig(
    steps=6, batch_examples=8, row_length=64, microbatch_rows=2, peak_learning_rate=1e-2, save_every=2
)


def tiny_model(dtype=jnp.float32) -> Llama:
    return random_llama(TINY, dtype=dtype, deviation=0.1)


def random_examples(groups: int, seed: int = 0, whole_weights: bool = False) -> list[Example]:
    """Groups of one to four examples; those of a group share prefixes of different lengths."""
    rng = np.random.default_rng(seed)
    examples = []
    for group in range(groups):
        text = [1, *rng.integers(2, 64, 24).tolist()]
        for _ in range(rng.integers(1, 5)):
            context = text[: rng.integers(1, 25)]
            target = rng.integers(2, 10, rng.integers(1, 9)).tolist()
            weight = 1.0 if whole_weights else float(rng.choice([0.2, 1.0, 2.0]))
            weights = (0.0,) * len(context) + (weight,) * len(target)
            examples.append(Example((*context, *target), weights, f"document {group}"))
    return examples


def one_device() -> Mesh:
    return make_mesh(1, 1, 1, jax.devices()[:1])


def store_of(examples: list[Example], config: TrainConfig, folder: Path) -> TreeStore:
    key = {"examples": [[*e.tokens, *e.weights, e.group] for e in examples]}
    return open_store(folder, key, lambda: examples, config.row_length, config.batch_examples)


def fit_examples(
    model: Llama, examples: list[Example], config: TrainConfig, run_dir: Path, **options
) -> FitResult:
    """On one device, where no mesh is given."""
    run_dir.mkdir(parents=True, exist_ok=True)
    store = store_of(examples, config, run_dir / "data")
    return fit(model, store, config, run_dir, **{"mesh": one_device(), **options})


def one_batch(examples: list[Example], microbatch_rows: int) -> TrainBatch:
    config = TrainConfig(batch_examples=len(examples), row_length=64, microbatch_rows=microbatch_rows)
    with TemporaryDirectory() as folder:
        store = store_of(examples, config, Path(folder))
        members = ordered_steps(store.examples, config.batch_examples)
        batches = Batches(store, members, config, one_device())
        return batches.place(batches[0])


def padded(examples: list[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and loss weights of sequences in rows of their own, zeros behind them: `[B, T]` each."""
    T = max(len(example.tokens) for example in examples)
    token_BT = np.zeros((len(examples), T), np.int32)
    weight_BT = np.zeros((len(examples), T), np.float32)
    for b, example in enumerate(examples):
        token_BT[b, : len(example.tokens)] = example.tokens
        weight_BT[b, 1 : len(example.tokens)] = example.weights[1:]
    return token_BT, weight_BT


def separate_loss(graph, weights, examples: list[Example]) -> jax.Array:
    """The weighted mean over separate sequences, from full logits."""
    token_BT, weight_BT = padded(examples)
    T = token_BT.shape[1]
    place_BT = np.broadcast_to(np.arange(T), token_BT.shape)
    model = nnx.merge(graph, weights)
    causal = tree_attend(jnp.asarray(T - place_BT))  # a plain causal row
    hidden_BTD, _ = model(jnp.asarray(token_BT), jnp.asarray(place_BT), causal)
    logprob_BTV = jax.nn.log_softmax(hidden_BTD @ model.output_VD().T)
    logprob_BT = jnp.take_along_axis(logprob_BTV[:, :-1], token_BT[:, 1:, None], axis=-1)[..., 0]
    return -jnp.sum(weight_BT[:, 1:] * logprob_BT) / weight_BT.sum()


def tree_gradient(weights, batch, dtype: Literal["float32", "bfloat16"] = "float32"):
    graph, _, frozen = take_apart(tiny_model())
    config = TrainConfig(dtype=dtype)
    mesh = one_device()
    gradient = jax.jit(lambda w, batch: loss_and_gradient(graph, w, frozen, batch, config, mesh))
    return gradient(weights, batch)


def relative_difference(one, other) -> float:
    """Norm of the difference over the norm, over a whole pytree."""
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (one, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def metrics_rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def assert_same_weights(one: Llama, other: Llama) -> None:
    jax.tree.map(np.testing.assert_array_equal, nnx.state(one), nnx.state(other))


# ---- Loss and gradient ----


def test_packed_gradient_equals_that_of_separate_sequences():
    examples = random_examples(8)
    graph, weights = nnx.split(tiny_model())
    separately = jax.jit(jax.value_and_grad(lambda weights: separate_loss(graph, weights, examples)))
    loss, gradient = tree_gradient(weights, one_batch(examples, microbatch_rows=16))
    expected_loss, expected = separately(weights)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    assert relative_difference(gradient, expected) <= 1e-5


def test_accumulation_does_not_change_the_gradient():
    examples = random_examples(8)
    weights = nnx.state(tiny_model())
    whole, parts = (one_batch(examples, microbatch_rows) for microbatch_rows in (16, 1))
    assert int(whole.microbatches) == 1 and int(parts.microbatches) >= 4
    assert relative_difference(tree_gradient(weights, parts), tree_gradient(weights, whole)) <= 1e-5


def test_bfloat16_computes_nearly_the_same_gradient():
    weights = nnx.state(tiny_model())
    batch = one_batch(random_examples(8), microbatch_rows=16)
    exact, coarse = (tree_gradient(weights, batch, dtype) for dtype in ("float32", "bfloat16"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(coarse))
    assert 0 < relative_difference(coarse, exact) <= 2e-2


@pytest.mark.filterwarnings("default")  # torch's own deprecations are not ours
def test_training_follows_torch_adamw_on_separate_sequences(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is the oracle here")
    from transformers import LlamaForCausalLM, get_cosine_schedule_with_warmup

    config = TrainConfig(
        steps=50, batch_examples=8, row_length=64, microbatch_rows=2, peak_learning_rate=3e-3, b2=0.98,
        warmup_fraction=0.1, weight_decay=0.1, clip_norm=0.5, validation_fraction=0.0,
    )  # fmt: skip
    examples = random_examples(60, whole_weights=True)
    model = tiny_model()
    save_llama(model, tmp_path / "hf")
    fit_examples(model, examples, config, tmp_path / "run")
    losses = [row["loss"] for row in metrics_rows(tmp_path / "run")]

    peer = LlamaForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    norms = [p for name, p in peer.named_parameters() if "norm" in name]
    others = [p for name, p in peer.named_parameters() if "norm" not in name]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
        lr=3e-3,
        betas=(0.9, 0.98),
        eps=1e-8,
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=5, num_training_steps=50)
    by_group: dict[str, list[Example]] = {}
    for example in examples:
        by_group.setdefault(example.group, []).append(example)
    store = store_of(examples, config, tmp_path / "run/data")
    peer_losses = []
    for chosen in shuffled_steps(store.examples, 8, 50, config.seed):
        batch = [example for tree in chosen for example in by_group[store.group[tree]]]
        token_BT, weight_BT = (torch.from_numpy(array) for array in padded(batch))
        logits_BTV = peer(token_BT.long()).logits[:, :-1]
        nll_BT = torch.nn.functional.cross_entropy(
            logits_BTV.transpose(1, 2), token_BT[:, 1:].long(), reduction="none"
        )
        loss = (nll_BT * weight_BT[:, 1:]).sum() / weight_BT.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        peer_losses.append(float(loss.detach()))
    np.testing.assert_allclose(losses, peer_losses, atol=1e-4)
    assert losses[-1] < losses[0] - 0.5


# ---- Runs ----


class Interruption(Exception):
    pass


def test_an_interrupted_run_ends_in_the_same_bits(tmp_path):
    examples = random_examples(60)
    straight = fit_examples(tiny_model(), examples, FAST, tmp_path / "straight")
    assert straight.validation_examples > 0 and "val_loss" in straight.metrics

    def interrupt_at(last: int):
        def progress(steps, row):
            if row["step"] == last:
                raise Interruption

        return progress

    for last in (3, 5):  # checkpoints are at 2, 4 and 6
        with pytest.raises(Interruption):
            fit_examples(tiny_model(), examples, FAST, tmp_path / "broken", progress=interrupt_at(last))
    (tmp_path / "broken/checkpoints/6.orbax-checkpoint-tmp").mkdir()  # killed while saving
    broken = fit_examples(tiny_model(), examples, FAST, tmp_path / "broken")

    assert_same_weights(straight.model, broken.model)
    rows, broken_rows = metrics_rows(tmp_path / "straight"), metrics_rows(tmp_path / "broken")
    assert [row["step"] for row in broken_rows] == [1, 2, 3, 4, 5, 6]
    for row in (*rows, *broken_rows):
        del row["tokens_per_second"]
        row.pop("compile_seconds", None)  # in the first of each start
    assert broken_rows == rows
    finished = fit_examples(tiny_model(), examples, FAST, tmp_path / "broken")  # nothing left to do
    assert finished.metrics == broken.metrics
    assert finished.trained_tokens == straight.trained_tokens and finished.flops == straight.flops


def test_a_run_of_two_passes_takes_every_token_twice(tmp_path):
    examples = random_examples(20)
    config = replace(FAST, steps=None, epochs=2.0, batch_examples=4, validation_fraction=0.0)
    result = fit_examples(tiny_model(), examples, config, tmp_path)
    store = store_of(examples, config, tmp_path / "data")
    nodes, attended, targets = (int(of.sum()) for of in (store.nodes, store.attended, store.targets))
    assert result.trained_tokens == 2 * result.tree_tokens == 2 * store.nodes.sum()
    assert result.flops == 2 * training_flops(TINY, nodes, attended, targets)


def test_resuming_another_run_lists_the_differences(tmp_path):
    fit_examples(tiny_model(), random_examples(60), FAST, tmp_path, starts_from="a")
    other = replace(FAST, peak_learning_rate=1e-3)
    differences = (
        r"another run: peak_learning_rate 0\.01 -> 0\.001; starts_from 'a' -> 'b'; examples '\w+' -> '\w+'$"
    )
    with pytest.raises(ValueError, match=differences):
        fit_examples(tiny_model(), random_examples(61), other, tmp_path, starts_from="b")


@pytest.mark.parametrize("remat", ["dots", "full", "offload"])
def test_rematerialisation_changes_nothing_but_what_is_kept(remat, tmp_path):
    kept = fit_examples(tiny_model(), random_examples(20), FAST, tmp_path / "kept").model
    config = replace(FAST, remat=remat)
    again = fit_examples(tiny_model(), random_examples(20), config, tmp_path / "again").model
    for a, b in zip(jax.tree.leaves(nnx.state(kept)), jax.tree.leaves(nnx.state(again)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_step_is_compiled_once(tmp_path):
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(str(kwargs["fun_name"]))

    after_step: list[int] = []

    def count(steps: int, row: dict) -> None:
        after_step.append(len(compiled))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        config = TrainConfig(
            steps=12, batch_examples=8, row_length=64, microbatch_rows=1, save_every=4, validate_every=4
        )
        fit_examples(tiny_model(), random_examples(60), config, tmp_path, progress=count)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert after_step[4] > 0
    assert after_step[4] == after_step[-1]  # the first validation and checkpoint are at step 4
    assert sum("train_step" in name for name in compiled) == 1


class Clock:
    """Time that passes as it is told to: a second each time it is asked for, 1,000 for each compilation."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now

    def compiling(self, lower):
        def compile_slowly(*arguments):
            lowered = lower(*arguments)
            self.now += 1000
            return lowered

        return compile_slowly


def test_speeds_leave_out_the_compilation(tmp_path, monkeypatch):
    clock = Clock()
    notes = []
    monkeypatch.setattr("rationalyst_jax.train.loop.time", clock)
    monkeypatch.setattr("rationalyst_jax.train.reports.time", clock)
    slowly = SimpleNamespace(lower=clock.compiling(train_step.lower))
    monkeypatch.setattr("rationalyst_jax.train.loop.train_step", slowly)

    def stop(steps, row):
        if row["step"] == 3:
            raise Interruption

    config = replace(FAST, validation_fraction=0.0)
    with pytest.raises(Interruption):
        fit_examples(tiny_model(), random_examples(60), config, tmp_path, progress=stop, note=notes.append)
    fit_examples(tiny_model(), random_examples(60), config, tmp_path, note=notes.append)
    rows = metrics_rows(tmp_path)
    assert notes == ["compiled in 1001.0 s"] * 2
    assert [row.get("compile_seconds") for row in rows] == [1001, None, 1001, None, None, None]
    assert all(row["tokens_per_second"] > 20 for row in rows)  # of at least 100 tokens in at most 5 s


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
    model = tiny_model()
    model.final_norm_D[...] = model.final_norm_D[...].at[0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"^step 1: loss nan, gradient norm nan, .*: not finite; in its"):
        fit_examples(model, random_examples(60), FAST, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_token_the_model_does_not_know_is_refused(tmp_path):
    with pytest.raises(ValueError, match="document 'a' hold token id 64, the model's vocabulary is 64"):
        fit_examples(tiny_model(), [Example((1, 64), (0, 1), "a")], FAST, tmp_path)


def test_nothing_to_train_on_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no example to train on \(1 longer than 64 tokens\)"):
        fit_examples(tiny_model(), [Example((1,) * 65, (1,) * 65, "a")], FAST, tmp_path)
    with pytest.raises(ValueError, match=r"validation_fraction 0\.999 held out all 3 groups"):
        fit_examples(tiny_model(), random_examples(3), replace(FAST, validation_fraction=0.999), tmp_path)


def test_an_example_beyond_the_models_positions_is_refused(tmp_path):
    model = tiny_model()
    model.config = replace(TINY, max_position_embeddings=31)
    examples = [Example((1,) * length, (1,) * length, "a") for length in (8, 32)]
    with pytest.raises(ValueError, match="an example of document 'a' is 32 tokens long, the model has 31"):
        fit_examples(model, examples, replace(FAST, validation_fraction=0.0), tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_examples", 0, "must be above 0, got 0"),
        ("steps", -1, "must be at least 0, got -1"),
        ("epochs", float("nan"), "must be above 0, got nan"),
        ("epochs", float("inf"), "must be finite"),
        ("eps", 0.0, r"must be above 0, got 0\.0"),
        ("warmup_fraction", 1.5, r"must be between 0 and 1, got 1\.5"),
        ("final_fraction", -0.1, r"must be between 0 and 1, got -0\.1"),
        ("b1", 1.0, r"must be at least 0 and below 1, got 1\.0"),
        ("b2", -0.5, r"must be at least 0 and below 1, got -0\.5"),
        ("validation_fraction", 1.0, r"must be at least 0 and below 1, got 1\.0"),
        ("weight_decay", -0.1, r"must be at least 0, got -0\.1"),
        ("seed", -1, "must be from 0 to 4294967295, got -1"),
    ],
)
def test_a_bad_config_value_is_named(key, value, message):
    with pytest.raises(ValueError, match=rf"^train config: {key} {message}$"):
        TrainConfig(**{key: value})


# ---- Metrics ----


def events(file: Path) -> list[Any]:
    """The records of a file of TensorBoard's, their checksums verified."""
    protos: Any = import_module("tensorboardX.proto.event_pb2")
    data = file.read_bytes()
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
        body, data = data[12 : 12 + length], data[12 + length :]
        assert struct.unpack("<I", data[:4])[0] == masked_crc32c(body)
        found.append(protos.Event.FromString(body))
        data = data[4:]
    return found


def test_a_board_gets_the_numbers_of_every_step_and_hears_of_a_restart(tmp_path):
    def interrupt(steps, row):
        if row["step"] == 3:
            raise Interruption

    with pytest.raises(Interruption):
        fit_examples(tiny_model(), random_examples(60), FAST, tmp_path, progress=interrupt)
    fit_examples(tiny_model(), random_examples(60), FAST, tmp_path)
    first, second = (events(file) for file in sorted((tmp_path / "tensorboard").iterdir()))
    assert first[0].file_version == "brain.Event:2" and second[0].file_version == "brain.Event:2"
    assert {event.step for event in first[1:]} == {1, 2, 3}
    assert second[1].step == 3 and second[1].session_log.status == 1  # what came after step 2 is void
    boards: dict[int, dict[str, float]] = {step: {"step": step} for step in (3, 4, 5, 6)}
    for event in second[2:]:
        boards[event.step] |= {value.tag: value.simple_value for value in event.summary.value}
    for board, row in zip(boards.values(), metrics_rows(tmp_path)[2:], strict=True):
        assert board == pytest.approx(row, rel=1e-6)


def test_training_does_not_import_torch():
    program = "import sys, rationalyst_jax.train.loop; from pathlib import Path\n"
    program += "from rationalyst_jax.train.metrics import MetricsLog; MetricsLog(Path(sys.argv[1]), 0)\n"
    program += "assert 'tensorboardX' in sys.modules and 'torch' not in sys.modules"
    with TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", program, folder], check=True, timeout=300)


def test_weights_and_biases_get_the_same_numbers(tmp_path, monkeypatch):
    class WandbError(Exception):
        pass

    class Run:
        def __init__(self, **given):
            self.given = given
            self.rows = []
            self.finished = False
            runs.append(self)

        def log(self, row, step):
            self.rows.append({"step": step, **row})

        def finish(self):
            self.finished = True

    def refuse(**_):
        raise WandbError("no API key:\nlog in first")

    def trained_in(folder: Path) -> None:
        fit_examples(tiny_model(), random_examples(60), FAST, folder, wandb="project")

    runs: list[Run] = []
    wandb = SimpleNamespace(init=Run, Error=WandbError)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for folder in ("a/train", "a/train", "b/train"):
        trained_in(tmp_path / folder)
    first, again, other = runs
    assert first.given["project"] == "project" and first.finished
    assert first.rows == metrics_rows(tmp_path / "a/train") and again.rows == []
    assert first.given["id"] == again.given["id"] != other.given["id"]
    assert first.given["name"] == other.given["name"] == "train"

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ValueError, match=r"^wandb: no API key: log in first$"):
        trained_in(tmp_path / "c")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="wandb is not installed"):
        trained_in(tmp_path / "d")


# ---- Export ----


@pytest.mark.parametrize("tied", [False, True])
def test_a_trained_export_gives_the_same_logits_in_transformers(tied, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is the oracle here")
    from transformers import LlamaForCausalLM

    model = tiny_model()
    if tied:
        model.config = replace(model.config, tie_embeddings=True)
        model.head_VD = None
    result = fit_examples(model, random_examples(60), replace(FAST, steps=3), tmp_path / "run")
    save_llama(result.model, tmp_path / "hf", max_shard_bytes=8_000)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    token_BT = np.random.default_rng(0).integers(2, 64, (2, 40))
    place_BT = np.broadcast_to(np.arange(40), token_BT.shape)
    ours = (jnp.asarray(token_BT), jnp.asarray(place_BT))
    causal = tree_attend(jnp.asarray(40 - place_BT))
    hidden_BTD, _ = result.model(*ours, causal)
    with torch.no_grad():
        theirs = LlamaForCausalLM.from_pretrained(tmp_path / "hf")(torch.from_numpy(token_BT)).logits
    np.testing.assert_allclose(hidden_BTD @ result.model.output_VD().T, theirs.numpy(), atol=1e-4)


def test_a_trained_model_is_exported_with_its_tokenizer(shared, tmp_path):
    tokenizer = load_tokenizer(shared / "llama3_tokenizer")
    model = random_llama(LlamaConfig(len(tokenizer), 4, 4, 1, 1, 1, 2, tie_embeddings=True))
    base = tmp_path / "base"
    copy_tokenizer(shared / "llama3_tokenizer", base)
    (base / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    export(model, base, tmp_path / "hf")
    assert_same_weights(model, load_llama(tmp_path / "hf"))
    for file in base.iterdir():  # what a tokenizer's writer writes, older readers may not read
        assert (tmp_path / "hf" / file.name).read_bytes() == file.read_bytes(), file.name
    text = "One and one is two. Two"
    assert load_tokenizer(tmp_path / "hf").encode(text) == tokenizer.encode(text)


OLD = """
import sys
import numpy, torch, transformers
assert transformers.__version__.startswith("4."), transformers.__version__
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
ids = tokenizer("One and one is two.", return_tensors="pt")["input_ids"]
with torch.no_grad():
    numpy.savez(sys.argv[2], ids=ids.numpy(), logits=model(ids).logits.numpy())
"""


@pytest.fixture(scope="module")
def transformers_4(tmp_path_factory) -> Path:
    """A folder with version 4 of transformers; skips where pip cannot fetch it."""
    pytest.importorskip("torch", reason="torch is the oracle here")
    folder = tmp_path_factory.mktemp("old")
    packages = ["transformers==4.57.6", "huggingface-hub>=0.34,<1", "tokenizers>=0.22,<0.23.1"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
    fetched = subprocess.run([*install, *packages], capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"transformers 4 cannot be fetched: {fetched.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shipped", "llama3"])
def test_transformers_4_opens_an_export(name, transformers_4, tmp_path, request):
    if name == "shipped":
        base = SHIPPED
        tokenizer = load_tokenizer(base)
        model = load_llama(base)
    else:
        base = request.getfixturevalue("shared") / "llama3_tokenizer"
        tokenizer = load_tokenizer(base)
        config = LlamaConfig(len(tokenizer), 8, 8, 2, 2, 1, 4, tie_embeddings=True, bos_token_id=128000)
        model = random_llama(config)
    export(model, base, tmp_path / "hf")
    subprocess.run(
        [sys.executable, "-c", OLD, tmp_path / "hf", tmp_path / "found.npz"],
        check=True,
        env={**os.environ, "PYTHONPATH": str(transformers_4)},
    )
    found = np.load(tmp_path / "found.npz")
    assert found["ids"][0].tolist() == tokenizer.encode("One and one is two.")
    T = found["ids"].shape[1]
    place_BT = jnp.arange(T)[None]
    hidden_BTD, _ = model(jnp.asarray(found["ids"]), place_BT, tree_attend(T - place_BT))
    np.testing.assert_allclose(hidden_BTD @ model.output_VD().T, found["logits"], atol=1e-4)
