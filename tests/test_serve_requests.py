"""What clients of the server ask oddly, wrongly or at the same time, on a small random model."""

import http.client
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engine import byte_tokenizer, small_llama
from test_serve import post, served
from tokenizers import processors

from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.serve.app import Limits, make_app
from rationalyst_jax.serve.protocol import Served, read_completion

LIMITS = Limits(body=200_000, at_work=64, contexts=8)
TEMPLATE = (
    "{% for m in messages %}{% if m.content == 'fail' %}{{ 1 + 'a' }}{% endif %}"
    "[{{ m.role }}{% if m.role == 'user' and m.name %} {{ m.name }}{% endif %}]{{ m.content }}"
    "{% for call in m.tool_calls %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}"
    "{% endfor %}"
)


def tokenizer_with(template: str = TEMPLATE):
    """Bytes, with a BOS that the tokenizer adds and a chat template."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    tokenizer.chat_template = template
    bos = ("<begin>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A", special_tokens=[bos]
    )
    return tokenizer


@pytest.fixture(scope="module")
def engine():
    tokenizer = tokenizer_with()
    model = small_llama(len(tokenizer), max_position_embeddings=96)
    return Engine(
        model, tokenizer, max_sequences=8, prefill_chunks=1, chunk_size=64, pages=64, alternatives=20
    )


@pytest.fixture(scope="module")
def port(engine):
    with served(make_app(engine, "tiny", LIMITS, api_key="secret")) as port:
        yield port


def complete(port, **body):
    code, answer = post(port, "/v1/completions", {"prompt": "abc", "max_tokens": 12, **body})
    assert code == 200, answer
    return answer["choices"]


def chat(port, *messages, **body):
    return post(port, "/v1/chat/completions", {"messages": messages, "max_tokens": 4, **body})


def streamed(port, **body):
    """The chunks of a completion."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    sent = json.dumps({"prompt": "abc", "stream": True, **body})
    connection.request("POST", "/v1/completions", sent, {"Authorization": "Bearer secret"})
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    assert lines[-2] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2] if line]


def test_a_request_without_a_seed_has_noise_of_its_own(port):
    texts = [complete(port)[0]["text"] for _ in range(4)]
    assert len(set(texts)) == 4
    texts = [complete(port, seed=0)[0]["text"] for _ in range(2)]
    assert texts[0] == texts[1]


def test_a_server_with_a_seed_repeats_itself(engine):
    def answers(seed):
        with served(make_app(engine, "tiny", LIMITS, seed=seed)) as port:
            return [complete(port, n=2)[1]["text"] for _ in range(3)]

    first = answers(1)
    assert answers(1) == first and len(set(first)) == 3
    assert not set(answers(2)) & set(first)


def test_offsets_cut_the_text_into_the_tokens_pieces(port):
    """Random bytes: most are no whole characters."""
    prompt = "a€ 😀"
    for choice in complete(port, prompt=prompt, echo=True, logprobs=5, n=4, max_tokens=40, seed=0):
        shown, text = choice["logprobs"], choice["text"]
        assert text.startswith(prompt)
        offsets = [*shown["text_offset"], len(text)]
        assert offsets == sorted(offsets) and offsets[:2] == [0, 0]  # BOS is no part of the text
        assert offsets[2:10] == [1, 1, 1, 2, 3, 3, 3, 3]
        assert shown["tokens"][:5] == ["<begin>", "a", r"bytes:\xe2", r"bytes:\x82", r"bytes:\xac"]
        assert all(5 <= len(top) <= 6 for top in shown["top_logprobs"][1:])
        spelled = [b""]
        for name in shown["tokens"][1:]:
            if name in ("<begin>", "<end>"):  # sampled: no part of the text, but no character spans it
                spelled.append(b"")
            else:
                spelled[-1] += bytes.fromhex(name[8:]) if name.startswith("bytes:") else name.encode()
        assert "".join(part.decode(errors="replace") for part in spelled) == text


def test_the_bytes_of_half_a_character_are_its_own(port):
    asked = {"logprobs": True, "top_logprobs": 20, "max_tokens": 40, "seed": 0}
    _, answer = chat(port, {"role": "user", "content": "€"}, **asked)
    places = answer["choices"][0]["logprobs"]["content"]
    for token in [*places, *(top for place in places for top in place["top_logprobs"])]:
        if token["token"].startswith("bytes:"):
            assert token["bytes"] == list(bytes.fromhex(token["token"][8:])) and token["bytes"][0] >= 0x80
        else:
            assert bytes(token["bytes"]).decode() == token["token"]
    assert any(token["token"].startswith("bytes:") for token in places)


