"""A model behind an endpoint that fails in every way there is: real HTTP over loopback."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rationalyst_jax.lm.engine.requests import GenerateRequest, ScoreRequest
from rationalyst_jax.prompts.prompt import load_demonstrations, load_prompts
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.solve import solve
from rationalyst_jax.reason.trajectory import Roles
from rationalyst_jax.roles import endpoint as roles_endpoint
from rationalyst_jax.roles.config import EndpointConfig
from rationalyst_jax.roles.endpoint import ChatRequest, ChatRole, Endpoint
from rationalyst_jax.roles.role import NotAnswered, Sampling
from rationalyst_jax.tasks.question import Question


class Server(ThreadingHTTPServer):
    """seen: bodies of requests. faults: of the next ones. most: how many were there at once."""

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.seen: list[dict] = []
        self.faults: list[str] = []
        self.together = self.most = 0
        self.retry_after = "0.01"

    def always(self, body) -> str | None:
        """The fault of a request that no other was meant for."""

    def reply(self, body, chat) -> list[dict]:
        return [choice(i, f"a step {i}", chat) for i in range(body.get("n") or 1)]


FAULTS = ("500", "429", "broken", "closed", "timeout", "shape", "empty")


def choice(index: int, text: str, chat: bool, **more):
    if chat:
        content = [{"token": c, "logprob": -0.5, "top_logprobs": []} for c in text]
        said = {"message": {"role": "assistant", "content": text}, "logprobs": {"content": content}}
    else:
        said = {"text": text, "logprobs": {"tokens": list(text), "token_logprobs": [-0.5] * len(text)}}
    return {"index": index, "finish_reason": "stop", **said, **more}


@pytest.fixture
def server(monkeypatch):
    """An endpoint that does what `faults` says, one a request, then answers by `server.reply(body)`."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr(roles_endpoint, "PAUSE", 0.01)
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                http.seen.append({**body, "path": self.path, "key": self.headers["Authorization"]})
                http.together += 1
                http.most = max(http.most, http.together)
                fault = http.faults.pop(0) if http.faults else http.always(body)
            try:
                self.answer(fault, body)
            finally:
                with lock:
                    http.together -= 1

        def answer(self, fault, body):
            if fault == "timeout":
                release.wait(5)
            if fault in ("closed", "timeout"):
                self.close_connection = True
                return
            status = int(fault) if fault and fault.isdigit() else 200
            usage: dict[str, Any] = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
            usage["prompt_tokens_details"] = {"cached_tokens": 6}
            chat = "chat" in self.path
            reply = {"id": "1", "object": "chat.completion" if chat else "text_completion", "created": 1}
            reply |= {"model": "m", "choices": http.reply(body, chat), "usage": usage}
            bodies = {"broken": '{"choices": [', "shape": '{"hello": 1}', "empty": ""}
            sent = bodies.get(
                fault or "", json.dumps({"error": {"message": "no"}} if status > 200 else reply)
            )
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            if status >= 429:
                self.send_header("Retry-After", http.retry_after)
            self.end_headers()
            self.wfile.write(sent.encode())

        def log_message(self, *_): ...

    http = Server(Handler)
    lock = threading.Lock()
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield http
    release.set()
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def endpoint(server):
    opened = []

    def endpoint(**config):
        address = f"http://127.0.0.1:{server.server_port}/v1"
        settings = {"model": "m", "timeout": 20.0, **config}
        opened.append(Endpoint(address, EndpointConfig(**settings)))
        return opened[-1]

    yield endpoint
    for one in opened:
        one.close()


def patience(fault: str) -> float:
    """Seconds: few where a time-out is what is tested, else more than a busy machine needs."""
    return 1.0 if fault == "timeout" else 20.0


def answered(endpoint, request):
    handle = endpoint.submit(request)
    while endpoint.busy:
        endpoint.step()
    assert handle.done
    if handle.error is not None:
        raise handle.error
    return handle


def test_ids_go_to_the_completions_route_and_choices_come_back(server, endpoint):
    server.reply = lambda body, chat: [
        choice(1, "two", chat, stop_reason=None),
        choice(0, "one", chat, stop_reason="\n"),
        choice(2, "thr", chat, finish_reason="length"),
    ]
    request = GenerateRequest((1, 2, 3), 8, 3, 0.7, 0.9, 5, ("\n",), (7,), seed=4, suppress=(11, 12))
    handle = answered(endpoint(), request)
    assert [(g.text, g.finish, g.stop) for g in handle.result] == [
        ("one", "stop", "\n"), ("two", "end", ""), ("thr", "length", ""),
    ]  # fmt: skip
    np.testing.assert_array_equal(handle.result[0].logprobs, np.full(3, -0.5, np.float32))
    [sent] = server.seen
    assert sent["path"] == "/v1/completions" and sent["key"] == "Bearer secret"
    wanted = {"prompt": [1, 2, 3], "n": 3, "max_tokens": 8, "temperature": 0.7, "top_p": 0.9, "top_k": 5}
    wanted |= {"stop": ["\n"], "stop_token_ids": [7], "seed": 4, "logit_bias": {"11": -100, "12": -100}}
    wanted |= {"skip_special_tokens": False}
    assert {name: sent[name] for name in wanted} == wanted
    assert vars(handle.usage) | {"attended": 0} == {
        "generated": 4, "prefilled": 3, "cached": 6, "scored": 0, "attended": 0,
    }  # fmt: skip


