"""Tokenizers of Hugging Face checkpoints."""

from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer in the local checkpoint folder `path`, with its chat template if it has one.

    Raises ValueError when the folder holds no readable tokenizer.json or no BOS token.
    """
    path = Path(path)
    # Without this check transformers would take a path that does not exist for a name on the hub.
    if not (path / "tokenizer.json").is_file():
        raise ValueError(f"{path}: no tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__  # it may be config.json that is broken
        raise ValueError(f"{path}: not a readable tokenizer: {reason}") from error
    if tokenizer.bos_token_id is None:
        raise ValueError(f"{path}: the tokenizer names no bos_token")
    return tokenizer


def marker_ids(tokenizer: PreTrainedTokenizerBase, markers: Iterable[str]) -> tuple[int, ...]:
    """The token id of each marker string; raises ValueError for one the tokenizer has no single token for."""
    ids = []
    for marker in markers:
        encoded = tokenizer(marker, add_special_tokens=False)["input_ids"]
        if len(encoded) != 1:
            raise ValueError(f"suppress: {marker!r} is {len(encoded)} tokens of this tokenizer, not one")
        ids.append(encoded[0])
    return tuple(ids)
