"""Tokenizers of Hugging Face checkpoints."""

from collections.abc import Iterable
from pathlib import Path

import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

# Some versions of transformers lose a tokenizer's own rules where tokenizer_config.json names another class.
_SCRIPTS = "Añb 12,345.6\n\tНет 中文 한 🙂 x=[y]"


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer in the local checkpoint folder `path`, with its chat template if it has one.

    Raises ValueError when the folder holds no readable tokenizer.json, or one whose tokens spell another text
    than the one encoded.
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
    if not _spells(tokenizer, _SCRIPTS):
        # Not every tokenizer knows every character: the file itself tells whether this one does.
        alone = Tokenizer.from_file(str(path / "tokenizer.json"))
        if alone.decode(alone.encode(_SCRIPTS, add_special_tokens=False).ids) == _SCRIPTS:
            raise ValueError(
                f"{path}: transformers {transformers.__version__} makes another tokenizer of tokenizer.json: "
                "what it encodes it does not decode to the same text; install another version"
            )
    return tokenizer


def _spells(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the tokens of a text are decoded to it."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def marker_ids(tokenizer: PreTrainedTokenizerBase, markers: Iterable[str]) -> tuple[int, ...]:
    """The token id of each marker string; raises ValueError for one the tokenizer has no single token for."""
    return single_tokens(tokenizer, markers, "suppress")


def single_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], setting: str) -> tuple[int, ...]:
    """The token id of each text; raises ValueError naming the setting for one that is not a single token."""
    ids = []
    for text in texts:
        encoded = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(encoded) != 1:
            raise ValueError(f"{setting}: {text!r} is {len(encoded)} tokens of this tokenizer, not one")
        ids.append(encoded[0])
    return tuple(ids)
