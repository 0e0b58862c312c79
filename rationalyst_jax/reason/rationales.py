"""RATIONALYST's rationales for texts that are given: one for what comes next after each."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rationalyst_jax.files.rows import Row
from rationalyst_jax.files.settings import digest
from rationalyst_jax.prompts.prompt import Prompt
from rationalyst_jax.reason.blocks import Tell, rows_in_blocks
from rationalyst_jax.roles.drive import ask
from rationalyst_jax.roles.role import Role, Sampling
from rationalyst_jax.roles.usage import Usage


def text_digests(texts: Mapping[str, str]) -> dict[str, str]:
    """Of each text, by its name: what its rationale depends on."""
    return {name: digest([text.encode()]) for name, text in texts.items()}


def rationalize_texts(
    texts: Mapping[str, str],
    rationalyst: Role,
    prompt: Prompt,
    max_tokens: int,
    block: int,
    path: Path,
    tell: Tell,
    *,
    stage: str,
    what: str,
) -> dict[str, str]:
    """What RATIONALYST writes after each text, greedily and of at most `max_tokens` tokens, by its name.

    The JSONL `path` has a row for each, which is continued. Raises as `rows_in_blocks`.
    """
    how = Sampling(max_tokens, temperature=0, stop=(prompt.closing,) if prompt.closing else ())

    async def write(name: str) -> Row:
        request = rationalyst.to_generate(prompt, {"preceding": texts[name]}, how)
        [handle] = await ask((rationalyst.model, request))
        used = Usage.of(rationalyst.model, handle)
        return {"rationale": handle.result[0].text, "tokens": {"rationalyst": asdict(used)}}

    rows = rows_in_blocks(
        text_digests(texts), write, [rationalyst.model], block, path, tell, stage=stage, what=what
    )
    return {str(row["id"]): str(row["rationale"]) for row in rows}
