"""What only an NVIDIA GPU can show: `JAX_PLATFORMS=cuda,cpu pytest -m gpu tests/test_gpu.py`.

Nothing here sets a precision of matrix products: float32 means float32 whoever asks.
"""

import itertools
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_attention
import test_logprobs
import test_paged_attention
from flax import nnx
from tokenizers import Tokenizer, models
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rationalyst_jax.lm.attention import tree_attention
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import GenerateRequest, ScoreRequest
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama, tree_attend
from rationalyst_jax.lm.trees.logprobs import token_logprobs
from rationalyst_jax.lm.weights.hf import save_llama

torch = pytest.importorskip("torch", reason="torch is the oracle here")
pytestmark = pytest.mark.gpu

END = 511  # the end of a sequence
ALL_FORESTS = test_attention.rows_of(*test_attention.FORESTS.values())


@pytest.mark.parametrize(("N", "K", "H"), test_attention.HEADS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *itertools.product(["triton"], ["bfloat16", "float16", "float32"]),
        *itertools.product(["xla"], ["bfloat16", "float32"]),
        *itertools.product(["cudnn"], ["bfloat16", "float16"]),
    ],
)
def test_attention_over_trees_and_its_gradients(name, dtype, N, K, H):
    attention = jax.jit(partial(tree_attention, implementation=name))
    test_attention.check(attention, ALL_FORESTS, N, K, H, dtype)


@pytest.mark.parametrize("name", ["triton", "xla"])
def test_blocks_passed_over_are_not_even_read(name):
    attention = jax.jit(partial(tree_attention, implementation=name))
    test_attention.check_that_blocks_passed_over_are_not_read(attention)


@pytest.mark.parametrize(("singles", "pieces", "trunk"), [(1, 0, 0), (5, 2, 3), (11, 3, 7)])
def test_attention_over_pages(singles, pieces, trunk, monkeypatch):
    check = test_paged_attention.test_every_query_sees_its_own_tokens_and_those_before
    check(singles, pieces, trunk, "gpu", monkeypatch)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("suppress", [(), (0, 5, 20)])
def test_log_probabilities_and_their_gradients(dtype, suppress):
    test_logprobs.check(test_logprobs.draw(2, 30, 40), dtype, suppress)


def test_log_probabilities_over_several_tiles_of_words():
    rng = np.random.default_rng(0)
    hidden_BTD = rng.normal(size=(2, 1024, 256))
    head_VD = rng.normal(size=(20_000, 256)) / 16
    target_BP = rng.integers(0, 20_000, (2, 1024))
    place_BP = jnp.broadcast_to(jnp.arange(1024), (2, 1024))
    hidden, head = jnp.asarray(hidden_BTD, jnp.float32), jnp.asarray(head_VD, jnp.float32)
    got = jax.jit(token_logprobs)(hidden, head, place_BP, jnp.asarray(target_BP))
    logits_BTV = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64).T
    chosen_BP = np.take_along_axis(logits_BTV, target_BP[..., None], 2)[..., 0]
    np.testing.assert_allclose(got, chosen_BP - np.log(np.exp(logits_BTV).sum(2)), rtol=0, atol=2e-5)


@pytest.fixture(scope="module", params=[64, 128], ids=lambda H: f"H {H}")
def both(request, tmp_path_factory) -> tuple[Llama, LlamaForCausalLM]:
    """A random float32 Llama on the GPU, and the same in transformers, in float64 on the CPU."""
    config = LlamaConfig(
        512, 256, 512, 3, 4, 2, request.param, max_position_embeddings=1024, eos_token_id=511
    )
    model = Llama(config, rngs=nnx.Rngs(0))
    folder: Path = tmp_path_factory.mktemp("model")
    save_llama(model, folder)
    return model, LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def exact_logits(oracle: LlamaForCausalLM, tokens: tuple[int, ...]) -> np.ndarray:
    with torch.inference_mode():
        return oracle(torch.tensor([tokens])).logits[0].numpy()


def random_tokens(*lengths: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(0, END, length).tolist()) for length in lengths]


def test_float32_means_float32_in_the_model(both):
    """19 bits, which GPUs multiply in unless told otherwise, would be a thousand times further away."""
    model, oracle = both
    [tokens] = random_tokens(600)

    @jax.jit
    def logits(model: Llama) -> jax.Array:
        position_BT = jnp.arange(600)[None]
        hidden_BTD, _ = model(jnp.array([tokens]), position_BT, tree_attend(600 - position_BT))
        return hidden_BTD[0] @ model.output_VD().T

    np.testing.assert_allclose(logits(model), exact_logits(oracle, tokens), rtol=0, atol=3e-5)


def logprobs_after(oracle: LlamaForCausalLM, context: tuple[int, ...], tokens: tuple[int, ...], suppress=()):
    """Log-probabilities `[t, V]` at each of the tokens, float64."""
    logits_TV = exact_logits(oracle, context + tokens)[len(context) - 1 : -1]
    logits_TV[:, list(suppress)] = -np.inf
    return logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))


def test_the_engine_samples_and_scores_as_float64_does(both):
    model, oracle = both
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(512)}, unk_token="w0"))
    engine = Engine(model, PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{END}"))
    prompts = random_tokens(1, 2, 31, 32, 33, 100, 500, 700)
    asked = [GenerateRequest(prompt, 12, temperature=0, suppress=(END,)) for prompt in prompts]
    for request, [made] in zip(asked, engine.generate(asked), strict=True):
        logprobs_TV = logprobs_after(oracle, request.context, made.tokens, suppress=(END,))
        chosen_T = logprobs_TV[np.arange(12), list(made.tokens)]
        assert (chosen_T >= logprobs_TV.max(axis=1) - 1e-4).all()  # the likeliest, but for rounding
        np.testing.assert_allclose(made.logprobs, chosen_T, rtol=0, atol=3e-5)
    scored = [ScoreRequest(prompt, prompts[-1][:9]) for prompt in prompts]
    for request, logprobs in zip(scored, engine.score(scored), strict=True):
        logprobs_TV = logprobs_after(oracle, request.context, request.continuation)
        chosen_T = logprobs_TV[np.arange(9), list(request.continuation)]
        np.testing.assert_allclose(logprobs, chosen_T, rtol=0, atol=3e-5)
