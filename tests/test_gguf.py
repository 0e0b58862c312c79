"""Checkpoints go to GGUF and come back unchanged, and what isn't read is refused in one line."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from cli_files import rationalyst
from gguf_files import CONFIG, TEXTS, VOCABULARY, rewrite, save_small
from safetensors.numpy import load_file, save_file

from rationalyst_jax.lm.model.config import LlamaConfig, RopeScaling
from rationalyst_jax.lm.weights.gguf import numbers
from rationalyst_jax.lm.weights.gguf.container import read_header
from rationalyst_jax.lm.weights.gguf.llama import config_of, gguf_name
from rationalyst_jax.lm.weights.gguf.tokenizer import ends_of, make_tokenizer
from rationalyst_jax.lm.weights.hf import load_config
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer

gguf = pytest.importorskip("gguf", reason="pip install 'rationalyst_jax[gguf]'")

LONG = RopeScaling(8.0, 1.0, 4.0, 8192)
CONFIGS = {
    "untied": CONFIG,
    "tied, wide heads, Llama 3.1's RoPE": replace(
        CONFIG, tie_embeddings=True, head_dim=16, rope_scaling=LONG, max_position_embeddings=131072
    ),
    "Llama 3.2's RoPE, two ends": replace(
        CONFIG, rope_scaling=replace(LONG, factor=32.0), rms_norm_eps=1e-6, eos_token_id=(1, 2)
    ),
    "no grouped heads, theta, unused tokens": replace(
        CONFIG, num_kv_heads=4, rope_theta=10000.0, vocab_size=VOCABULARY + 7, bos_token_id=None
    ),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with the checkpoint `model` and, of it, `model.gguf`."""
    root = tmp_path_factory.mktemp("gguf")
    save_small(root / "model")
    assert rationalyst(f"convert --source {root}/model --target {root}/model.gguf") == 0
    return root


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype and ours[key].shape == value.shape, key
        assert ours[key].tobytes() == value.tobytes(), key


def assert_same_tokenizer(one: Path, other: Path, texts: list[str]) -> None:
    ours, theirs = load_tokenizer(one), load_tokenizer(other)
    for special in (True, False):
        for text in texts:
            assert ours(text, add_special_tokens=special) == theirs(text, add_special_tokens=special), text
    for text in texts:
        ids = theirs(text)["input_ids"]
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    chat: Any = [{"role": "user", "content": text} for text in texts[:20]]
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert len(ours) == len(theirs)


def refused(command: str, capsys: pytest.CaptureFixture[str], target: str) -> str:
    """The one line that a command that fails says; nothing may be left of its target."""
    assert rationalyst(command) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert not [path.name for path in Path().iterdir() if path.name.startswith(target)]
    return error


