"""Our Llama computes what Hugging Face's does, and what a plain float64 reading of the equations does."""

import json
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx
from safetensors.numpy import save_file

from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama, tree_attend
from rationalyst_jax.lm.weights.hf import load_llama

torch = pytest.importorskip("torch", reason="torch is the oracle here")

LLAMA3_1 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_2 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@jax.jit
def logits_BTV(model: Llama, tokens_BT: jax.Array) -> jax.Array:
    """Logits of plain causal rows."""
    B, T = tokens_BT.shape
    position_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    hidden_BTD, _ = model(tokens_BT, position_BT, tree_attend(T - position_BT))
    return hidden_BTD @ model.output_VD().T


def tiny_hugging_face(**changes) -> transformers.LlamaForCausalLM:
    """A random Llama with weights large enough that every part of it moves the logits."""
    sizes: dict[str, Any] = {
        "vocab_size": 160,
        "hidden_size": 48,
        "intermediate_size": 88,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    }
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | changes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, std = (1.0, 0.3) if "norm" in name else (0.0, 0.15)
            parameter.normal_(mean, std)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1, "tie_word_embeddings": True},
        {"head_dim": 20},
        {"rms_norm_eps": 0.3, "rope_theta": 500000.0},
        {"rope_theta": 77.0, "head_dim": 2, "tie_word_embeddings": True},
        {"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 64, **LLAMA3_1}},
        {
            "rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 128, **LLAMA3_2},
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "head_dim": 16,
        },
    ],
    ids=lambda changes: "-".join(changes) or "default",
)
def test_logits_equal_hugging_face_over_600_tokens(changes, tmp_path):
    theirs = tiny_hugging_face(**changes)
    theirs.save_pretrained(tmp_path)
    tokens_BT = np.random.default_rng(0).integers(0, 160, (2, 600))
    with torch.no_grad():
        expected_BTV = theirs(torch.from_numpy(tokens_BT)).logits.numpy()
    model = load_llama(tmp_path)
    np.testing.assert_allclose(logits_BTV(model, jnp.asarray(tokens_BT)), expected_BTV, rtol=0, atol=1e-4)


def test_rope_scaling_moves_the_logits_of_the_parity_test(tmp_path):
    scaling = {"rope_type": "llama3", "original_max_position_embeddings": 64, **LLAMA3_1}
    tiny_hugging_face(rope_scaling=scaling).save_pretrained(tmp_path)
    model = load_llama(tmp_path)
    tokens_BT = jnp.asarray(np.random.default_rng(0).integers(0, 160, (1, 600)))
    scaled = logits_BTV(model, tokens_BT)
    model.config = replace(model.config, rope_scaling=None)
    assert float(jnp.abs(scaled - logits_BTV(model, tokens_BT)).max()) > 0.1


