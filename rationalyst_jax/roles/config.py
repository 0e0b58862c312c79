"""How an endpoint is asked."""

from dataclasses import dataclass

from rationalyst_jax.files.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, require


@dataclass(frozen=True)
class EndpointConfig:
    """How an endpoint is asked. The key, where one is needed, is in OPENAI_API_KEY.

    Attributes:
        model: Name by which the endpoint knows the model.
        tokenizer: Folder of the model's tokenizer. With it the endpoint is sent token ids, and can score
            steps too. Without it the endpoint is sent chat messages, and cannot score.
        continues: Whether the endpoint can continue an unfinished message of the assistant, as vLLM and
            `rationalyst serve` can. If not, each next step is asked for in a new message.
        concurrency: Largest number of requests that are under way at the same time.
        retries: How often a request is sent again after a time-out, a broken answer, status 429 or a server
            error, after growing pauses or when the server asks for it.
        timeout: Seconds that a request may take.

    Raises ValueError naming the key and the value that is out of range.
    """

    model: str = ""
    tokenizer: str | None = None
    continues: bool = True
    concurrency: int = 16
    retries: int = 5
    timeout: float = 120.0

    def __post_init__(self):
        require("endpoint", self, AT_LEAST_1, "concurrency")
        require("endpoint", self, AT_LEAST_0, "retries")
        require("endpoint", self, ABOVE_0, "timeout")
