"""Fine-tuning on token trees: the same mathematics as separate sequences, and exact after an interruption."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flax import nnx

from rationalyst_jax.lm.config import LlamaConfig
from rationalyst_jax.lm.hf import load_llama, save_llama
from rationalyst_jax.lm.llama import Llama, tree_attend
from rationalyst_jax.lm.prompt import load_prompts
from rationalyst_jax.lm.tokenizer import load_tokenizer
from rationalyst_jax.train.batches import Batches, ordered_steps, shuffled_steps
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.examples import Example, forest, split_by_group
from rationalyst_jax.train.export import export
from rationalyst_jax.train.loop import fit
from rationalyst_jax.train.rationales import read_rationales
from rationalyst_jax.train.step import loss_and_gradient

TINY = LlamaConfig(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8
)
FAST = TrainConfig(
    steps=6, batch_examples=8, row_length=64, microbatch_rows=2, peak_learning_rate=1e-2, save_every=2
)


def tiny_model(dtype=jnp.float32) -> Llama:
    """Random weights from NumPy: nothing to compile."""
    rng = np.random.default_rng(0)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Llama(TINY, rngs=nnx.Rngs(0))))

    def fill(path, w):
        return jnp.asarray(rng.normal("norm" in jax.tree_util.keystr(path), 0.1, w.shape), dtype)

    return nnx.merge(graph, jax.tree.map_with_path(fill, shapes))


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


def one_batch(examples: list[Example], microbatch_rows: int):
    config = TrainConfig(batch_examples=len(examples), row_length=64, microbatch_rows=microbatch_rows)
    trees = forest(examples, config.row_length, config.batch_examples).trees
    return Batches(trees, ordered_steps(trees, config.batch_examples), config)[0]


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


def tree_gradient(weights, batch, dtype: str = "float32"):
    graph = nnx.graphdef(tiny_model())
    return jax.jit(loss_and_gradient, static_argnums=(0, 3))(graph, weights, batch, dtype)


def relative_difference(one, other) -> float:
    """Norm of the difference over the norm, over a whole pytree."""
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (one, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def metrics_rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def assert_same_weights(one: Llama, other: Llama) -> None:
    jax.tree.map(np.testing.assert_array_equal, nnx.state(one), nnx.state(other))


# ---- Examples and trees ----


def test_a_node_weighs_what_the_examples_that_target_it_weigh():
    shared = [
        Example((1, 5, 6, 7), (0, 0, 1, 1), "a"),
        Example((1, 5, 6, 8), (0, 0, 0.5, 2), "a"),
    ]
    (tree,) = forest(shared, 8, 8).trees
    assert tree.tree.token[tree.node].tolist() == [6, 7, 8]
    assert tree.weight.tolist() == [1.5, 1, 2]
    assert tree.examples == 2 and tree.sequence_tokens == 8 and len(tree.tree) == 5


def test_too_long_examples_are_dropped_whole_and_counted():
    examples = [Example((1,) * 9, (0,) * 8 + (1,), "a"), Example((1,) * 8, (0,) * 7 + (1,), "b")]
    data = forest(examples, 8, 8)
    assert data.dropped == 1
    assert [tree.group for tree in data.trees] == ["b"]


def test_a_group_too_large_for_one_tree_becomes_several_and_loses_nothing():
    examples = [Example((1, 2, i, i, i), (0, 0, 1, 1, 1), "a") for i in range(3, 20)]
    trees = forest(examples, 12, 2).trees
    assert all(len(tree.tree) <= 12 and tree.examples <= 2 for tree in trees)
    assert sum(tree.examples for tree in trees) == 17
    assert sum(tree.weight.sum() for tree in trees) == 17 * 3


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example((1, 2), (0,), "a"), "2 tokens but 1 weights"),
        (Example((1, 2), (1, 0), "a"), "target of positive weight"),
        (Example((1, 2, 3), (0, 1, -1), "a"), "none below 0"),
    ],
)
def test_an_unusable_example_is_named(example, message):
    with pytest.raises(ValueError, match=rf"example 0 of group 'a'.*{message}"):
        forest([example], 8, 8)


def test_validation_never_shares_a_document_with_training():
    examples = random_examples(400)
    training, validation = split_by_group(forest(examples, 64, 2).trees, 0.2, seed=3)
    groups, held_out = {tree.group for tree in training}, {tree.group for tree in validation}
    assert not groups & held_out
    assert len(groups | held_out) == 400
    assert 50 <= len(held_out) <= 110  # 80 expected, standard deviation 8
    again = split_by_group(forest(examples[: len(examples) // 2], 64, 2).trees, 0.2, seed=3)[1]
    assert {tree.group for tree in again} <= held_out


# ---- Batches ----


def test_each_epoch_visits_every_tree_once_and_steps_do_not_depend_on_the_end():
    trees = forest(random_examples(50), 64, 8).trees
    total = sum(tree.examples for tree in trees)
    members = shuffled_steps(trees, 8, steps=2 * total // 8 + 1, seed=0)
    seen = np.concatenate(members)
    assert sorted(seen[:50].tolist()) == sorted(seen[50:100].tolist()) == list(range(50))
    assert seen[:50].tolist() != seen[50:100].tolist()
    for short, long in zip(shuffled_steps(trees, 8, steps=5, seed=0), members, strict=False):
        assert short.tolist() == long.tolist()


def test_a_batch_holds_exactly_the_targets_of_its_trees():
    examples = random_examples(6)
    batch = one_batch(examples, microbatch_rows=2)
    assert batch.weight_ABP.sum() == pytest.approx(sum(sum(e.weights[1:]) for e in examples))
    used = np.any(batch.weight_ABP, axis=(1, 2))
    assert used[: int(batch.microbatches)].all() and not used[int(batch.microbatches) :].any()


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
    fit(model, examples, config, tmp_path / "run")
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
    trees = forest(examples, 64, 8).trees
    peer_losses = []
    for chosen in shuffled_steps(trees, 8, 50, config.seed):
        batch = [example for tree in chosen for example in by_group[trees[tree].group]]
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
    straight = fit(tiny_model(), examples, FAST, tmp_path / "straight")
    assert straight.validation_examples > 0 and "val_loss" in straight.metrics

    def interrupt_at(last: int):
        def progress(steps, row):
            if row["step"] == last:
                raise Interruption

        return progress

    for last in (3, 5):  # checkpoints are at 2, 4 and 6
        with pytest.raises(Interruption):
            fit(tiny_model(), examples, FAST, tmp_path / "broken", progress=interrupt_at(last))
    (tmp_path / "broken/checkpoints/6.orbax-checkpoint-tmp").mkdir()  # killed while saving
    broken = fit(tiny_model(), examples, FAST, tmp_path / "broken")

    assert_same_weights(straight.model, broken.model)
    rows, broken_rows = metrics_rows(tmp_path / "straight"), metrics_rows(tmp_path / "broken")
    assert [row["step"] for row in broken_rows] == [1, 2, 3, 4, 5, 6]
    for row in (*rows, *broken_rows):
        del row["tokens_per_second"]
    assert broken_rows == rows
    finished = fit(tiny_model(), examples, FAST, tmp_path / "broken")  # nothing left to do
    assert finished.metrics == broken.metrics


def test_the_given_model_is_left_alone_and_the_trained_one_keeps_its_dtype(tmp_path):
    model = tiny_model(jnp.bfloat16)
    before = jax.tree.map(np.asarray, nnx.state(model))
    trained = fit(model, random_examples(20), FAST, tmp_path).model
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(nnx.state(trained)), strict=True):
        assert new.dtype == jnp.bfloat16 and not np.array_equal(old, new)


def test_resuming_another_run_lists_the_differences(tmp_path):
    fit(tiny_model(), random_examples(60), FAST, tmp_path, starts_from="a")
    other = replace(FAST, peak_learning_rate=1e-3)
    differences = (
        r"another run: peak_learning_rate 0\.01 -> 0\.001; starts_from 'a' -> 'b'; examples '\w+' -> '\w+'$"
    )
    with pytest.raises(ValueError, match=differences):
        fit(tiny_model(), random_examples(61), other, tmp_path, starts_from="b")


def test_rematerialisation_changes_nothing_but_what_is_kept(tmp_path):
    model = tiny_model()
    kept = fit(model, random_examples(20), FAST, tmp_path / "kept").model
    again = fit(model, random_examples(20), replace(FAST, remat=True), tmp_path / "again").model
    assert again.remat and not kept.remat and not model.remat
    for a, b in zip(jax.tree.leaves(nnx.state(kept)), jax.tree.leaves(nnx.state(again)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_step_is_compiled_once(tmp_path):
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    after_step: list[int] = []

    def count(steps: int, row: dict) -> None:
        after_step.append(len(compiled))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        config = TrainConfig(
            steps=12, batch_examples=8, row_length=64, microbatch_rows=1, save_every=4, validate_every=4
        )
        fit(tiny_model(), random_examples(60), config, tmp_path, progress=count)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert after_step[4] > 0
    assert after_step[4] == after_step[-1]  # the first validation and checkpoint are at step 4


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
    model = tiny_model()
    model.final_norm_D[...] = model.final_norm_D[...].at[0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"^step 1: loss nan, gradient norm nan: not finite$"):
        fit(model, random_examples(60), FAST, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_token_the_model_does_not_know_is_refused(tmp_path):
    with pytest.raises(ValueError, match="token id 64, the model's vocabulary is 64"):
        fit(tiny_model(), [Example((1, 64), (0, 1), "a")], FAST, tmp_path)


def test_nothing_to_train_on_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no example to train on \(1 longer than 64 tokens\)"):
        fit(tiny_model(), [Example((1,) * 65, (1,) * 65, "a")], FAST, tmp_path)
    with pytest.raises(ValueError, match=r"validation_fraction 0\.999 held out all 3 groups"):
        fit(tiny_model(), random_examples(3), replace(FAST, validation_fraction=0.999), tmp_path)


def test_an_example_beyond_the_models_positions_is_refused(tmp_path):
    model = tiny_model()
    model.config = replace(TINY, max_position_embeddings=31)
    examples = [Example((1,) * length, (1,) * length, "a") for length in (8, 32)]
    with pytest.raises(ValueError, match="an example is 32 tokens long, the model has 31 positions"):
        fit(model, examples, replace(FAST, validation_fraction=0.0), tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_examples", 0, "must be above 0, got 0"),
        ("steps", 0, "must be above 0, got 0"),
        ("epochs", float("nan"), "must be above 0, got nan"),
        ("epochs", float("inf"), "must be finite"),
        ("eps", 0.0, r"must be above 0, got 0\.0"),
        ("warmup_fraction", 1.5, r"must be between 0 and 1, got 1\.5"),
        ("final_fraction", -0.1, r"must be between 0 and 1, got -0\.1"),
        ("b1", 1.0, r"must be at least 0 and below 1, got 1\.0"),
        ("b2", -0.5, r"must be at least 0 and below 1, got -0\.5"),
        ("validation_fraction", 1.0, r"must be at least 0 and below 1, got 1\.0"),
        ("weight_decay", -0.1, r"must be at least 0, got -0\.1"),
        ("seed", -1, "must be at least 0, got -1"),
    ],
)
def test_a_bad_config_value_is_named(key, value, message):
    with pytest.raises(ValueError, match=rf"^train config: {key} {message}$"):
        TrainConfig(**{key: value})


# ---- Rationales and export ----


def test_kept_rationales_become_examples_and_a_trained_model_is_exported(shared, tmp_path):
    tokenizer, prompts = load_tokenizer(shared / "llama3_tokenizer"), load_prompts("llama3")
    rows = {
        "document_id": ["a", "a", "b"],
        "preceding": ["One and one", "One and one is two. Two", "Three"],
        "rationale": ["Add them.", "Double it.", "Count on."],
        "kept": [True, True, False],
    }
    pq.write_table(pa.table(rows), tmp_path / "rationales.parquet")
    examples = read_rationales(tmp_path / "rationales.parquet", tokenizer, prompts)
    assert [example.group for example in examples] == ["a", "a"]
    for example, preceding, rationale in zip(examples, rows["preceding"], rows["rationale"], strict=False):
        text = str(tokenizer.decode(list(example.tokens)))
        assert preceding in text and text.endswith(f"{rationale}<|eot_id|>")
        assert example.tokens.count(tokenizer.bos_token_id) == 1
        target = [t for t, w in zip(example.tokens, example.weights, strict=True) if w == 1]
        assert str(tokenizer.decode(target)).strip() == f"{rationale}<|eot_id|>"
        assert set(example.weights) == {0, 1}

    big = LlamaConfig(len(tokenizer), 4, 4, 1, 1, 1, 2, tie_embeddings=True)
    model = Llama(big, rngs=nnx.Rngs(0))
    export(model, tokenizer, tmp_path / "hf")
    assert_same_weights(model, load_llama(tmp_path / "hf"))
    text = rows["preceding"][1]
    assert load_tokenizer(tmp_path / "hf").encode(text) == tokenizer.encode(text)
    with pytest.raises(ValueError, match=r"tokenizer has 128256 tokens, the model only 64"):
        export(tiny_model(), tokenizer, tmp_path / "small")


def test_files_without_rationales_are_named(shared, tmp_path):
    tokenizer, prompts = load_tokenizer(shared / "llama3_tokenizer"), load_prompts("llama3")
    with pytest.raises(FileNotFoundError, match=r"absent\.parquet: no such file"):
        read_rationales(tmp_path / "absent.parquet", tokenizer, prompts)
    pq.write_table(pa.table({"document_id": ["a"], "preceding": ["x"]}), tmp_path / "columns.parquet")
    with pytest.raises(ValueError, match=r"columns\.parquet: no column rationale"):
        read_rationales(tmp_path / "columns.parquet", tokenizer, prompts)
    row = {"document_id": ["a"], "preceding": ["x"], "rationale": ["y"], "kept": [False]}
    pq.write_table(pa.table(row), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"none\.parquet: no kept rationale"):
        read_rationales(tmp_path / "none.parquet", tokenizer, prompts)
    for column, values, found in (
        ("preceding", [1], "column preceding must be text, found 1"),
        ("rationale", [None], "column rationale must be text, found None"),
        ("kept", ["false"], "column kept must be true or false, found 'false'"),
    ):
        pq.write_table(pa.table({**row, column: values}), tmp_path / "types.parquet")
        with pytest.raises(ValueError, match=rf"types\.parquet: row 1: {found}"):
            read_rationales(tmp_path / "types.parquet", tokenizer, prompts)
