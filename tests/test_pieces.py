"""From tokens to text, and to its pieces: against what the tokenizer itself decodes."""

import codecs
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rationalyst_jax.lm.engine.requests import GenerateRequest, Generation
from rationalyst_jax.lm.engine.text import Detokenizer
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer, token_bytes
from rationalyst_jax.serve.pieces import Candidate, Vocabulary, prompt_pieces
from rationalyst_jax.world.checkpoint import checkpoint_path

SPECIAL = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
TEXTS = st.text(st.sampled_from("ab 1\n<|é€😀漢\u0301"), max_size=20)


def byte_level() -> Any:
    """As Llama 3 spells: bytes as characters that can be seen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, "ab", "Ġa", "Ã©", "âĤ"])}
    merges = [("a", "b"), ("Ġ", "a"), ("Ã", "©"), ("â", "Ĥ")]
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def sentencepiece() -> Any:
    """As Llama 2 spells: a space as U+2581, also before the text, and bytes where there is no word."""
    words = ["▁", "a", "b", "1", "▁a", "ab", "é"]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    merges = [("▁", "a"), ("a", "b")]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def unigram() -> Any:
    return load_tokenizer(checkpoint_path("world"))


KINDS = {"byte level": byte_level(), "sentencepiece": sentencepiece(), "unigram": unigram()}
VOCABULARIES = {name: Vocabulary(tokenizer, len(tokenizer) + 2) for name, tokenizer in KINDS.items()}


def decode(tokenizer, tokens, **options):
    return tokenizer.decode(tokens, clean_up_tokenization_spaces=False, **options)


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
def test_the_bytes_of_tokens_are_those_of_their_text(kind, text):
    tokenizer = KINDS[kind]
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    spelled = b"".join(VOCABULARIES[kind].bytes[token] for token in tokens).decode()
    assert spelled.removeprefix(" " if kind == "sentencepiece" else "") == decode(tokenizer, tokens) == text


@given(st.lists(st.integers(0, 261), max_size=12))
def test_bytes_that_are_no_text_are_replaced_as_the_tokenizer_does(tokens):
    spelled = b"".join(VOCABULARIES["byte level"].bytes[token] for token in tokens)
    assert spelled.decode(errors="replace") == decode(KINDS["byte level"], tokens)


def test_the_bytes_of_llama_3(shared):
    tokenizer = load_tokenizer(shared / "llama3_tokenizer")
    spelled = token_bytes(tokenizer, 128_300)
    tokens = np.random.default_rng(0).integers(0, 128_256, 20_000).tolist()
    assert b"".join(spelled[token] for token in tokens).decode(errors="replace") == decode(tokenizer, tokens)
    assert len(set(spelled[:128_256])) == 128_256 and not any(spelled[128_256:])
    text = "naïve – “quotes” 漢字 👩‍👩‍👧"
    assert b"".join(spelled[token] for token in tokenizer(text)["input_ids"][1:]) == text.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_has_a_name_of_its_own(kind):
    vocabulary = VOCABULARIES[kind]
    assert len(set(vocabulary.names)) == len(vocabulary.names)
    for name, spelled in zip(vocabulary.names, vocabulary.bytes, strict=True):
        whole = spelled.decode(errors="replace")
        assert name == whole or name.startswith(("bytes:", "token_id:"))
    named = dict(zip(vocabulary.bytes, vocabulary.names, strict=True))
    assert named[b"\xe2"] == r"bytes:\xe2" and named[b"a"] == "a"


def generation(tokens, text="", finish: Any = "length", stop=""):
    return Generation(tuple(tokens), np.zeros(len(tokens), np.float32), text, finish, stop)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_the_pieces_are_the_text_in_whatever_portions_the_tokens_come(kind, data):
    tokenizer, vocabulary = KINDS[kind], VOCABULARIES[kind]
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=12))
    tokens += tokenizer(data.draw(TEXTS), add_special_tokens=False)["input_ids"]
    text = b"".join(vocabulary.bytes[token] for token in tokens).decode(errors="replace")
    inside = [text[a : a + 3] for a in range(len(text))]
    stop = data.draw(st.sampled_from(["x", *(part for part in inside if "\ufffd" not in part)]))
    # As the engine ends it: with the token that makes the first stop string whole.
    found = next((n for n in range(len(tokens) + 1) if stop in _text(vocabulary, tokens[:n])), None)
    done = generation(tokens[:found], finish="stop" if found else "length", stop=stop if found else "")
    wanted = text.split(stop)[0] if found else text
    candidate = Candidate(vocabulary, (stop,), skip_special=False)
    cuts = sorted(data.draw(st.sets(st.integers(0, max(0, len(done.tokens) - 1)))))
    given = []
    for start, end in zip([0, *cuts], cuts, strict=False):
        given += candidate.add([(token, 0.0, ()) for token in tokens[start:end]])
        assert wanted.startswith("".join(token.text for token in given))
    given += candidate.end(done)
    assert [token.id for token in given] == list(done.tokens)
    assert "".join(token.text for token in given) == wanted
    assert candidate.length == sum(len(token.text) for token in given)


def _text(vocabulary, tokens):
    """What is whole of the tokens' text."""
    text = b"".join(vocabulary.bytes[token] for token in tokens).decode(errors="replace")
    return text.rstrip("\ufffd")


