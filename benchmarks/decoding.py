"""Decoding alone, in tokens/s: what the prompts take is left out. Greedily, and nobody stops early."""

from collections.abc import Sequence
from typing import Any

import torch
from measure import best_of

from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import GenerateRequest

Prompts = Sequence[tuple[int, ...]]


def ours(engine: Engine, prompts: Prompts, new: int, ends: tuple[int, ...]) -> float:
    """The prompts are in the cache; words that could end a text are suppressed."""
    engine.forget()
    requests = [GenerateRequest(prompt, new, temperature=0, suppress=ends) for prompt in prompts]
    seconds, results = best_of(3, lambda: engine.generate(requests))
    assert all(len(one.tokens) == new for [one] in results)
    return len(prompts) * new / seconds


def by_transformers(model: Any, prompts: Prompts, new: int, pad: int) -> float:
    """Prompts of one length; a run that writes one token alone is taken off."""
    ids = torch.tensor(prompts, device=model.device)

    def generate(count: int) -> Any:
        with torch.inference_mode():
            return model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=count,
                min_new_tokens=count,
                pad_token_id=pad,
            )

    whole, _ = best_of(3, lambda: generate(new))
    first, _ = best_of(3, lambda: generate(1))
    return len(prompts) * (new - 1) / (whole - first)