def test_special_tokens_are_skipped_unless_they_are_wanted(port, engine):
    ids = engine.tokenizer("ab")["input_ids"]
    bos = ids[0]
    only_bos = {str(token): -100 for token in range(len(engine.tokenizer)) if token != bos}
    for skip, shown in ((None, ""), (True, ""), (False, "<begin>")):
        settings = {"max_tokens": 3, "logit_bias": only_bos, "skip_special_tokens": skip}
        assert complete(port, **settings)[0]["text"] == shown * 3
        assert complete(port, **settings, prompt=ids, echo=True)[0]["text"] == f"{shown}ab{shown * 3}"
        assert complete(port, **settings, prompt="ab", echo=True)[0]["text"] == f"ab{shown * 3}"
        assert "".join(chunk["choices"][0]["text"] for chunk in streamed(port, **settings)) == shown * 3


@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_stream_comes_token_by_token(port, engine, logprobs):
    settings = {"max_tokens": 60, "seed": 3, "logprobs": logprobs}
    settings["logit_bias"] = {str(engine.tokenizer.eos_token_id): -100}
    [whole] = complete(port, **settings)
    *chunks, end = [chunk["choices"][0] for chunk in streamed(port, **settings)]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    assert len(chunks) >= 55 and end["finish_reason"] == "length"
    if logprobs:
        for name, values in whole["logprobs"].items():
            found = [value for chunk in chunks for value in chunk["logprobs"][name]]
            assert found == values if name in ("tokens", "text_offset") else len(found) == len(values)


def test_a_text_that_begins_with_bos_gets_no_second_one(engine):
    limits = Served(engine.tokenizer, 96, len(engine.tokenizer))
    bos = engine.tokenizer.bos_token_id
    for text, count in (("a", 1), ("<begin>a", 1), ("<begin><begin>a", 2)):
        [context] = read_completion({"prompt": text}, limits, 0).contexts
        assert context[:-1] == (bos,) * count
    [context] = read_completion({"prompt": "<begin>a", "add_special_tokens": False}, limits, 0).contexts
    assert context[:-1] == (bos,)


CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def test_what_a_message_holds_reaches_the_template_or_is_refused(port):
    user = {"role": "user", "content": "hi"}
    _, plain = chat(port, user)
    code, named = chat(port, {**user, "name": "Ann"})
    assert code == 200 and named["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"] + 4
    code, called = chat(port, {"role": "assistant", "content": None, "tool_calls": [CALL]})
    assert code == 200 and called["usage"]["prompt_tokens"] == len('[assistant]add{"a": 1}')
    said = {"role": "assistant", "content": "hi", "refusal": None, "annotations": [], "tool_calls": []}
    assert chat(port, said)[0] == 200  # as the openai package gives a message back


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ({"role": "system", "content": "a", "name": "Ann"}, "does not show name of system messages"),
        ({"role": "tool", "content": "a", "tool_call_id": "1"}, "does not show tool_call_id"),
        ({"role": "user", "content": "a", "tool_call_id": "1"}, "'user' has no tool_call_id"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "'user' has no tool_calls"),
        ({"role": "user", "content": "a", "wizard": 1}, "messages[0]: unknown parameter 'wizard'"),
        ({"role": "user", "content": [{"type": "image_url", "text": "a"}]}, "the content must be text"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}, "content[0]: unknown"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "not JSON"),
        ({"role": "assistant", "tool_calls": [{**CALL, "index": 0}]}, "tool_calls[0]: unknown"),
        ({"role": "user", "content": "fail"}, "template refuses the messages: unsupported operand"),
    ],
)
def test_messages_that_are_refused(port, message, word):
    code, answer = chat(port, message)
    assert (code, answer["error"]["param"]) == (400, "messages") and word in answer["error"]["message"]


def test_methods_and_models(port):
    def get(path):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", path, headers={"Authorization": "Bearer secret"})
        answer = connection.getresponse()
        body = json.loads(answer.read())
        connection.close()
        return answer, body

    answer, body = get("/v1/completions")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST") and body["error"]["message"]
    code, body = post(port, "/v1/models", {})
    assert code == 405
    answer, body = get("/v1/models/tiny")
    assert (answer.status, body["id"], body["object"]) == (200, "tiny", "model")
    answer, body = get("/v1/models/meta/other")
    assert (answer.status, body["error"]["code"], body["error"]["param"]) == (404, "model_not_found", "model")