def test_scores_are_those_of_the_continuation(server, endpoint):
    def reply(body, chat):
        values = [None, *(-float(token) for token in body["prompt"][1:])]
        return [choice(0, "x", chat) | {"logprobs": {"token_logprobs": values}}]

    server.reply = reply
    handle = answered(endpoint(), ScoreRequest((1, 2, 3), (4, 5)))
    assert handle.result.tolist() == [-4, -5] and handle.usage.scored == 2
    assert (server.seen[0]["echo"], server.seen[0]["max_tokens"]) == (True, 0)
    with pytest.raises(ValueError, match="cannot leave out suppressed"):
        endpoint().submit(ScoreRequest((1,), (2,), suppress=(3,)))
    server.reply = lambda body, chat: [choice(0, "x", chat) | {"logprobs": {"token_logprobs": [None, -1]}}]
    chat = ChatRequest((("user", "How many?"),), Sampling(8, suppress=("<BOT>",)))
    with pytest.raises(ValueError, match="a chat cannot leave out suppressed"):
        endpoint().submit(chat)
    with pytest.raises(NotAnswered, match=r"in 1 tries; the last: (a broken answer|0 log-probabilities)"):
        answered(endpoint(retries=0), ScoreRequest((1, 2, 3), (4, 5)))


@pytest.mark.parametrize("continues", [True, False])
def test_a_chat_is_sent_messages_and_an_unfinished_one_is_continued(server, endpoint, continues):
    said = (("user", "How many?"), ("assistant", "First.\n"))
    handle = answered(endpoint(continues=continues), ChatRequest(said, Sampling(8, stop=("\n",))))
    assert [(g.text, g.finish, g.stop) for g in handle.result] == [("a step 0", "stop", "\n")]
    [sent] = server.seen
    assert sent["path"] == "/v1/chat/completions"
    assert sent["messages"][:2] == [{"role": role, "content": text} for role, text in said]
    assert sent.get("continue_final_message", False) is continues
    assert len(sent["messages"]) == (2 if continues else 3)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_pass_is_tried_again(server, endpoint, fault):
    server.faults = [fault] * 2
    handle = answered(endpoint(retries=2, timeout=patience(fault)), GenerateRequest((1,), 8))
    assert handle.result[0].text == "a step 0" and len(server.seen) == 3
    server.faults = [fault] * 3
    wanted = f"m: status {fault}: .*no" if fault.isdigit() else "m: no answer in 3 tries[:;] "
    with pytest.raises(NotAnswered, match=wanted) as caught:
        answered(endpoint(retries=2, timeout=patience(fault)), GenerateRequest((1,), 8))
    assert len(server.seen) == 6 and "\n" not in str(caught.value)


def test_what_will_not_pass_is_not_tried_again(server, endpoint):
    server.faults = ["400"]
    with pytest.raises(NotAnswered, match="m: status 400"):
        answered(endpoint(), GenerateRequest((1,), 8))
    assert len(server.seen) == 1


def test_no_more_requests_at_once_than_allowed_and_a_cancelled_one_is_not_heard(server, endpoint):
    client = endpoint(concurrency=3)
    handles = [client.submit(GenerateRequest((i + 1,), 8)) for i in range(20)]
    client.cancel(handles[-1])
    heard = []
    while client.busy:
        heard += client.step()
    assert set(heard) == set(handles[:-1]) and server.most <= 3 and not handles[-1].done


def test_nobody_waits_for_a_next_try_that_is_not_wanted_any_more(server, endpoint):
    server.faults = ["429"] * 9
    server.retry_after = "60"
    client = endpoint()
    cancelled, other = (client.submit(GenerateRequest((i,), 8)) for i in (1, 2))
    while len(server.seen) < 2:
        client.step()
    start = time.monotonic()
    client.cancel(cancelled)
    client.close()
    assert time.monotonic() - start < 20 and not other.done


@pytest.mark.parametrize("fault", FAULTS)
def test_a_question_whose_endpoint_fails_is_reported_alone(server, endpoint, fault, tmp_path: Path):
    """The others are in the file; the same run again asks for the failed one only."""
    questions = [Question(f"q{i}", f"number {i}?") for i in range(4)]
    broken = [True]

    def always(body):
        return fault if broken and any("number 2" in m["content"] for m in body["messages"]) else None

    server.always = always
    server.reply = lambda body, chat: [choice(0, "The answer is 5.", chat)]
    role = ChatRole(endpoint(retries=1, timeout=patience(fault)), name="m")
    assert not role.can_score
    prompts = load_prompts("llama3").shown(load_demonstrations("gsm8k"))
    arguments = questions, Roles(role, None, role), prompts, ReasonConfig("greedy")

    def extract(text, _):
        return text.removeprefix("The answer is ").rstrip(".") or None

    with pytest.raises(
        ValueError, match=r"1 of 4 questions failed, as question q2: m: (no answer in 2 tries|status)"
    ):
        solve(*arguments, extract, tmp_path / "traces.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "traces.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} == {"q0", "q1", "q3"} and len(rows) == 3
    broken.clear()
    asked = len(server.seen)
    traces = solve(*arguments, extract, tmp_path / "traces.jsonl")
    assert [trace.answer for trace in traces] == ["5"] * 4 and len(server.seen) == asked + 1
    with pytest.raises(ValueError, match="needs log-probabilities: the scorer must be"):
        solve(*arguments[:3], ReasonConfig("likelihood"), extract, tmp_path / "other.jsonl")
