"""`rationalyst reason`: solves questions with one strategy and writes a trace of each."""

from pathlib import Path

from jsonargparse.typing import PositiveInt
from rich.console import Console

from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import counts_table, ledger_table
from rationalyst_jax.roles.config import EndpointConfig


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
        agent: The model that proposes steps: a checkpoint folder ("world": the one shipped), or the address
            of an OpenAI-compatible endpoint (http://host:port/v1); so for the other roles.
        prompts: A shipped prompt set (llama3, world) or a YAML file.
        out: JSONL file of traces, one per question; a killed run continues.
        reason: How questions are solved.
        rationalyst: The model that writes rationales, where the strategy needs one.
        scorer: The model that ranks steps; the agent's by default.
        engine: How folders generate.
        endpoint: How addresses are asked.
        limit: Only so many questions, the first ones.
    """
    from rationalyst_jax.pipeline.models import Models
    from rationalyst_jax.pipeline.reason import Cast
    from rationalyst_jax.pipeline.reason import reason as solve
    from rationalyst_jax.prompts.prompt import load_prompts
    from rationalyst_jax.tasks.task import task_named

    console = Console()
    benchmark = task_named(task)
    prompt_set = load_prompts(prompts)
    cast = Cast(agent, rationalyst, scorer)
    with Models(engine, endpoint) as models, track(console, f"questions ({reason.strategy})") as progress:
        summary = solve(
            questions,
            benchmark,
            cast,
            models,
            prompt_set,
            reason,
            out,
            limit=limit,
            progress=progress,
        )
    rows: dict[str, object] = {
        "questions": summary.questions,
        "answered": summary.answered,
        "steps a question": summary.steps,
    }
    rows |= {f"ended by: {finish}": n for finish, n in summary.finishes.items()}
    if summary.verdicts:
        rows["verdicts that are no rating"] = f"{summary.unrated} of {summary.verdicts}"
    console.print(counts_table(f"solved: {reason.strategy}", rows))
    console.print(ledger_table("ledger, means of a question", {reason.strategy: summary.ledger}))
