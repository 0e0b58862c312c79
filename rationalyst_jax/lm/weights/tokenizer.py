"""Tokenizers of Hugging Face checkpoints."""

from collections.abc import Iterable
from pathlib import Path

import transformers
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_SCRIPTS = "Añb 12,345.6\n\tНет 中文 한 🙂 x=[y]"


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer in the local checkpoint folder `path`, with its chat template if it has one.

    Raises ValueError when the folder holds no readable tokenizer.json, or one of which this version of
    transformers makes another tokenizer.
    """
    path = Path(path)
    # Without this check transformers would take a path that does not exist for a name on the hub.
    if not (path / "tokenizer.json").is_file():
        raise ValueError(f"{path}: no tokenizer.json")
    try:
        # AutoTokenizer would take the class that tokenizer_config.json names, which may have its own rules of
        # splitting instead of tokenizer.json's: as a GPT2TokenizerFast Llama 3's gives other tokens.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a readable tokenizer: {reason}") from error
    if not _is_of_file(tokenizer, path / "tokenizer.json"):
        raise ValueError(
            f"{path}: transformers {transformers.__version__} makes another tokenizer of tokenizer.json than "
            "the file describes: install another version"
        )
    return tokenizer


def _is_of_file(tokenizer: PreTrainedTokenizerBase, file: Path) -> bool:
    """Whether a text of several scripts is encoded and decoded as the file alone has it."""
    described = Tokenizer.from_file(str(file))
    described.no_truncation()
    described.no_padding()
    ids = tokenizer(_SCRIPTS, add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return ids == described.encode(_SCRIPTS, add_special_tokens=False).ids and text == described.decode(
        ids, skip_special_tokens=False
    )


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
