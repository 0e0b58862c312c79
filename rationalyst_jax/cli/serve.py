"""`rationalyst serve`: a checkpoint behind an OpenAI-compatible HTTP server."""

import os
from pathlib import Path

from jsonargparse.typing import PositiveInt
from rich.console import Console


def run(
    model: str,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    rows: PositiveInt = 64,  # pyright: ignore[reportInvalidTypeForm]
    pages: PositiveInt | None = None,  # pyright: ignore[reportInvalidTypeForm]
    api_key_from: str | None = None,
) -> None:
    """Serve a model to clients of the OpenAI API.

    Args:
        model: Checkpoint folder ("world": the one shipped).
        name: What clients call the model; by default the folder's name, or the one given for a shipped model.
        host: Address to listen at; by default only this machine can connect.
        port: Port to listen at; 0 takes a free one.
        rows: Candidates that are generated at once.
        pages: Pages of 16 tokens that the cache has; by default what fits in the device's memory.
        api_key_from: Environment variable that holds the key clients must send.
    """
    import uvicorn

    from rationalyst_jax.lm.engine.engine import Engine
    from rationalyst_jax.lm.serve.app import Limits, make_app
    from rationalyst_jax.lm.serve.protocol import MOST_ALTERNATIVES
    from rationalyst_jax.pipeline.checkpoint import open_checkpoint

    key = None
    if api_key_from is not None and not (key := os.environ.get(api_key_from)):
        raise ValueError(f"serve: the environment variable {api_key_from} holds no key")
    console = Console()
    checkpoint = open_checkpoint(model)
    weights = checkpoint.load_for_inference()
    most = min(MOST_ALTERNATIVES, weights.config.vocab_size)
    engine = Engine(weights, checkpoint.tokenizer, rows=rows, pages=pages, alternatives=most)
    with console.status("compiling"):
        engine.warm_up()
    served = name or Path(model).resolve().name
    config = uvicorn.Config(
        make_app(engine, served, Limits(), key), host=host, port=port, log_level="warning"
    )
    listening = config.bind_socket()
    listening.listen()  # whoever reads the address may connect
    console.print(f"{served} at http://{host}:{listening.getsockname()[1]}/v1", soft_wrap=True)
    uvicorn.Server(config).run([listening])