def test_a_character_comes_with_the_token_that_completes_it():
    vocabulary = VOCABULARIES["byte level"]
    candidate = Candidate(vocabulary, ("€!",), skip_special=True)
    tokens = KINDS["byte level"]("b€€!")["input_ids"]
    halves = [b"\xe2\x82", b"\xac"]
    assert [vocabulary.bytes[token] for token in tokens] == [b"b", *halves, *halves, b"!"]
    pieces = [[token.text for token in candidate.add([(token, -1.0, ())])] for token in tokens[:5]]
    assert pieces == [["b"], [""], [], [], ["€", ""]]  # what may begin a stop string is held back
    assert [token.text for token in candidate.end(generation(tokens, "b€", "stop", "€!"))] == ["", ""]


def test_special_tokens_are_shown_or_not():
    tokenizer, vocabulary = KINDS["byte level"], VOCABULARIES["byte level"]
    a, begin, end = tokenizer.convert_tokens_to_ids(["a", "<|begin|>", "<|end|>"])
    done = generation([a, begin, a, end], "a<|begin|>a", "end")
    for skip, pieces in ((True, ["a", "", "a", ""]), (False, ["a", "<|begin|>", "a", ""])):
        assert [token.text for token in Candidate(vocabulary, (), skip).end(done)] == pieces
        text = decode(tokenizer, [a, begin, a], skip_special_tokens=skip)
        assert text == "".join(prompt_pieces(vocabulary, [a, begin, a], None, skip))


def test_half_a_character_before_a_skipped_token_is_not_lost():
    tokenizer, vocabulary = KINDS["byte level"], VOCABULARIES["byte level"]
    first, second = tokenizer("€")["input_ids"][-2:]
    begin, end = tokenizer.convert_tokens_to_ids(["<|begin|>", "<|end|>"])
    for skip, own in ((True, ""), (False, "<|begin|>")):
        done = generation([first, begin, second, end], f"\ufffd{own}\ufffd", "end")
        pieces = [token.text for token in Candidate(vocabulary, (), skip).end(done)]
        assert pieces == ["", f"\ufffd{own}", "\ufffd", ""]
        assert prompt_pieces(vocabulary, [first, begin, second], None, skip) == pieces[:-1]


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS.filter(bool))
def test_the_pieces_of_a_prompt_are_the_text_that_was_given(kind, text):
    tokenizer, vocabulary = KINDS[kind], VOCABULARIES[kind]
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = prompt_pieces(vocabulary, [tokenizer.bos_token_id, *tokens], text, skip_special=True)
    assert pieces[0] == "" and "".join(pieces) == text and len(pieces) == len(tokens) + 1


