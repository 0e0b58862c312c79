"""`rationalyst serve` as its clients see it: the real openai package against the embedded world's model."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import openai
import pytest
import uvicorn
from starlette.applications import Starlette
from transformers import AutoModelForCausalLM

from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.weights.hf import load_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.prompts.prompt import load_prompts
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.solve import solve
from rationalyst_jax.reason.trajectory import Roles
from rationalyst_jax.roles.config import EndpointConfig
from rationalyst_jax.roles.endpoint import Endpoint
from rationalyst_jax.roles.role import Role
from rationalyst_jax.serve.app import Limits, make_app
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.world.checkpoint import checkpoint_path
from rationalyst_jax.world.corpus import questions

FOLDER = checkpoint_path("world")
ROWS = list(questions(0, 6))
SIZES: dict[str, Any] = {"max_sequences": 16, "prefill_chunks": 1, "chunk_size": 128, "alternatives": 20}
LIMITS = Limits(body=100_000, at_work=64, contexts=8)


@pytest.fixture(scope="module")
def engine():
    engine = Engine(load_llama(FOLDER), load_tokenizer(FOLDER), **SIZES)
    engine.warm_up()
    return engine


@contextmanager
def served(app: Starlette) -> Iterator[int]:
    """The port where it is served meanwhile."""
    config = uvicorn.Config(app, port=0, log_level="critical")
    listening = config.bind_socket()
    server = uvicorn.Server(config)
    listening.listen()
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()
    listening.close()


@pytest.fixture(scope="module")
def port(engine):
    with served(make_app(engine, "world", LIMITS, api_key="secret")) as port:
        yield port


@pytest.fixture(scope="module")
def client(port):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="secret", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(FOLDER)


@pytest.fixture(scope="module")
def peer():
    torch = pytest.importorskip("torch", reason="torch is the oracle here")
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    """Ids of the questions, as `tokenizer` encodes a text."""
    return [tokenizer(row["question"] + "\n")["input_ids"] for row in ROWS]


def log_probabilities(peer, ids):
    """Of every next token after each place of ids, `[T, V]`."""
    import torch

    with torch.inference_mode():
        return torch.log_softmax(peer(torch.tensor([ids])).logits[0].float(), dim=-1).numpy()


def greedy(peer, ids, most):
    import torch

    with torch.inference_mode():
        out = peer.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=most)
    return out[0, len(ids) :].tolist()


def compiled(action):
    """How many programs are compiled meanwhile."""
    found: list[str] = []
    listening = [True]

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if listening and event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    action()
    listening.clear()
    return len(found)


def test_the_model_is_listed(client):
    [model] = client.models.list().data
    assert model.id == "world" and model.model_extra["max_model_len"] == 2048


def test_greedy_completions_are_those_of_transformers(client, peer, tokenizer, prompts):
    answer = client.completions.create(model="world", prompt=prompts, max_tokens=24, temperature=0)
    assert [choice.index for choice in answer.choices] == list(range(len(prompts)))
    for ids, choice in zip(prompts, answer.choices, strict=True):
        tokens = greedy(peer, ids, 24)
        ended = tokens[-1] == tokenizer.eos_token_id
        assert choice.text == tokenizer.decode(tokens[:-1] if ended else tokens)
        assert choice.finish_reason == ("stop" if ended else "length")
    assert answer.usage.prompt_tokens == sum(map(len, prompts))
    texts = [row["question"] + "\n" for row in ROWS]
    by_text = client.completions.create(model="world", prompt=texts, max_tokens=24, temperature=0)
    assert [c.text for c in by_text.choices] == [c.text for c in answer.choices]
    alone = client.completions.create(model="world", prompt=prompts[1], max_tokens=24, temperature=0)
    assert alone.choices[0].text == answer.choices[1].text
    assert alone.usage.prompt_tokens_details.cached_tokens > 0  # it was there already


@pytest.mark.parametrize("most", [0, 1])
def test_echo_gives_the_log_probabilities_of_the_prompt(client, peer, tokenizer, prompts, most):
    """As lm-evaluation-harness and others ask for them."""
    answer = client.completions.create(
        model="world", prompt=prompts, max_tokens=most, echo=True, logprobs=3, temperature=0
    )
    for ids, choice in zip(prompts, answer.choices, strict=True):
        wanted = log_probabilities(peer, ids)
        shown = choice.logprobs
        written = greedy(peer, ids, 1) if most else []
        assert shown.tokens == [tokenizer.decode([token]) for token in [*ids, *written]]
        assert shown.token_logprobs[0] is None and shown.top_logprobs[0] is None
        chosen = [wanted[place, token] for place, token in enumerate([*ids[1:], *written])]
        np.testing.assert_allclose(shown.token_logprobs[1:], chosen, atol=1e-4)
        for place, top in enumerate(shown.top_logprobs[1:]):
            best = np.sort(wanted[place])[::-1][:3]
            np.testing.assert_allclose(sorted(top.values(), reverse=True)[:3], best, atol=1e-4)
            assert 3 <= len(top) <= 4  # the token itself is there, however unlikely
        assert choice.text.startswith(tokenizer.decode(ids)) and choice.finish_reason == "length"


def test_stops_and_noise(client, tokenizer, prompts):
    def ask(**options):
        settings = {"model": "world", "prompt": prompts[0], "max_tokens": 40, "temperature": 1.0, "seed": 5}
        return client.completions.create(**{**settings, **options})

    several = ask(n=4)
    assert len({choice.text for choice in several.choices}) > 1
    assert [c.text for c in ask(n=4).choices] == [c.text for c in several.choices]
    assert ask(seed=6, n=4).choices[0].text != several.choices[0].text
    line = ask(stop=["\n"]).choices[0]
    assert line.text == several.choices[0].text.split("\n")[0]
    assert (line.finish_reason, line.model_extra["stop_reason"]) == ("stop", "\n")
    first = tokenizer(several.choices[0].text, add_special_tokens=False)["input_ids"][2]
    stopped = ask(extra_body={"stop_token_ids": [first]}).choices[0]
    assert stopped.model_extra["stop_reason"] == first and len(stopped.text) < len(several.choices[0].text)
    without = ask(logit_bias={str(first): -100}, logprobs=0).choices[0]
    assert tokenizer.decode([first]) not in without.logprobs.tokens
    assert ask(extra_body={"top_k": 1}).choices[0].text == ask(temperature=0).choices[0].text
    three = ask(logit_bias={str(token): -100 for token in range(3, 472)}, logprobs=5).choices[0]
    assert {len(place) for place in three.logprobs.top_logprobs} <= {1, 2, 3}


def chat(client, **options):
    messages = [{"role": "assistant", "content": ROWS[0]["question"] + "\n"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    settings = {"model": "world", "messages": messages, "max_tokens": 30, "temperature": 0.8, "seed": 1}
    return client.chat.completions.create(**{**settings, "extra_body": extra, **options})


def test_chat_with_log_probabilities(client, peer, tokenizer):
    answer = chat(client, n=3, logprobs=True, top_logprobs=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    ids = tokenizer.apply_chat_template(
        [{"role": "assistant", "content": ROWS[0]["question"] + "\n"}],
        continue_final_message=True,
        return_dict=False,
    )
    assert answer.usage.prompt_tokens == len(ids)
    words = {tokenizer.decode([token]): token for token in range(len(tokenizer))}
    for choice in answer.choices:
        shown = choice.logprobs.content
        text = "".join(token.token for token in shown)
        assert text.removesuffix(tokenizer.eos_token) == choice.message.content
        written = [words[token.token] for token in shown]
        wanted = log_probabilities(peer, [*ids, *written])[len(ids) - 1 : -1]
        np.testing.assert_allclose(
            [token.logprob for token in shown], wanted[np.arange(len(written)), written], atol=1e-4
        )
        for token, row in zip(shown, wanted, strict=True):
            best = np.sort(row)[::-1][:4]
            np.testing.assert_allclose([top.logprob for top in token.top_logprobs], best, atol=1e-4)
            assert bytes(token.bytes).decode() == token.token
    again = chat(client, n=3)
    assert [c.message.content for c in again.choices] == [c.message.content for c in answer.choices]
    assert again.choices[0].logprobs is None


@pytest.mark.parametrize("logprobs", [None, True])
def test_a_stream_is_the_answer_in_pieces(client, logprobs):
    whole = chat(client, n=2, logprobs=logprobs, max_tokens=60)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    texts = ["", ""]
    ends = [None, None]
    count = 0
    *chunks, last = chat(client, n=2, logprobs=logprobs, max_tokens=60, **options)
    for chunk in chunks:
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends[choice.index] = choice.finish_reason
        count += len(choice.logprobs.content) if choice.logprobs else 0
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert not last.choices and last.usage.completion_tokens == whole.usage.completion_tokens
    assert count == (whole.usage.completion_tokens if logprobs else 0)
    prompt = ROWS[1]["question"] + "\n"
    plain = {"model": "world", "prompt": prompt, "max_tokens": 50, "temperature": 0, "stop": ["is"]}
    pieces = [c.choices[0].text for c in client.completions.create(**plain, stream=True)]
    assert "".join(pieces) == client.completions.create(**plain).choices[0].text


def test_a_stream_comes_token_by_token(client):
    asked = {"model": "world", "prompt": ROWS[1]["question"] + "\n", "max_tokens": 40, "temperature": 0}
    whole = client.completions.create(**asked)
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(pieces) == whole.choices[0].text
    assert len(pieces) > 0.8 * whole.usage.completion_tokens > 10  # few tokens have no text of their own


def test_nothing_is_compiled_while_serving(client, prompts):
    client.completions.create(model="world", prompt=prompts[0], max_tokens=3, logprobs=2)  # small operations
    assert compiled(lambda: chat(client, n=5, logprobs=True)) == 0
    assert compiled(lambda: client.completions.create(model="world", prompt=prompts, max_tokens=9)) == 0


BAD = [
    ({"prompt": None}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"),
    ({"prompt": [1, 999_999]}, 400, "prompt"),
    ({"prompt": [[1], "text", 3]}, 400, "prompt"),
    ({"prompt": ["a"] * 9}, 413, "prompt"),
    ({"model": "gpt-9"}, 404, "model"),
    ({"max_tokens": -1}, 400, "max_tokens"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": "ten"}, 400, "max_tokens"),
    ({"max_tokens": 2048}, 400, "prompt"),
    ({"n": 0}, 400, "n"),
    ({"n": True}, 400, "n"),
    ({"temperature": -0.1}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"stop": [""]}, 400, "stop"),
    ({"stop": ["a"] * 17}, 400, "stop"),
    ({"logprobs": 21}, 400, "logprobs"),
    ({"logit_bias": {"5": 3}}, 400, "logit_bias"),
    ({"logit_bias": {str(token): -100 for token in range(472)}}, 400, "logit_bias"),
    ({"stop_token_ids": [-1]}, 400, "stop_token_ids"),
    ({"presence_penalty": 0.5}, 400, "presence_penalty"),
    ({"wizard": 1}, 400, "wizard"),
    ({"stream": True, "echo": True}, 400, "stream"),
    ({"stream_options": {"wizard": 1}}, 400, "wizard"),
]


def post(port, path, body, key="secret"):
    """Status and JSON of a raw request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.parametrize(("change", "status", "parameter"), BAD)
