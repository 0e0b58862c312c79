"""The tokenizer in a GGUF file, to the form of Hugging Face and back.

llama.cpp keeps tokens, their types and the merges, and of the rule that cuts a text into words only a name.
`PRE_TOKENIZERS` has the rules that are known by that name.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rationalyst_jax.files.whole import read_json
from rationalyst_jax.lm.weights.gguf.container import Gguf, Value
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer

_GGML = "tokenizer.ggml."
BOS_ID = f"{_GGML}bos_token_id"
_TEMPLATE = "tokenizer.chat_template"
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_LLAMA_WORD = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """A rule by llama.cpp's name, as the steps of a tokenizer.json.

    `whole_words`: a word that is a token is taken as such, without merges. `opens`: what llama.cpp does about
    BOS where the file doesn't say.
    """

    steps: Sequence[Mapping[str, Any]]
    whole_words: bool
    opens: bool


PRE_TOKENIZERS = {
    # Llama 3: words by its own expression, digits in threes.
    "llama-bpe": PreTokenizer(
        (
            {"type": "Split", "pattern": {"Regex": _LLAMA_WORD}, "behavior": "Isolated", "invert": False},
            _BYTE_LEVEL | {"use_regex": False},
        ),
        whole_words=True,
        opens=True,
    ),
    # SmolLM: each digit alone, and words as GPT-2 cuts them.
    "smollm": PreTokenizer(
        ({"type": "Digits", "individual_digits": True}, _BYTE_LEVEL), whole_words=False, opens=False
    ),
}
# Types of tokens: written out in texts, controlling, added by users, and a mere place of the vocabulary.
_NORMAL, _CONTROL, _ADDED, _UNUSED = 1, 3, 4, 5
_EOM = "<|eom_id|>"  # Llama 3.1: the text goes on after a tool has answered


def make_tokenizer(gguf: Gguf) -> PreTrainedTokenizerFast:
    """The tokenizer in a file, with its chat template if it has one.

    Raises ValueError naming the file and the key that is missing, malformed, or asks for another tokenizer.
    """
    try:
        return _made(gguf.metadata)
    except ValueError as error:
        raise ValueError(f"{gguf.path}: {error}") from None


def ends_of(gguf: Gguf) -> list[int]:
    """The tokens that end a text, in the order of their ids: the file has three places for them."""
    keys = (f"{_GGML}{name}_token_id" for name in ("eos", "eot", "eom"))
    return sorted({gguf.metadata[key] for key in keys if key in gguf.metadata})


def _made(metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    model, pre = (_of(metadata, key, str) for key in ("model", "pre"))
    if model != "gpt2":
        raise ValueError(f"{_GGML}model {model!r} is not supported, only 'gpt2' (byte-level BPE)")
    if pre not in PRE_TOKENIZERS:
        raise ValueError(f"{_GGML}pre {pre!r} is not supported, only {', '.join(PRE_TOKENIZERS)}")
    if metadata.get(f"{_GGML}add_eos_token"):
        raise ValueError(f"{_GGML}add_eos_token is not supported")
    tokens, types, merges = _vocabulary(metadata)
    special = {
        f"{name}_token": _token(metadata, tokens, id_name)
        for name, id_name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    for name in ("eot", "eom"):
        _token(metadata, tokens, name)
    backend = _bpe(PRE_TOKENIZERS[pre], tokens, types, merges)
    for kind, special_ones in ((_CONTROL, True), (_ADDED, False)):
        found = [token for token, of in zip(tokens, types, strict=True) if of == kind]
        backend.add_tokens([AddedToken(t, special=special_ones, normalized=False) for t in found])
    if metadata.get(f"{_GGML}add_bos_token", PRE_TOKENIZERS[pre].opens):
        bos = special["bos_token"]
        if bos is None:
            raise ValueError(f"no {BOS_ID}, which opens every text")
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"],
            pair=[bos, "$A", f"{bos}:1", "$B:1"],
            special_tokens=[(bos, tokens.index(bos))],
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in special.items() if token is not None},
    )
    template = metadata.get(_TEMPLATE)
    if not isinstance(template, str | None):
        raise ValueError(f"{_TEMPLATE} is no str")
    made.chat_template = template
    return made


def _vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[int], list[str]]:
    """The tokens, their types, and the merges. Raises ValueError naming the key that is no such list."""
    tokens, types, merges = (_of(metadata, key, list) for key in ("tokens", "token_type", "merges"))
    if len(tokens) != len(types):
        raise ValueError(f"{_GGML}token_type has {len(types)} values for {len(tokens)} tokens")
    for key, texts in (("tokens", tokens), ("merges", merges)):
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{_GGML}{key} holds what is no text")
    if not tokens:
        raise ValueError(f"{_GGML}tokens is empty")
    [(token, times)] = Counter(tokens).most_common(1)
    if times > 1:
        raise ValueError(f"{_GGML}tokens has {token!r} twice")
    if others := set(types) - {_NORMAL, _CONTROL, _ADDED, _UNUSED}:
        raise ValueError(f"{_GGML}token_type: type {min(others)} is not supported in byte-level BPE")
    return tokens, types, merges


def _bpe(pre: PreTokenizer, tokens: list[str], types: list[int], merges: list[str]) -> Tokenizer:
    """The tokenizer of these tokens and merges alone."""
    described = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre.steps},
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": {t: i for i, (t, of) in enumerate(zip(tokens, types, strict=True)) if of != _UNUSED},
            "merges": [merge.split(" ") for merge in merges],
            "ignore_merges": pre.whole_words,
        },
    }
    try:
        return Tokenizer.from_str(json.dumps(described))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ValueError(f"{_GGML}merges: {error}") from None


def _of(metadata: Mapping[str, Any], name: str, kind: type) -> Any:
    """A value that must be there. Raises ValueError naming its key."""
    value = metadata.get(f"{_GGML}{name}")
    if not isinstance(value, kind):
        raise ValueError(f"no {_GGML}{name}" if value is None else f"{_GGML}{name} is no {kind.__name__}")
    return value


def _token(metadata: Mapping[str, Any], tokens: list[str], name: str) -> str | None:
    """The token of an id among the metadata, None where there is none. Raises ValueError naming the key."""
    key = f"{_GGML}{name}_token_id"
    token = metadata.get(key)
    if token is None:
        return None
    if not isinstance(token, int) or not 0 <= token < len(tokens):
        raise ValueError(f"{key} {token!r} is no token: there are {len(tokens)}")
    return tokens[token]


def metadata_of(path: Path, vocabulary: int, bos: int | None, ends: Sequence[int]) -> dict[str, Value]:
    """The tokenizer in the folder `path` as a GGUF file has it, for a model of so many tokens.

    `bos` and `ends` are those of the model. Raises ValueError naming the file and what llama.cpp has no place
    for.
    """
    tokenizer = load_tokenizer(path)
    file = path / "tokenizer.json"
    raw = read_json(file)
    try:
        pre = _pre_tokenizer(raw)
        tokens, types = _tokens(raw, vocabulary)
        opening = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else bos
        found: dict[str, Value | None] = {
            "model": "gpt2",
            "pre": pre,
            "tokens": tokens,
            "token_type": types,
            "merges": [_merge(merge) for merge in raw["model"]["merges"]],
            "bos_token_id": opening,
            **_end_ids(ends, tokenizer.eos_token_id, tokens),
            "unknown_token_id": tokenizer.unk_token_id,
            "padding_token_id": tokenizer.pad_token_id,
            "add_bos_token": _opens(tokenizer, opening),
            "add_eos_token": False,
        }
        if not isinstance(tokenizer.chat_template, str | None):
            raise ValueError("has several chat templates, where a GGUF file has one")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    named = {f"{_GGML}{name}": value for name, value in found.items() if value is not None}
    return named if tokenizer.chat_template is None else named | {_TEMPLATE: tokenizer.chat_template}


def _pre_tokenizer(raw: Mapping[str, Any]) -> str:
    """llama.cpp's name of what cuts a text into words. Raises ValueError where none is known here."""
    model = raw["model"]
    if model.get("type") != "BPE" or (raw.get("decoder") or {}).get("type") != "ByteLevel":
        raise ValueError(
            f"a tokenizer of type {model.get('type')}, only byte-level BPE goes into a GGUF file"
        )
    for what, value in (
        ("a normalizer", raw.get("normalizer")),
        *((key, model.get(key)) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")),
        ("byte_fallback", model.get("byte_fallback")),
    ):
        if value:
            raise ValueError(f"{what} {value!r} is not supported in a GGUF file")
    rule = raw.get("pre_tokenizer") or {}
    steps = [_without_offsets(step) for step in rule.get("pretokenizers", [rule])]
    for name, pre in PRE_TOKENIZERS.items():
        if steps == [_without_offsets(step) for step in pre.steps]:
            if bool(model.get("ignore_merges")) != pre.whole_words:
                raise ValueError(f"ignore_merges must be {pre.whole_words} beside the rule {name}")
            return name
    raise ValueError(f"pre_tokenizer: none of those known here ({', '.join(PRE_TOKENIZERS)})")


def _without_offsets(step: Mapping[str, Any]) -> dict[str, Any]:
    """A step without what decides no token, and with the default that old files leave out."""
    defaults = {"use_regex": True} if step.get("type") == "ByteLevel" else {}
    return defaults | {key: value for key, value in step.items() if key != "trim_offsets"}


def _tokens(raw: Mapping[str, Any], vocabulary: int) -> tuple[list[str], list[int]]:
    """The tokens in order with their types; ids without one are unused."""
    ids = [*raw["model"]["vocab"].values(), *(added["id"] for added in raw["added_tokens"])]
    if max(ids) >= vocabulary:
        raise ValueError(f"has a token {max(ids)}, beyond the model's vocabulary of {vocabulary}")
    tokens = [f"[PAD{i}]" for i in range(vocabulary)]
    types = [_UNUSED] * vocabulary
    for token, i in raw["model"]["vocab"].items():
        tokens[i] = token
        types[i] = _NORMAL
    for added in raw["added_tokens"]:
        if any(added.get(key) for key in ("single_word", "lstrip", "rstrip")):
            raise ValueError(f"the token {added['content']!r} takes spaces with it, or stands alone only")
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _ADDED
    return tokens, types


def _merge(merge: str | Sequence[str]) -> str:
    """A merge as one string. Raises ValueError for tokens that have the space that stands between them."""
    text = merge if isinstance(merge, str) else " ".join(merge)
    if text.count(" ") != 1:
        raise ValueError(f"a merge of tokens with spaces, {merge!r}")
    return text


def _end_ids(ends: Sequence[int], eos: Any, tokens: Sequence[str]) -> dict[str, int]:
    """The tokens that end a text, in the three places for them."""
    if not ends:
        raise ValueError("no token ends a text (eos_token_id), and llama.cpp would take another one for it")
    first = eos if eos in ends else ends[0]
    named = {"eos_token_id": first}
    if max(ends) >= len(tokens):
        raise ValueError(f"eos_token_id {max(ends)} is beyond the vocabulary of {len(tokens)}")
    for end in ends:
        name = "eom_token_id" if tokens[end] == _EOM else "eot_token_id"
        if end != first and name in named:
            raise ValueError(f"eos_token_id {list(ends)}: a GGUF file has no place for so many")
        if end != first:
            named[name] = end
    return named


def _opens(tokenizer: PreTrainedTokenizerBase, bos: Any) -> bool:
    """Whether the tokenizer puts BOS before a text. Raises ValueError where it puts other tokens there."""
    text = "a"
    with_special, alone = (_ids(tokenizer, text, special) for special in (True, False))
    if with_special not in (alone, [bos, *alone]):
        raise ValueError(f"puts {with_special} around a text, where a GGUF file has BOS alone")
    return with_special != alone


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    return tokenizer(text, add_special_tokens=special)["input_ids"]
