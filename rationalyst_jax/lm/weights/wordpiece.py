"""Tokenizers that cut words, not texts: the pieces of a text are those of its parts, one after the other.

So a text can be tokenized sentence by sentence, and windows cut between them without doing it again. Imports
no jax: worker processes use this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

# Words of several scripts, and signs, apart and together.
_APART = ("Añb 12,345.6 it's", "\\frac{1}{2}\tНет", "[SEP] 中文 한 🙂", "x=[y]")


@dataclass(frozen=True)
class WordPieces:
    """The tokenizer in a tokenizer.json that puts one token before a text and one after it.

    size: how many tokens it has. It truncates nothing and pads nothing, whatever the file says, and a special
    token that a text spells is text. Only the file's path goes to other processes.
    """

    file: Path
    opening: int
    closing: int
    size: int

    @cached_property
    def _tokenizer(self) -> Any:
        return _opened(self.file)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without those around it."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in encoded]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_tokenizer"}


def open_word_pieces(file: Path) -> WordPieces:
    """The tokenizer in a file. Raises FileNotFoundError, or ValueError naming the file where it cannot be
    read, puts something else around a text, or makes other tokens of a text than of its parts."""
    tokenizer = _opened(file)
    around = tokenizer.encode("").ids
    if len(around) != 2:
        raise ValueError(f"{file}: puts {len(around)} tokens around a text, supported are two")
    pieces = WordPieces(file, around[0], around[1], tokenizer.get_vocab_size())
    [whole] = pieces.encode([" ".join(_APART)])
    if whole != [id for part in pieces.encode(_APART) for id in part]:
        raise ValueError(f"{file}: makes other tokens of a text than of its words, which is not supported")
    return pieces


def _opened(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        tokenizer: Any = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for a damaged file
        raise ValueError(f"{file}: not a readable tokenizer: {' '.join(str(error).split())}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer
