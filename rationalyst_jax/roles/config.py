"""How an endpoint is asked."""

from dataclasses import dataclass

from rationalyst_jax.files.ranges import ABOVE_0, AT_LEAST_0_FINITE, AT_LEAST_1, require


@dataclass(frozen=True)
class EndpointConfig:
    """How an endpoint is asked. The key, where one is needed, is in OPENAI_API_KEY.

    Attributes:
        model: The name that the endpoint knows the model by.
        tokenizer: Folder of the model's tokenizer: the endpoint is sent token ids. Without one it is sent
            chat messages, and gives no log-probabilities of given texts.
        continues: An unfinished message of the assistant is gone on with, as vLLM and `rationalyst serve` do;
            else the model is asked for the next step in a message of its own.
        concurrency: Requests at once.
        retries: Of a request that timed out, was refused for a while (429), or met an error of the server's.
        timeout: Seconds that a request may take.
        back_off: The n-th retry waits back_off * 2^n seconds, or as long as the server asks.

    Raises ValueError naming the key and the value that is out of range.
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
        require("endpoint", self, AT_LEAST_0_FINITE, "retries", "back_off")
        require("endpoint", self, ABOVE_0, "timeout")