def test_bad_requests_get_an_error_in_openais_shape(port, change, status, parameter):
    body = {"model": "world", "prompt": "How many?", "max_tokens": 4, **change}
    code, answer = post(port, "/v1/completions", {k: v for k, v in body.items() if v is not None})
    assert code == status and set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["param"] == parameter and answer["error"]["type"] == "invalid_request_error"


def test_bad_chats_bodies_routes_and_keys(port):
    for body, word in (
        ({"messages": []}, "not be empty"),
        ({"messages": [{"role": "user"}]}, r"messages[0]: the content must be text"),
        ({"messages": ["hello"]}, "messages[0] needs a role"),
        ({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, "needs logprobs"),
    ):
        code, answer = post(port, "/v1/chat/completions", body)
        assert code == 400 and word in answer["error"]["message"]
    assert post(port, "/v1/completions", b"{")[0] == 400
    assert post(port, "/v1/completions", b"[1]")[0] == 400
    assert post(port, "/v1/completions", b"[" * 50_000)[0] == 400
    assert post(port, "/v1/completions", b" " * 200_000)[0] == 413
    assert post(port, "/v1/nothing", {})[0] == 404
    code, answer = post(port, "/v1/completions", {"prompt": "a"}, key="guess")
    assert code == 401 and answer["error"]["code"] == "invalid_api_key"


def test_a_flood_is_refused_and_served_when_it_is_over(port):
    body = {"prompt": [[2, 3]] * 8, "max_tokens": 60}
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(post(port, "/v1/completions", body)[0]))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429}
    assert post(port, "/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200


def metrics(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines if line[0] != "#")}


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_client_that_hung_up_asked_for_is_cancelled(port, engine, stream):
    body = {"prompt": [2, 3, 4], "n": 16, "max_tokens": 2000, "temperature": 1.5, "stream": stream}
    body["logit_bias"] = {str(engine.tokenizer.eos_token_id): -100}  # it would go on to the last position
    sent = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        while not metrics(port)["rationalyst_requests_at_work"]:
            time.sleep(0.01)
    before = metrics(port)
    deadline = time.monotonic() + 30
    while metrics(port)["rationalyst_requests_at_work"] and time.monotonic() < deadline:
        time.sleep(0.05)
    after = metrics(port)
    assert after["rationalyst_requests_at_work"] == after["rationalyst_cache_pages_in_use"] == 0
    assert after["rationalyst_generated_total"] - before["rationalyst_generated_total"] < 16 * 1500