DETOKENIZERS = {name: Detokenizer(made, len(made) + 2, frozenset()) for name, made in KINDS.items()}


def stopping(*stop: str) -> GenerateRequest:
    return GenerateRequest((1,), 1, stop=stop)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_stop_string_is_found_by_the_tail_of_a_text_as_by_the_whole(kind, data):
    tokenizer, detokenizer = KINDS[kind], DETOKENIZERS[kind]
    tokens = tokenizer(data.draw(TEXTS), add_special_tokens=False)["input_ids"]
    tokens += data.draw(st.lists(st.integers(0, 261), max_size=12))  # bytes that are no text, too
    text = decode(tokenizer, tokens)
    inside = [text[a : a + n] for a in range(len(text)) for n in (1, 2, 5)]
    stop = data.draw(st.lists(st.sampled_from(["x", " a", "\ufffd", *inside]), min_size=1, max_size=2))
    request = stopping(*stop)
    ends = sorted({*data.draw(st.sets(st.integers(0, len(tokens)))), len(tokens)})
    for start, end in zip([0, *ends], ends, strict=False):
        spelled = b"".join(VOCABULARIES[kind].bytes[token] for token in tokens[:end])
        whole = codecs.getincrementaldecoder("utf-8")("replace").decode(spelled)
        if kind == "sentencepiece":
            whole = whole.removeprefix(" ")
        stopped = any(string in whole for string in stop)
        assert detokenizer.stopped(tokens[:end], end - start, request) == stopped
        if stopped:
            done = detokenizer.generation(tokens[:end], [0.0] * end, (), request)
            assert done.finish == "stop" and f"{done.text}{done.stop}" in whole
            break


def test_only_the_tail_of_a_text_is_looked_at_for_a_stop_string():
    class Tokens(list):
        """Counts the tokens that are read."""

        read = 0

        def __getitem__(self, key):
            found = super().__getitem__(key)
            Tokens.read += len(found) if isinstance(key, slice) else 1
            return found

    tokens = Tokens(KINDS["byte level"]("a" * 1000 + "b1", add_special_tokens=False)["input_ids"])
    assert len(tokens) > 900 and DETOKENIZERS["byte level"].stopped(tokens, 1, stopping("b1"))
    assert Tokens.read < 20


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_character_ends_no_candidate(kind):
    tokenizer, detokenizer = KINDS[kind], DETOKENIZERS[kind]
    tokens = tokenizer("1😀1", add_special_tokens=False)["input_ids"]
    request = stopping("\ufffd")
    assert not detokenizer.mask(request.stop, (), ())[tokens].any()
    assert not any(detokenizer.stopped(tokens[:n], 1, request) for n in range(1, len(tokens) + 1))
    done = detokenizer.generation(tokens, [0.0] * len(tokens), (), request)
    assert (done.text, done.finish) == ("1😀1", "length")
    replaced = tokenizer("1\ufffd1", add_special_tokens=False)["input_ids"]
    done = detokenizer.generation(replaced, [0.0] * len(replaced), (), request)
    assert (done.text, done.finish, done.stop) == ("1", "stop", "\ufffd")


def test_a_token_ends_a_candidate_by_itself_if_it_holds_the_stop_string_wherever_it_stands():
    tokenizer, detokenizer = KINDS["sentencepiece"], DETOKENIZERS["sentencepiece"]
    space_a, a, ab = tokenizer.convert_tokens_to_ids(["▁a", "a", "ab"])
    assert detokenizer.mask(("a",), (), ())[[space_a, a, ab]].all()
    assert not detokenizer.mask((" a",), (), ()).any()  # no text begins with its first space
    assert not detokenizer.stopped([space_a], 1, stopping(" a"))
    assert detokenizer.stopped([space_a, space_a], 1, stopping(" a"))
