"""`rationalyst serve`: a checkpoint behind an OpenAI-compatible HTTP server."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from rationalyst_jax.lm.engine.config import EngineConfig


def run(
    model: str,
    engine: EngineConfig,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_from: str | None = None,
    seed: int | None = None,
) -> None:
    """Serve a model to clients of the OpenAI API.

    Args:
        model: Checkpoint folder, or "world" for the shipped model.
        engine: How the model generates.
        name: Name that clients call the model by; by default the name of its folder.
        host: Address to listen at; by default only this machine can connect.
        port: Port to listen at; 0 takes a free one.
        api_key_from: Environment variable that holds the key that clients must send. Without it no key is
            asked for.
        seed: Seed that makes the server repeatable: a request without a seed of its own has noise made of
            this seed and of the number of the request. By default each start has other noise.
    """
    import uvicorn

    from rationalyst_jax.lm.engine.open import open_engines
    from rationalyst_jax.lm.weights.open import open_checkpoint
    from rationalyst_jax.serve.app import Limits, make_app
    from rationalyst_jax.serve.protocol import MOST_ALTERNATIVES
    from rationalyst_jax.world.checkpoint import checkpoint_path

    key = None
    if api_key_from is not None and not (key := os.environ.get(api_key_from)):
        raise ValueError(f"the environment variable {api_key_from} holds no key")
    if not 0 <= port < 2**16:
        raise ValueError(f"port must be from 0 to 65535, got {port}")
    if seed is not None and seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    console = Console()
    with _bound(host, port) as listening:
        checkpoint = open_checkpoint(checkpoint_path(model))
        checkpoint.check_generation()
        most = min(MOST_ALTERNATIVES, checkpoint.config.vocab_size)
        [serving] = open_engines([checkpoint], engine, alternatives=most)
        with console.status("compiling"):
            serving.warm_up()
        served = name or Path(model).resolve().name
        app = make_app(serving, served, Limits(), api_key=key, seed=seed)
        config = uvicorn.Config(app, log_level="warning")
        try:
            listening.listen()  # whoever reads the address may connect
        except OSError as error:  # somebody else began to listen meanwhile
            raise ValueError(f"{host}:{port}: {error}") from None
        console.print(
            f"{served} at http://{host}:{listening.getsockname()[1]}/v1", markup=False, soft_wrap=True
        )
        uvicorn.Server(config).run([listening])


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at the address, not listening yet: what is wrong with it is known before a model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"{host}:{port}: {error}") from None
    with socket.socket(family, kind, protocol) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError as error:
            raise ValueError(f"{host}:{port}: {error}") from None
        yield bound