@pytest.mark.parametrize("remat", ["dots", "full", "offload"])
def test_rematerialised_layers_give_the_same_gradient(remat, tmp_path):
    tiny_hugging_face().save_pretrained(tmp_path)
    graph, weights = nnx.split(load_llama(tmp_path))
    tokens_BT = jnp.arange(32)[None]

    def gradient(remat):
        def loss(weights):
            model = nnx.merge(graph, weights)
            attend = tree_attend(32 - tokens_BT)
            hidden_BTD, _ = model(tokens_BT, tokens_BT, attend, remat=remat)
            return jnp.mean(jax.nn.logsumexp(hidden_BTD @ model.output_VD().T, axis=-1))

        return jax.jit(jax.grad(loss))(weights)

    def equal(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    jax.tree.map(equal, gradient(remat), gradient("none"))


@dataclass(frozen=True)
class Stories:
    """The trained weights of llama2.c's stories260K.bin in float64, `[out, in]`, with interleaved RoPE."""

    heads: int
    kv_heads: int
    emb: np.ndarray
    rms_att: np.ndarray
    wq: np.ndarray
    wk: np.ndarray
    wv: np.ndarray
    wo: np.ndarray
    rms_ffn: np.ndarray
    w1: np.ndarray
    w2: np.ndarray
    w3: np.ndarray
    rms_final: np.ndarray

    @classmethod
    def read(cls, file) -> "Stories":
        raw = file.read_bytes()
        D, F, L, N, K, V, _ = (int(n) for n in np.frombuffer(raw, np.int32, 7))
        kv = D // N * K
        shapes = [(V, D), (L, D), (L, D, D), (L, kv, D), (L, kv, D), (L, D, D), (L, D)]
        shapes += [(L, F, D), (L, D, F), (L, F, D), (D,)]
        weights = []
        at = 28
        for shape in shapes:
            count = int(np.prod(shape))
            weights.append(np.frombuffer(raw, np.float32, count, at).reshape(shape).astype(np.float64))
            at += 4 * count
        return cls(N, K, *weights)

    def greedy(self, count: int) -> list[int]:
        """`count` tokens from BOS (1), one at a time, keys and values remembered."""
        L, D = self.rms_att.shape
        H = D // self.heads
        frequency = 10000.0 ** (-np.arange(0, H, 2) / H)
        keys, values = [[] for _ in range(L)], [[] for _ in range(L)]
        token = 1
        tokens = []

        def norm(x, scale):
            return scale * x / np.sqrt(np.mean(x * x) + 1e-5)

        def rotate(x_NH, position):
            pairs = (x_NH[:, 0::2] + 1j * x_NH[:, 1::2]) * np.exp(1j * position * frequency)
            return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x_NH.shape)

        for position in range(count):
            x = self.emb[token]
            for i in range(L):
                h = norm(x, self.rms_att[i])
                q = rotate((self.wq[i] @ h).reshape(self.heads, H), position)
                keys[i].append(rotate((self.wk[i] @ h).reshape(self.kv_heads, H), position))
                values[i].append((self.wv[i] @ h).reshape(self.kv_heads, H))
                out = []
                for n in range(self.heads):
                    k = n // (self.heads // self.kv_heads)
                    score = np.array([key[k] @ q[n] for key in keys[i]]) / np.sqrt(H)
                    weight = np.exp(score - score.max())
                    out.append(weight @ np.array([value[k] for value in values[i]]) / weight.sum())
                x = x + self.wo[i] @ np.concatenate(out)
                h = norm(x, self.rms_ffn[i])
                gate = self.w1[i] @ h
                x = x + self.w2[i] @ (gate / (1 + np.exp(-gate)) * (self.w3[i] @ h))
            token = int(np.argmax(self.emb @ norm(x, self.rms_final)))
            tokens.append(token)
        return tokens

    def save_hugging_face(self, folder) -> None:
        """Writes the weights with half-split RoPE: each head's even places first, then its odd ones."""
        L, D = self.rms_att.shape
        H = D // self.heads

        def half_split(rows):
            return rows.reshape(-1, H // 2, 2, D).swapaxes(1, 2).reshape(rows.shape)

        tensors = {"model.embed_tokens.weight": self.emb, "model.norm.weight": self.rms_final}
        for i in range(L):
            tensors |= {
                f"model.layers.{i}.input_layernorm.weight": self.rms_att[i],
                f"model.layers.{i}.self_attn.q_proj.weight": half_split(self.wq[i]),
                f"model.layers.{i}.self_attn.k_proj.weight": half_split(self.wk[i]),
                f"model.layers.{i}.self_attn.v_proj.weight": self.wv[i],
                f"model.layers.{i}.self_attn.o_proj.weight": self.wo[i],
                f"model.layers.{i}.post_attention_layernorm.weight": self.rms_ffn[i],
                f"model.layers.{i}.mlp.gate_proj.weight": self.w1[i],
                f"model.layers.{i}.mlp.down_proj.weight": self.w2[i],
                f"model.layers.{i}.mlp.up_proj.weight": self.w3[i],
            }
        save_file(
            {key: np.ascontiguousarray(value, np.float32) for key, value in tensors.items()},
            folder / "model.safetensors",
        )
        config = LlamaConfig(
            vocab_size=len(self.emb),
            hidden_size=D,
            intermediate_size=self.w1.shape[1],
            num_layers=L,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=H,
            rope_theta=10000.0,
            tie_embeddings=True,
        )
        (folder / "config.json").write_text(json.dumps(config.to_hf()))


def test_trained_weights_write_the_same_story_as_plain_float64(shared, tmp_path):
    stories = Stories.read(shared / "tiny_llama" / "stories260K.bin")
    stories.save_hugging_face(tmp_path)
    model = load_llama(tmp_path)
    tokens_BT = np.zeros((1, 256), np.int32)  # one compilation: later places are empty and unseen
    tokens_BT[0, 0] = 1
    for place in range(200):
        tokens_BT[0, place + 1] = int(jnp.argmax(logits_BTV(model, jnp.asarray(tokens_BT))[0, place]))
    assert tokens_BT[0, 1:201].tolist() == stories.greedy(200)
