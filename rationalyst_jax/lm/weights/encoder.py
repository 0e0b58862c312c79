"""Encoders of sentences in folders of Hugging Face or sentence-transformers, read without torch.

`modules.json` and what it names, where sentence-transformers wrote them, say how texts become vectors: a
folder that wants more than the mean of the tokens at length 1 is refused.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rationalyst_jax.files.whole import read_json, read_list
from rationalyst_jax.lm.model.encoder import DISTANCE_BUCKETS, Encoder, EncoderConfig, EncoderLayers, Norm
from rationalyst_jax.lm.weights.hf import fingerprint
from rationalyst_jax.lm.weights.tensor_files import DTYPES, StoredTensor, misfits, stored_tensors
from rationalyst_jax.lm.weights.wordpiece import WordPieces, open_word_pieces

# What is stored beside the weights that count.
_UNUSED = ("pooler.", "embeddings.position_ids")
# What each model calls the parts of attention within a layer: query, key, value, output, norm.
_ATTENTION = {
    "bert": (
        *("attention.self.query", "attention.self.key", "attention.self.value"),
        *("attention.output.dense", "attention.output.LayerNorm"),
    ),
    "mpnet": (
        *("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        *("attention.attn.o", "attention.LayerNorm"),
    ),
}
_POOLING = {"pooling_mode_cls_token", "pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens"}
_POOLING |= {"pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"}


@dataclass(frozen=True)
class EncoderCheckpoint:
    """An encoder's folder whose tokenizer fits the model. max_tokens: of a text, its two special tokens
    included, that the encoder was made for."""

    path: Path
    fingerprint: str
    config: EncoderConfig
    max_tokens: int
    pieces: WordPieces

    def load(self, dtype: DTypeLike = jnp.float32) -> Encoder:
        """The weights on the default device. Raises as `load_encoder`."""
        return load_encoder(self.path, dtype)


def open_encoder(path: Path) -> EncoderCheckpoint:
    """What an encoder's folder says of itself, and its tokenizer; weights are read last, by `load`.

    Raises FileNotFoundError or ValueError naming the file that is missing, broken or says what is not
    computed here, for weights that do not fit, and for a tokenizer of more tokens than the model has.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder of an encoder")
    config = _config(path)[0]
    _fitting(path)
    _check_modules(path)
    pieces = open_word_pieces(path / "tokenizer.json")
    if pieces.size > config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {pieces.size} tokens, the model only {config.vocab_size}"
        )
    return EncoderCheckpoint(path, fingerprint(path), config, _max_tokens(path, config), pieces)


def load_encoder(path: Path, dtype: DTypeLike = jnp.float32) -> Encoder:
    """The encoder in a folder, on the default device.

    Raises FileNotFoundError for a missing file and ValueError for a damaged one, or listing every missing,
    extra and misshaped key.
    """
    config, kind = _config(path)
    stored = _fitting(path)
    L = config.num_layers
    D = config.hidden_size
    N = config.num_heads
    H = config.head_size

    def read(key: str) -> np.ndarray:
        tensor = stored[key]
        return tensor.read([tuple(slice(0, size) for size in tensor.shape)])[0].astype(np.float32)

    def placed(values: np.ndarray) -> Any:
        return jnp.asarray(values, dtype)

    def each(of_layer: Callable[[str], np.ndarray]) -> Any:
        return placed(np.stack([of_layer(f"encoder.layer.{i}.") for i in range(L)]))

    def norm(name: str) -> Norm:
        return Norm(placed(read(f"{name}.weight")), placed(read(f"{name}.bias")))

    def norms(name: str) -> Norm:
        return Norm(
            each(lambda layer: read(f"{layer}{name}.weight")), each(lambda x: read(f"{x}{name}.bias"))
        )

    *qkv, o, attention_norm = _ATTENTION[kind]
    position_WD = read("embeddings.position_embeddings.weight")[config.first_position :]
    if config.token_types:
        position_WD = position_WD + read("embeddings.token_type_embeddings.weight")[0]
    bias = "encoder.relative_attention_bias.weight"
    return Encoder(
        embed_VD=placed(read("embeddings.word_embeddings.weight")),
        position_WD=placed(position_WD),
        embed_norm=norm("embeddings.LayerNorm"),
        distance_RN=placed(read(bias)) if config.distance_bias else None,
        layers=EncoderLayers(
            qkv_DCNH=each(
                lambda x: np.stack([read(f"{x}{n}.weight").T.reshape(D, N, H) for n in qkv], axis=1)
            ),
            qkv_bias_CNH=each(lambda x: np.stack([read(f"{x}{n}.bias").reshape(N, H) for n in qkv])),
            o_NHD=each(lambda x: read(f"{x}{o}.weight").T.reshape(N, H, D)),
            o_bias_D=each(lambda x: read(f"{x}{o}.bias")),
            attention_norm=norms(attention_norm),
            up_DF=each(lambda x: read(f"{x}intermediate.dense.weight").T),
            up_bias_F=each(lambda x: read(f"{x}intermediate.dense.bias")),
            down_FD=each(lambda x: read(f"{x}output.dense.weight").T),
            down_bias_D=each(lambda x: read(f"{x}output.dense.bias")),
            output_norm=norms("output.LayerNorm"),
        ),
    )


