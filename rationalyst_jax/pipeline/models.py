"""The models of a run, by the places where they are: each is opened when it is first asked, and shared."""

import gc
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jax.sharding import Mesh

from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.open import engine_mesh, open_engines
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.weights.open import Checkpoint, open_checkpoint
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer, marker_ids
from rationalyst_jax.prompts.prompt import PromptSet, check_prompts
from rationalyst_jax.roles.config import EndpointConfig
from rationalyst_jax.roles.endpoint import ChatRole, Endpoint
from rationalyst_jax.roles.role import Role
from rationalyst_jax.world.checkpoint import checkpoint_path

Place = str | Path  # a checkpoint folder, "world" (the one shipped), or the address of an endpoint


@dataclass(frozen=True)
class Known:
    """What is known of a model before its weights are read.

    name: its checkpoint's fingerprint, or model and address; work of a model of another name is not
    continued. tokenizer: None of an endpoint that is asked by messages.
    """

    name: str
    tokenizer: Any


class Models:
    """Checkpoints and endpoints that stages ask. A context: leaving it gives up all of them.

    engine: how checkpoints generate. endpoint: how addresses are asked.
    """

    def __init__(self, engine: EngineConfig, endpoint: EndpointConfig | None = None):
        self.engine = engine
        self.endpoint = endpoint or EndpointConfig()
        self._checkpoints: dict[Path, Checkpoint] = {}
        self._endpoints: dict[str, Role] = {}
        self._engines: dict[Path, Engine] = {}
        self._scorer: tuple[Path, Mesh | None, Llama] | None = None
        self._connections = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._connections.close()

    def known(self, place: Place) -> Known:
        """The name and the tokenizer of a model. Raises as `open_checkpoint`, and for an unnamed endpoint."""
        if (address := address_of(place)) is not None:
            role = self._at(address)
            return Known(role.name, role.tokenizer)
        checkpoint = self.checkpoint(place)
        return Known(self.engine.weights(checkpoint.fingerprint), checkpoint.tokenizer)

    def checkpoint(self, place: Place) -> Checkpoint:
        """The checkpoint in a folder. Raises as `open_checkpoint`, and ValueError for an address."""
        if address_of(place) is not None:
            raise ValueError(f"{place}: a checkpoint folder is needed here, not an endpoint")
        path = checkpoint_path(place)
        same = path.resolve()  # two names of one folder are one model
        if same not in self._checkpoints:
            self._checkpoints[same] = open_checkpoint(path)
        return self._checkpoints[same]

    def base(self, place: Place) -> str | None:
        """The name of the model that one was trained from, where its folder says so. Raises as
        `open_checkpoint`."""
        return None if address_of(place) is not None else self.checkpoint(place).base

    def check(
        self, place: Place, prompts: PromptSet, names: Iterable[str], suppress: Iterable[str] = ()
    ) -> None:
        """Raises ValueError for what would be wrong with asking a model, before its weights are read.

        That is a prompt, of those named, which its chat template cannot render, a marker to suppress that is
        no single token, and a generation_config.json that wants answers changed in a way that is not done
        here.
        """
        tokenizer = self.known(place).tokenizer
        if tokenizer is not None:
            check_prompts(tokenizer, prompts, names)
            marker_ids(tokenizer, suppress)
        if address_of(place) is None:
            self.checkpoint(place).check_generation()

    def roles(self, *places: Place) -> list[Role]:
        """A role for each place. Places that are the same folder share one engine.

        Engines share the memory of their devices. Where one is asked for that is not open, those that are not
        asked for are closed, and the others keep their weights. Raises as `open_engines`.
        """
        wanted = {
            c.path: c for c in (self.checkpoint(place) for place in places if address_of(place) is None)
        }
        if not wanted.keys() <= self._engines.keys():
            weights = {path: engine.model for path, engine in self._engines.items() if path in wanted}
            self.close()
            opened = open_engines(list(wanted.values()), self.engine, loaded=weights)
            self._engines = dict(zip(wanted, opened, strict=True))
        return [self._role(place) for place in places]

    def scorer(self, place: Place, mesh: Mesh | None) -> Llama:
        """A model's weights alone, not rounded, divided over the mesh if there is one. Closes all engines.

        They are kept until another model is asked for.
        """
        checkpoint = self.checkpoint(place)
        if self._scorer is not None and self._scorer[:2] == (checkpoint.path, mesh):
            return self._scorer[2]
        engine = self._engines.get(checkpoint.path)
        model = None
        if engine is not None and mesh == engine_mesh(self.engine) and not self.engine.int8:
            model = engine.model
        del engine
        self.close()
        model = checkpoint.load_for_inference(mesh) if model is None else model
        self._scorer = checkpoint.path, mesh, model
        return model

    def close(self) -> None:
        """Gives up all engines and the scorer: caches, and the weights that nobody else holds."""
        if self._engines or self._scorer is not None:
            self._engines.clear()
            self._scorer = None
            gc.collect()

    def _role(self, place: Place) -> Role:
        if (address := address_of(place)) is not None:
            return self._at(address)
        checkpoint = self.checkpoint(place)
        known = self.known(place)
        return Role(self._engines[checkpoint.path], checkpoint.tokenizer, known.name)

    def _at(self, address: str) -> Role:
        """The role of the model at an address."""
        config = self.endpoint
        if not config.model:
            raise ValueError(f"endpoint.model is missing: which model shall be asked at {address}?")
        if address not in self._endpoints:
            tokenizer = None if config.tokenizer is None else load_tokenizer(config.tokenizer)
            name = f"{config.model} at {address}"
            endpoint = Endpoint(address, config)
            self._connections.callback(endpoint.close)
            role = ChatRole(endpoint, name=name) if tokenizer is None else Role(endpoint, tokenizer, name)
            self._endpoints[address] = role
        return self._endpoints[address]


def address_of(place: Place) -> str | None:
    """The place as an address; None for a folder."""
    return place if isinstance(place, str) and place.startswith(("http://", "https://")) else None
