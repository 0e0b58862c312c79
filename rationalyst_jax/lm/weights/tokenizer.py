"""Tokenizers of Hugging Face checkpoints."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from tokenizers import Tokenizer
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
