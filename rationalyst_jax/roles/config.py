"""How an endpoint is asked."""

from dataclasses import dataclass

from rationalyst_jax.files.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, require


@dataclass(frozen=True)
class EndpointConfig:
    """How an endpoint is asked.

    model: the name it knows the model by. tokenizer: folder of the model's tokenizer; without one it is a
    chat. continues: an unfinished message of the assistant is gone on with, as vLLM and `rationalyst serve`
    do; else the model is asked to go on. concurrency: requests at once. retries: of a request that timed out
    (`timeout`, seconds), was refused for a while (429), met an error of the server's or a broken answer; the
    n-th waits `back_off` * 2^n seconds, or as long as the server asks. The key, where one is needed, is in
    OPENAI_API_KEY.
    """

    model: str = ""
    tokenizer: str | None = None
    continues: bool = True
    concurrency: int = 16
    retries: int = 5
    timeout: float = 120.0
    back_off: float = 1.0

    def __post_init__(self):
        require("endpoint", self, AT_LEAST_1, "concurrency")
        require("endpoint", self, AT_LEAST_0, "retries", "back_off")
        require("endpoint", self, ABOVE_0, "timeout")