BODIES = [
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "a", "stop": ["\\udfff"]}',
    b'{"prompt": "a", "\\ud800": 1}',
    b'{"prompt": "\xed\xa0\x80"}',
    b'{"prompt": "a", "model": "\\ud800"}',
    b'{"prompt": "a", "logit_bias": {"' + b"1" * 5000 + b'": -100}}',
    '{"prompt": "a", "logit_bias": {"٣": -100}}'.encode(),
    b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}",
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "max_tokens": Infinity}',
]
NESTED = [
    b'{"prompt": "a", "%s": %s}' % (key, b"[" * depth + b"]" * depth)
    for key in (b"wizard", b"stop", b"model", b"prompt", b"response_format")
    for depth in (100, 900, 940, 960, 980, 990, 5000)
]


@pytest.mark.parametrize("body", BODIES + NESTED, ids=range(len(BODIES + NESTED)))
def test_a_body_that_cannot_be_is_refused(port, body):
    code, answer = post(port, "/v1/completions", body)
    assert code in (400, 404) and answer["error"]["message"].encode()


def test_half_a_surrogate_pair_inside_arguments_is_refused(port):
    call = {"function": {"name": "f", "arguments": r'{"a": "\ud800"}'}}
    code, answer = chat(port, {"role": "assistant", "tool_calls": [call]})
    assert code == 400 and "surrogate" in answer["error"]["message"]


# ---- Any JSON at all ----

ODD = st.sampled_from(
    [0, 1, -1, 2, 5, 97, 10**9, 2**64, -(10**300), 0.5, -0.0, 1e308, float("nan"), float("inf"), True, None]
)
WORDS = st.sampled_from(["", "a", "€", "\ud800", "\0", "<begin>", "<end>", "fail", "tiny", "user", "\n"])
LEAVES = ODD | WORDS | st.text(max_size=4)
KEYS = st.sampled_from(["type", "text", "name", "function", "arguments", "role", "content", "0", "\ud800"])
JUNK = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
CALLS = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": WORDS, "arguments": st.just("{}") | WORDS | JUNK})},
    optional={"id": WORDS, "type": st.just("function") | JUNK},
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"]) | WORDS, "content": WORDS | JUNK},
    optional={"name": WORDS, "tool_calls": st.lists(CALLS | JUNK, max_size=2), "tool_call_id": JUNK},
)
IDS = st.lists(st.integers(-1, 260), max_size=4)
SHARED = {
    "model": st.just("tiny") | JUNK,
    "n": st.integers(0, 3) | JUNK,
    "max_tokens": st.integers(0, 6) | JUNK,
    "temperature": st.floats(0, 2) | JUNK,
    "top_p": st.floats(0, 1) | JUNK,
    "top_k": st.integers(-1, 5) | JUNK,
    "seed": st.integers() | JUNK,
    "stop": WORDS | st.lists(WORDS, max_size=2) | JUNK,
    "stop_token_ids": IDS | JUNK,
    "logit_bias": st.dictionaries(st.integers(-1, 260).map(str) | WORDS, st.just(-100) | ODD) | JUNK,
    "stream": st.booleans() | JUNK,
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans() | ODD}) | JUNK,
    "skip_special_tokens": st.booleans() | JUNK,
    "wizard": JUNK,
    "tools": JUNK,
    "user": JUNK,
}
COMPLETIONS = {
    "prompt": WORDS | IDS | st.lists(WORDS | IDS, max_size=2) | JUNK,
    "logprobs": st.integers(0, 20) | JUNK,
    "echo": st.booleans() | JUNK,
    "add_special_tokens": st.booleans() | JUNK,
}
CHATS = {
    "messages": st.lists(MESSAGES, min_size=1, max_size=3) | st.lists(JUNK, max_size=2) | JUNK,
    "logprobs": st.booleans() | JUNK,
    "top_logprobs": st.integers(0, 20) | JUNK,
    "max_completion_tokens": st.integers(0, 6) | JUNK,
    "continue_final_message": st.booleans() | JUNK,
    "add_generation_prompt": st.booleans() | JUNK,
}


@st.composite
def bodies(draw, own):
    """A body most of whose parameters are as they should be."""
    strategies = SHARED | own
    first = next(iter(own))
    names = draw(st.sets(st.sampled_from(sorted(strategies)), max_size=3)) | {first}
    return {name: draw(strategies[name]) for name in sorted(names)}


@pytest.fixture(scope="module")
def connection(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    yield connection
    connection.close()


@pytest.mark.parametrize(("path", "own"), [("completions", COMPLETIONS), ("chat/completions", CHATS)])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_body_at_all_makes_the_server_fail_or_hang(connection, path, own, data):
    body = data.draw(bodies(own) | JUNK)
    headers = {"Authorization": "Bearer secret"}
    connection.request("POST", f"/v1/{path}", json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    assert answer.status in (200, 400, 404, 413, 429), text
    assert "server_error" not in text
    if answer.status != 200:
        assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}
