"""`rationalyst reason`: solves questions with one strategy and writes a trace of each."""

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import PositiveInt
from rich.console import Console

from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.report.progress import so_far, track
from rationalyst_jax.report.tables import counts_table, ledger_table
from rationalyst_jax.roles.config import EndpointConfig
from rationalyst_jax.world.checkpoint import checkpoint_path

if TYPE_CHECKING:
    from rationalyst_jax.roles.role import Role


def run(
    task: str,
    questions: Path,
    agent: str,
    prompts: str,
    out: Path,
    reason: ReasonConfig,
    engine: EngineConfig,
    endpoint: EndpointConfig,
    rationalyst: str | None = None,
    scorer: str | None = None,
    limit: PositiveInt | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> None:
    """Solve a task's questions with one strategy.

    Args:
        task: The benchmark, which knows how questions are read and answers are found (gsm8k).
        questions: Its file of questions.
        agent: The model that proposes steps: a checkpoint folder ("world": the one shipped), or the
        address of an OpenAI-compatible endpoint (http://host:port/v1); so for the other roles.
        prompts: A shipped prompt set (llama3, world) or a YAML file.
        out: JSONL file of traces, one per question; a killed run continues.
        rationalyst: The model that writes rationales, where the strategy needs one.
        scorer: The model that ranks steps; the agent's by default.
        engine: How folders generate.
        endpoint: How addresses are asked.
        limit: Only so many questions, the first ones.
    """
    from rationalyst_jax.lm.engine.open import open_engines
    from rationalyst_jax.lm.weights.open import open_checkpoint
    from rationalyst_jax.prompts.prompt import check_prompts, load_prompts
    from rationalyst_jax.reason.solve import solve
    from rationalyst_jax.reason.strategies import check_strategy, prompts_of
    from rationalyst_jax.reason.traces import mean_ledger
    from rationalyst_jax.reason.trajectory import Roles
    from rationalyst_jax.roles.role import Role
    from rationalyst_jax.tasks.task import task_named

    console = Console()
    check_strategy(reason, has_rationalyst=rationalyst is not None)
    benchmark, prompt_set = task_named(task), load_prompts(prompts)
    asked = benchmark.read(questions)[:limit]
    names = {name: _place(name) for name in (agent, rationalyst, scorer) if name}

    # Models that are the same folder share one engine.
    folders = {place: open_checkpoint(place) for place in names.values() if isinstance(place, Path)}
    parts = {"agent": agent, "rationalyst": rationalyst, "scorer": scorer or agent}
    for part, wanted in prompts_of(reason).items():
        place = names[parts[part]]
        if isinstance(place, Path):
            check_prompts(folders[place].tokenizer, prompt_set, wanted)
    for checkpoint in folders.values():
        checkpoint.check_generation()
    with ExitStack() as opened:
        found: dict[Path | str, Role] = {
            place: _at_endpoint(place, endpoint, opened) for place in names.values() if isinstance(place, str)
        }
        engines = open_engines(list(folders.values()), engine)
        for (place, checkpoint), own in zip(folders.items(), engines, strict=True):
            found[place] = Role(own, checkpoint.tokenizer, engine.weights(checkpoint.fingerprint))
        roles = Roles(
            agent=found[names[agent]],
            rationalyst=found[names[rationalyst]] if rationalyst else None,
            scorer=found[names[scorer or agent]],
        )
        with track(console, f"questions ({reason.strategy})", len(asked)) as advance:
            traces = solve(asked, roles, prompt_set, reason, benchmark.extract, out, so_far(advance))
    rows: dict[str, object] = {
        "questions": len(traces),
        "answered": sum(trace.answer is not None for trace in traces),
        "steps a question": sum(len(trace.steps) for trace in traces) / len(traces),
    }
    rows |= {f"ended by: {finish}": n for finish, n in Counter(t.finish for t in traces).most_common()}
    console.print(counts_table(f"solved: {reason.strategy}", rows))
    console.print(ledger_table("ledger, means of a question", {reason.strategy: mean_ledger(traces)}))


def _place(name: str) -> Path | str:
    """A folder, or an address."""
    return name if name.startswith(("http://", "https://")) else checkpoint_path(name).resolve()


def _at_endpoint(address: str, config: EndpointConfig, opened: ExitStack) -> "Role":
    """The role of a model at an address, which is left when what was `opened` is closed."""
    from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
    from rationalyst_jax.roles.endpoint import ChatRole, Endpoint
    from rationalyst_jax.roles.role import Role

    if not config.model:
        raise ValueError(f"endpoint.model is missing: which model shall be asked at {address}?")
    tokenizer = None if config.tokenizer is None else load_tokenizer(config.tokenizer)
    name, endpoint = f"{config.model} at {address}", Endpoint(address, config)
    opened.callback(endpoint.close)
    return ChatRole(endpoint, name=name) if tokenizer is None else Role(endpoint, tokenizer, name)
