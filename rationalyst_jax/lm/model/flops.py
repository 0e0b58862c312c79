"""How many operations a Llama's mathematics asks for, whatever a program does on top: the numerator of MFU.

An operation is a multiplication or an addition, so a matrix product costs 2 for each weight and token. A
token's forward pass is a product with every projection; attention is two products of H terms, scores and
weighted sum, for each query head and each pair of places of which one sees the other. The backward pass needs
twice the forward's: gradients of the inputs and of the weights (Kaplan et al., arXiv 2001.08361, section 2.1;
PaLM, arXiv 2204.02311, appendix B, where attention counts all pairs; here those that see each other). Not
counted: norms, rotary embeddings and softmax, which are small; the embedding, which is looked up; whatever is
computed a second time to save memory.

`tokens` are nodes of token trees. `attended` counts (query, key) pairs: the sum over nodes of position + 1.
`targets` are the places whose log-probability is asked for, the only ones that meet the output head; None:
all.
"""

from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.encoder import EncoderConfig


def forward_flops(config: LlamaConfig, tokens: int, attended: int, targets: int | None = None) -> int:
    """Operations to score what is asked for."""
    return 2 * _products(config, tokens, targets) + 2 * _attention_products(config, attended)


def attended_keys(start: int, stop: int) -> int:
    """(query, key) pairs of the tokens of one sequence from one place up to another."""
    return (stop * (stop + 1) - start * (start + 1)) // 2


def training_flops(
    config: LlamaConfig, tokens: int, attended: int, targets: int | None = None, lora: bool = False
) -> int:
    """Operations of the forward and the backward pass.

    With `lora` only adapters are trained: the model's weights need no gradient. The adapters' own operations
    are left out: at rank r they are about 3 r / D of the rest.
    """
    weights = 4 if lora else 6
    return weights * _products(config, tokens, targets) + 6 * _attention_products(config, attended)


def encoder_flops(config: EncoderConfig, tokens: int, attended: int) -> int:
    """Operations of a sentence encoder's forward pass. A text's tokens all see each other: `attended` is the
    sum of the squares of lengths."""
    D = config.hidden_size
    layer = 4 * D * D + 2 * D * config.intermediate_size
    return 2 * config.num_layers * (tokens * layer + attended * 2 * D)


def _products(config: LlamaConfig, tokens: int, targets: int | None) -> int:
    """Multiplications of activations with weights."""
    D = config.hidden_size
    F = config.intermediate_size
    N = config.num_heads
    K = config.num_kv_heads
    H = config.head_dim
    layer = D * (N + 2 * K) * H + N * H * D + 3 * D * F
    head = D * config.vocab_size
    return tokens * config.num_layers * layer + (tokens if targets is None else targets) * head


def _attention_products(config: LlamaConfig, attended: int) -> int:
    """Multiplications of activations with each other."""
    return attended * config.num_layers * 2 * config.num_heads * config.head_dim
