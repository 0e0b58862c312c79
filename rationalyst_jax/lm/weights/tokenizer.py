"""Tokenizers of Hugging Face checkpoints."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import transformers
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rationalyst_jax.files.whole import read_json, write_json

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


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Writes the files of a tokenizer that was made here into the folder `path`.

    Version 5 of transformers names a class that version 4 does not have; the files name one of both.
    """
    tokenizer.save_pretrained(path)
    file = path / "tokenizer_config.json"
    write_json(file, read_json(file) | {"tokenizer_class": "PreTrainedTokenizerFast"})


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


# Byte-level BPE writes each byte as a character that can be seen: a printable one of Latin-1 as itself, the
# others, in order, as the characters from 256 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_UNSEEN = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_UNSEEN)}
_FALLBACK = re.compile("<0x([0-9A-F]{2})>")
_NEIGHBOUR = "a"  # decoders treat the first token of a text in another way than the rest


def token_bytes(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[bytes]:
    """The bytes that each token id below `vocabulary` stands for inside a text, UTF-8 where they are whole.

    The bytes of a sequence, one token after the other, are those of its text: half a character keeps its
    bytes, a word its leading space. An id without a token has none.
    """
    backend = cast(Tokenizer, tokenizer.backend_tokenizer)
    decoder = backend.decoder
    kind = b"" if decoder is None else decoder.__getstate__()
    byte_level = b'"ByteLevel"' in kind
    fallback = b'"ByteFallback"' in kind

    def spelled(token: str | None) -> bytes:
        if token is None:
            return b""
        if byte_level:
            known = all(character in _BYTE_OF for character in token)
            return bytes(map(_BYTE_OF.__getitem__, token)) if known else token.encode()
        if fallback and (byte := _FALLBACK.fullmatch(token)):
            return bytes.fromhex(byte[1])
        if decoder is None:  # tokens are then joined by spaces
            return f" {token}".encode()
        return decoder.decode([_NEIGHBOUR, token]).removeprefix(_NEIGHBOUR).encode()

    return [spelled(backend.id_to_token(token)) for token in range(vocabulary)]