@pytest.mark.parametrize("name", CONFIGS)
def test_to_gguf_and_back_is_bit_identical(name, here):
    config = CONFIGS[name]
    save_small(here / "model", config)
    assert rationalyst("convert --source model --target model.gguf") == 0
    assert rationalyst("convert --source model.gguf --target back") == 0
    assert_same_weights(here / "back", here / "model")
    bos = 0 if config.bos_token_id is None else config.bos_token_id  # the tokenizer has one
    assert load_config("back") == replace(config, bos_token_id=bos)
    assert json.loads(Path("back/generation_config.json").read_text()) == {
        "bos_token_id": 0,
        "eos_token_id": [1, 2] if config.eos_token_id == (1, 2) else 1,
        "pad_token_id": 1,
    }
    assert_same_tokenizer(here / "back", here / "model", TEXTS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_stay_as_they_are(dtype, here):
    save_small(here / "model", dtype=dtype)
    assert rationalyst("convert --source model --target model.gguf") == 0
    assert rationalyst(f"convert --source model.gguf --target back --dtype {dtype}") == 0
    assert_same_weights(here / "back", here / "model")
    kinds = {len(t.shape): t.kind for t in read_header(here / "model.gguf").tensors.values()}
    assert kinds == {1: "F32", 2: {"bfloat16": "BF16", "float16": "F16"}[dtype]}


def test_an_orbax_checkpoint_gives_the_file_that_its_source_gives(made, here):
    assert rationalyst(f"convert --source {made}/model --target orbax/model") == 0
    assert rationalyst("convert --source orbax/model --target orbax.gguf") == 0
    assert (here / "orbax.gguf").read_bytes() == (made / "model.gguf").read_bytes()


def test_the_ends_of_generation_config_are_in_the_file(made, here):
    save_small(here / "model")
    (here / "model" / "generation_config.json").write_text('{"eos_token_id": [2, 1]}')
    assert rationalyst("convert --source model --target model.gguf") == 0
    metadata = read_header(here / "model.gguf").metadata
    assert metadata["tokenizer.ggml.eos_token_id"] == 1  # the tokenizer's
    assert metadata["tokenizer.ggml.eot_token_id"] == 2
    assert rationalyst("convert --source model.gguf --target back") == 0
    assert load_config("back").eos_token_id == (1, 2)


def test_the_package_gguf_reads_what_is_written(here):
    config = CONFIGS["tied, wide heads, Llama 3.1's RoPE"]
    save_small(here / "model", config)
    assert rationalyst("convert --source model --target model.gguf") == 0
    reader = gguf.GGUFReader("model.gguf")
    metadata = {key: field.contents() for key, field in reader.fields.items() if "." in key}
    ours = read_header(here / "model.gguf")
    assert {key: metadata[key] for key in ours.metadata} == ours.metadata
    assert metadata["general.name"] == "model" and metadata["tokenizer.ggml.pre"] == "smollm"
    theirs = {tensor.name: tensor.data for tensor in reader.tensors}
    # What llama.cpp's converter computes for Llama 3.1, term by term.
    factors = []
    for i in range(8):
        wavelength = 2 * np.pi * 500000.0 ** (2 * i / 16)
        smooth = (8192 / wavelength - 1) / 3
        between = 1 / ((1 - smooth) / 8 + smooth)
        factors.append(1 if wavelength < 2048 else 8 if wavelength > 8192 else between)
    assert 1 < sorted(factors)[4] < 8 or len({*factors}) > 2  # one of them lies between
    np.testing.assert_allclose(theirs.pop("rope_freqs.weight"), factors, rtol=1e-6)
    stored = tensors(here / "model")
    assert theirs.keys() == {gguf_name(key) for key in stored}
    for key, value in stored.items():
        for row, wanted in enumerate(value):
            place = row
            if "q_proj" in key or "k_proj" in key:  # rows i and i + 8 of a head become neighbours
                head, i = divmod(row, 16)
                place = head * 16 + (2 * i if i < 8 else 2 * (i - 8) + 1)
            assert np.array_equal(theirs[gguf_name(key)][place], wanted), key


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_a_quantized_file_becomes_the_numbers_it_holds(kind, made, here):
    """Blocks by gguf's quantizer, in a file by gguf's writer, with heads interleaved row by row."""
    stored = tensors(made / "model")
    writer = gguf.GGUFWriter("q.gguf", "llama")
    adders: Any = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}
    adders |= {float: writer.add_float32, list: writer.add_array}
    for name, value in read_header(made / "model.gguf").metadata.items():
        if name != "general.architecture":
            adders[type(value)](name, value)
    quantized = gguf.GGMLQuantizationType[kind]
    wanted = {}
    for key, value in stored.items():
        if value.ndim == 1:
            writer.add_tensor(gguf_name(key), value)
            wanted[key] = value
            continue
        blocks = gguf.quants.quantize(value, quantized)
        wanted[key] = BLOCKS[kind](blocks.reshape(-1)).reshape(value.shape)
        if "q_proj" in key or "k_proj" in key:
            order = [head + i for head in range(0, len(value), 8) for i in (0, 4, 1, 5, 2, 6, 3, 7)]
            blocks = blocks[order]
        writer.add_tensor(gguf_name(key), blocks, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert rationalyst("convert --source q.gguf --target q") == 0
    found = tensors(here / "q")
    for key, value in wanted.items():
        assert np.array_equal(found[key], value), key
    assert max(np.abs(found[key] - stored[key]).max() for key in stored) < 0.2
    if kind == "Q8_0":
        assert rationalyst(f"convert --source {made}/model --target ours.gguf --dtype q8_0") == 0
        assert rationalyst("convert --source ours.gguf --target ours") == 0
        assert_same_weights(here / "ours", here / "q")


def scale(block: np.ndarray, place: int) -> float:
    return float(block[place : place + 2].copy().view(np.float16)[0])


def q8_0(data: np.ndarray) -> np.ndarray:
    return np.array(
        [[scale(b, 0) * x for x in b[2:].view(np.int8)] for b in data.reshape(-1, 34)], np.float32
    )


def q4_0(data: np.ndarray) -> np.ndarray:
    """Low halves of 16 bytes come first, then the high ones."""
    blocks = data.reshape(-1, 18)
    return np.array([[scale(b, 0) * (int(q) - 8) for q in nibbles(b[2:])] for b in blocks], np.float32)


def q4_1(data: np.ndarray) -> np.ndarray:
    blocks = data.reshape(-1, 20)
    rows = [[np.float32(scale(b, 0)) * q + np.float32(scale(b, 2)) for q in nibbles(b[4:])] for b in blocks]
    return np.array(rows, np.float32)


def nibbles(data: np.ndarray) -> np.ndarray:
    return np.concatenate([data & 15, data >> 4]).astype(np.float32)


def q4_k(data: np.ndarray) -> np.ndarray:
    """Eight times 32 weights; of each a scale and a minimum of 6 bits in 12 bytes."""
    rows = []
    for b in data.reshape(-1, 144):
        packed = [int(x) for x in b[4:16]]
        for j in range(8):
            if j < 4:
                step, low = packed[j] & 63, packed[j + 4] & 63
            else:
                step = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4
                low = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4
            part = b[16 + 32 * (j // 2) : 48 + 32 * (j // 2)]
            values = (part >> 4 if j % 2 else part & 15).astype(np.float32)
            rows.append(np.float32(scale(b, 0) * step) * values - np.float32(scale(b, 2) * low))
    return np.concatenate(rows)


def q6_k(data: np.ndarray) -> np.ndarray:
    """Sixteen times 16 weights: four bits in 128 bytes, two more in 64, a scale of eight bits."""
    rows = []
    for b in data.reshape(-1, 210):
        low, high, steps = b[:128], b[128:192], b[192:208].view(np.int8)
        for n in range(256):
            half, rest = divmod(n, 128)
            quarter, i = divmod(rest, 32)
            four = int(low[64 * half + 32 * (quarter % 2) + i]) >> (4 if quarter > 1 else 0) & 15
            two = int(high[32 * half + i]) >> 2 * quarter & 3
            rows.append(scale(b, 208) * int(steps[n // 16]) * ((four | two << 4) - 32))
    return np.array(rows, np.float32)


BLOCKS = {"Q8_0": q8_0, "Q4_0": q4_0, "Q4_1": q4_1, "Q4_K": q4_k, "Q6_K": q6_k}
SCALES = {"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q6_K": (208,)}


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_of_random_bytes_are_read_as_their_layout_says(kind):
    rng = np.random.default_rng(0)
    size = numbers.bytes_of(kind, 256)
    block = size * numbers.TYPES[kind].block // 256
    data = rng.integers(0, 256, (6, size), np.uint8)
    for row in data.reshape(-1, block):
        for place in SCALES[kind]:
            row[place : place + 2] = np.array([rng.normal()], np.float16).view(np.uint8)
    found = numbers.decoded(kind, data)
    assert found.shape == (6, 256)
    np.testing.assert_allclose(
        found.reshape(-1), BLOCKS[kind](data.reshape(-1)).reshape(-1), rtol=1e-5, atol=1e-4
    )


def drop(key: str):
    return lambda metadata, tensors: metadata.pop(key)


def say(**values: Any):
    return lambda metadata, tensors: metadata.update({key.replace("__", "."): v for key, v in values.items()})


def tensor(name: str, value: Any):
    return lambda metadata, tensors: tensors.update({name: np.asarray(value, np.float32)})


GGML = "tokenizer__ggml__"
BAD = {
    "general.architecture is 'gemma'": say(general__architecture="gemma"),
    "no llama.block_count": drop("llama.block_count"),
    "no llama.attention.layer_norm_rms_epsilon": drop("llama.attention.layer_norm_rms_epsilon"),
    "llama.block_count must be a positive integer, found 'two'": say(llama__block_count="two"),
    "llama.block_count is 20000, and the file has": say(llama__block_count=20000),
    "llama.attention.head_count must be a positive integer, found 0": say(llama__attention__head_count=0),
    "llama.attention.head_count_kv must be a positive integer": say(llama__attention__head_count_kv=[2, 2]),
    "num_heads 4 is not a multiple": say(llama__attention__head_count_kv=3),
    "llama.rope.freq_base must be a number": say(llama__rope__freq_base="high"),
    "llama.rope.scaling.type 'yarn' is not supported": say(llama__rope__scaling__type="yarn"),
    "llama.rope.scaling.type 'linear' is not supported": say(llama__rope__scaling__type="linear"),
    "llama.expert_count 8 is not supported": say(llama__expert_count=8),
    "llama.logit_scale 0.5 is not supported": say(llama__logit_scale=0.5),
    "llama.rope.dimension_count 4 is not supported, only 8": say(llama__rope__dimension_count=4),
    "llama.vocab_size 7 is not supported, only 300": say(llama__vocab_size=7),
    "split.count 2: one part of several": say(split__count=2),
    "general.alignment must be a positive integer": say(general__alignment="wide"),
    "no tokenizer.ggml.model": drop("tokenizer.ggml.model"),
    "tokenizer.ggml.model 'llama' is not supported": say(**{f"{GGML}model": "llama"}),
    "no tokenizer.ggml.pre": drop("tokenizer.ggml.pre"),
    "tokenizer.ggml.pre 'gpt-2' is not supported, only llama-bpe, smollm": say(**{f"{GGML}pre": "gpt-2"}),
    "no tokenizer.ggml.tokens": drop("tokenizer.ggml.tokens"),
    "tokenizer.ggml.merges: ": say(**{f"{GGML}merges": ["nothing here"]}),
    "tokenizer.ggml.tokens holds what is no text": say(**{f"{GGML}tokens": [1] * VOCABULARY}),
    "tokenizer.ggml.merges holds what is no text": say(**{f"{GGML}merges": [1, 2]}),
    "tokenizer.ggml.tokens has 'a' twice": say(**{f"{GGML}tokens": ["a"] * VOCABULARY}),
    "tokenizer.ggml.token_type has 2 values for 300": say(**{f"{GGML}token_type": [1, 1]}),
    "tokenizer.ggml.token_type: type 6": say(**{f"{GGML}token_type": [6] * VOCABULARY}),
    "tokenizer.ggml.add_eos_token is not supported": say(**{f"{GGML}add_eos_token": True}),
    "tokenizer.ggml.eot_token_id 999 is no token": say(**{f"{GGML}eot_token_id": 999}),
    "tokenizer.chat_template is no str": say(tokenizer__chat_template=3),
    "missing blk.1.ffn_up.weight": lambda metadata, tensors: tensors.pop("blk.1.ffn_up.weight"),
    "extra blk.0.attn_q.bias": tensor("blk.0.attn_q.bias", np.zeros(32)),
    "blk.0.ffn_up.weight has shape (2, 2), not (64, 32)": tensor("blk.0.ffn_up.weight", np.zeros((2, 2))),
    "rope_freqs.weight: not the RoPE scaling of": tensor("rope_freqs.weight", [1, 1, 3, 8]),
    "output_norm.weight has shape (1, 1, 32), which": tensor("output_norm.weight", np.zeros((1, 1, 32))),
}


@pytest.mark.parametrize("needle", BAD)
def test_a_file_that_is_not_read_is_refused_in_one_line(needle, made, here, capsys):
    rewrite(made / "model.gguf", here / "bad.gguf", BAD[needle])
    error = refused("convert --source bad.gguf --target x", capsys, "x")
    assert error.startswith("rationalyst convert: bad.gguf: ") and needle in error


def test_a_file_that_is_cut_off_is_refused_wherever_it_ends(made, here):
    whole = (made / "model.gguf").read_bytes()
    assert len(whole) > 60_000
    for size in [*range(4, 2000, 23), *range(2000, len(whole), 3001), len(whole) - 1]:
        (here / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"^\S*cut.gguf: cut off"):
            read_header(here / "cut.gguf")


def test_a_header_with_any_byte_changed_is_read_or_refused(made, here):
    rng = np.random.default_rng(0)
    data = np.frombuffer((made / "model.gguf").read_bytes(), np.uint8)
    header = len(data) - sum(
        4 * math.prod(t.shape) for t in read_header(made / "model.gguf").tensors.values()
    )
    refusals = 0
    for _ in range(400):
        changed = data.copy()
        changed[rng.integers(4, header)] = rng.integers(256)
        changed.tofile(here / "changed.gguf")
        try:
            read = read_header(here / "changed.gguf")
            tokenizer = make_tokenizer(read)
            config_of(read, len(tokenizer), 0, ends_of(read))
        except ValueError as error:
            assert str(error).startswith(str(here / "changed.gguf"))
            refusals += 1
    assert refusals > 100


def test_other_files_and_other_types_are_refused_by_name(made, here, capsys):
    (here / "text.gguf").write_text("GGML and not GGUF")
    assert "text.gguf: not a GGUF file" in refused("convert --source text.gguf --target x", capsys, "x")
    (here / "old.gguf").write_bytes(b"GGUF" + bytes([1, 0, 0, 0]) * 9)
    assert "old.gguf: GGUF of version 1" in refused("convert --source old.gguf --target x", capsys, "x")
    big = gguf.GGUFWriter("big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    odd = gguf.GGUFWriter("odd.gguf", "llama")
    odd.add_tensor("output.weight", np.zeros((2, 22), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q5_0)
    for writer in (big, odd):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert "big.gguf: a big-endian GGUF file" in refused("convert --source big.gguf --target x", capsys, "x")
    error = refused("convert --source odd.gguf --target x", capsys, "x")
    assert "odd.gguf: output.weight is Q5_0, only F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K" in error


def test_a_target_that_is_there_is_left_alone(made, here, capsys):
    (here / "x.gguf").write_text("mine")
    assert rationalyst(f"convert --source {made}/model --target x.gguf") == 1
    assert "x.gguf: exists already; give a new file" in capsys.readouterr().err
    assert (here / "x.gguf").read_text() == "mine"


def test_options_that_have_no_use_are_refused(made, here, capsys):
    lines = {
        f"--source {made}/model.gguf --target x.gguf": "is a file already",
        f"--source {made}/model.gguf --target x --dtype q8_0": "--dtype q8_0 is for GGUF files that are",
        f"--source {made}/model.gguf --target x --verify true": "--verify is for checkpoint folders",
        f"--source {made}/model.gguf --target x --tokenizer {made}/model": "--tokenizer is for checkpoint",
        f"--source {made}/model --target x.gguf --verify true": "--verify is for Hugging Face checkpoints",
        f"--source {made}/model --target x --dtype q8_0": "--dtype q8_0 is for GGUF files; x",
        f"--source {made}/model --target x --dtype float16": "--dtype float16 is for GGUF files; x",
    }
    for line, needle in lines.items():
        assert rationalyst(f"convert {line}") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and needle in error
    assert not list(here.iterdir())


def test_weights_that_do_not_fit_are_refused_and_nothing_is_left(made, here, capsys):
    save_small(here / "model")
    stored = tensors(here / "model")
    stored["model.layers.1.mlp.up_proj.weight"][3, 3] = 70000
    save_file(stored, here / "model" / "model.safetensors")
    error = refused("convert --source model --target x.gguf --dtype float16", capsys, "x")
    assert "x.gguf: blk.1.ffn_up.weight: has a weight beyond 65,504" in error
    assert rationalyst("convert --source model --target model.gguf") == 0
    capsys.readouterr()
    error = refused("convert --source model.gguf --target x --dtype float16", capsys, "x")
    assert "model.gguf: blk.1.ffn_up.weight: has a weight beyond 65,504" in error
    save_small(here / "odd", LlamaConfig(VOCABULARY, 16, 64, 2, 2, 1, 8, eos_token_id=1))
    error = refused("convert --source odd --target x.gguf --dtype q8_0", capsys, "x")
    assert "x.gguf: model.embed_tokens.weight has rows of 16, and q8_0 takes 32 at a time" in error


def test_without_the_package_only_quantized_weights_are_refused(made, here, capsys, monkeypatch):
    assert rationalyst(f"convert --source {made}/model --target q.gguf --dtype q8_0") == 0
    capsys.readouterr()
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    assert rationalyst(f"convert --source {made}/model.gguf --target plain") == 0
    capsys.readouterr()
    error = refused("convert --source q.gguf --target x", capsys, "x")
    assert "gguf is not installed: pip install 'rationalyst_jax[gguf]'" in error
    assert rationalyst(f"convert --source {made}/model --target x.gguf --dtype q8_0") == 1


def test_norms_are_exact_whatever_the_rest_is_written_in(made, here):
    assert rationalyst(f"convert --source {made}/model --target small.gguf --dtype bfloat16") == 0
    assert rationalyst("convert --source small.gguf --target back") == 0
    ours, theirs = tensors(here / "back"), tensors(made / "model")
    for key, value in theirs.items():
        wanted = value if value.ndim == 1 else value.astype(jnp.bfloat16).astype(np.float32)
        assert np.array_equal(ours[key], wanted), key