def test_health_and_metrics(port, client):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        assert json.load(answer) == {"status": "ok"}
    before = metrics(port)
    client.completions.create(model="world", prompt=[2, 3, 4], max_tokens=7, temperature=0)
    after = metrics(port)
    assert after["rationalyst_requests_total"] - before["rationalyst_requests_total"] == 1
    assert 1 <= after["rationalyst_generated_total"] - before["rationalyst_generated_total"] <= 7


def test_an_engine_that_fails_is_reported_to_everybody(tokenizer, monkeypatch, caplog):
    engine = Engine(load_llama(FOLDER), tokenizer, max_sequences=2)
    monkeypatch.setattr(engine, "step", lambda: 1 / 0)
    with served(make_app(engine, "world", LIMITS)) as port:
        for _ in range(2):  # the one at work, and one that comes later
            code, answer = post(port, "/v1/completions", {"prompt": [2, 3], "max_tokens": 4})
            assert (code, answer["error"]["type"]) == (500, "server_error")
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
        caught.value.close()
    assert "the engine failed" in caplog.text


def test_an_endpoint_guides_as_the_engine_itself(port, engine, tokenizer, monkeypatch, tmp_path):
    """Roles behind HTTP take the same steps as roles in process: they are sent the same ids."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    remote = Endpoint(f"http://127.0.0.1:{port}/v1", EndpointConfig("world", concurrency=4))
    local = Engine(engine.model, tokenizer, **SIZES)
    asked = [Question(row["id"], row["question"]) for row in ROWS]
    config = ReasonConfig("implicit", max_steps=4, max_step_tokens=32, max_rationale_tokens=32)
    solved = []
    for number, model in enumerate((remote, local)):
        role = Role(model, tokenizer)
        path = tmp_path / f"{number}.jsonl"
        roles = Roles(role, role, role)
        solved.append(solve(asked, roles, load_prompts("world"), config, lambda *_: None, path))
    remote.close()
    for there, here in zip(*solved, strict=True):
        assert [step.candidates for step in there.steps] == [step.candidates for step in here.steps]
        assert [step.rationale for step in there.steps] == [step.rationale for step in here.steps]
        assert [step.choice for step in there.steps] == [step.choice for step in here.steps]
        for mine, theirs in zip(there.steps, here.steps, strict=True):
            assert (mine.scores is None) == (theirs.scores is None)
            np.testing.assert_allclose(mine.scores or (), theirs.scores or (), atol=1e-4)
        assert there.tokens["agent"].generated == here.tokens["agent"].generated