def _config(path: Path) -> tuple[EncoderConfig, str]:
    """The config.json, and which kind of model it is of."""
    file = path / "config.json"
    raw = read_json(file)
    try:
        return EncoderConfig.from_hf(raw), raw["model_type"]
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def stored_shapes(config: EncoderConfig, kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor that is read, and its shape."""
    D = config.hidden_size
    F = config.intermediate_size
    yield "embeddings.word_embeddings.weight", (config.vocab_size, D)
    yield "embeddings.position_embeddings.weight", (config.position_rows, D)
    if config.token_types:
        yield "embeddings.token_type_embeddings.weight", (config.token_types, D)
    if config.distance_bias:
        yield "encoder.relative_attention_bias.weight", (DISTANCE_BUCKETS, config.num_heads)
    norms = ["embeddings.LayerNorm"]
    *projections, attention_norm = _ATTENTION[kind]
    for i in range(config.num_layers):
        layer = f"encoder.layer.{i}."
        norms += [f"{layer}{attention_norm}", f"{layer}output.LayerNorm"]
        outputs = {f"{layer}{name}": (D, D) for name in projections}
        outputs |= {f"{layer}intermediate.dense": (F, D), f"{layer}output.dense": (D, F)}
        for name, shape in outputs.items():
            yield f"{name}.weight", shape
            yield f"{name}.bias", shape[:1]
    for name in norms:
        yield f"{name}.weight", (D,)
        yield f"{name}.bias", (D,)


def _fitting(path: Path) -> Mapping[str, StoredTensor]:
    """The stored weights, which are those of the config: one ValueError says all in which they differ."""
    wanted = dict(stored_shapes(*_config(path)))
    stored = {key: t for key, t in stored_tensors(path).items() if not key.startswith(_UNUSED)}
    problems = list(misfits(wanted, {key: tensor.shape for key, tensor in stored.items()}))
    problems += [
        f"{key} is {stored[key].dtype}, not one of {', '.join(DTYPES)}"
        for key in wanted
        if key in stored and stored[key].dtype not in DTYPES
    ]
    if problems:
        raise ValueError(f"{path}: the checkpoint does not fit its config.json: {'; '.join(problems)}")
    return stored


def _check_modules(path: Path) -> None:
    """Raises ValueError where sentence-transformers would do more than is done here."""
    file = path / "modules.json"
    if not file.exists():
        return
    for module in read_list(file):
        name = str(module.get("type") if isinstance(module, dict) else module).rpartition(".")[2]
        if name not in ("Transformer", "Pooling", "Normalize"):
            raise ValueError(
                f"{file}: a module {name} is not supported, only Transformer, Pooling, Normalize"
            )
        if name == "Pooling":
            pooling = path / str(module.get("path")) / "config.json"
            asked = read_json(pooling)
            others = sorted(key for key in _POOLING if asked.get(key))
            if others or not asked.get("pooling_mode_mean_tokens", asked.get("pooling_mode") == "mean"):
                raise ValueError(f"{pooling}: only the mean of the tokens is supported, not {others}")
    settings = path / "sentence_bert_config.json"
    if settings.exists() and read_json(settings).get("do_lower_case"):
        raise ValueError(f"{settings}: do_lower_case is not supported: the tokenizer does that itself")


def _max_tokens(path: Path, config: EncoderConfig) -> int:
    """What sentence-transformers' file says, or else as many as there are positions."""
    file = path / "sentence_bert_config.json"
    asked = read_json(file).get("max_seq_length") if file.exists() else None
    if asked is None:
        return config.max_tokens
    if not isinstance(asked, int) or not 2 < asked <= config.max_tokens:
        wanted = f"an integer above 2, up to the {config.max_tokens} positions"
        raise ValueError(f"{file}: max_seq_length must be {wanted}, got {asked!r}")
    return asked
