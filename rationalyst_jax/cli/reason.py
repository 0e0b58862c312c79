"""`rationalyst reason`: solves questions with one strategy and writes a trace of each."""

from pathlib import Path

from jsonargparse.typing import PositiveInt
from rich.console import Console

from rationalyst_jax.cli.shard import shard_from
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.report.progress import track
from rationalyst_jax.report.tables import counts_table, ledger_table
from rationalyst_jax.roles.config import EndpointConfig
from rationalyst_jax.tasks.names import TaskName


def run(
    task: TaskName,
    questions: str,
    agent: str,
    prompts: str,
    out: Path,
    reason: ReasonConfig,
    engine: EngineConfig,
    endpoint: EndpointConfig,
    rationalyst: str | None = None,
    scorer: str | None = None,
    limit: PositiveInt | None = None,  # pyright: ignore[reportInvalidTypeForm]
    shots_from: str | None = None,
    shard: str = "auto",
) -> None:
    """Solve the questions of a benchmark with one strategy, and write a trace of each.

    Args:
        task: Name of the benchmark. It decides how questions are read and answers are found.
        questions: File of the benchmark's questions, in its own format (gsm8k: JSONL of question and answer),
            or tfds:NAME[:SPLIT][@DIR], a set that `rationalyst data` or TensorFlow Datasets prepared in DIR.
        agent: Model that proposes steps: a checkpoint folder, "world" for the shipped model, or the address
            of an OpenAI-compatible endpoint (http://host:port/v1).
        prompts: Prompt set: the name of a shipped one (llama3, world), or a YAML file.
        out: JSONL file to write, with one trace per question. A killed run continues there.
        reason: How questions are solved.
        rationalyst: Model that writes rationales, where the strategy needs them: a folder or an address, as
            for the agent.
        scorer: Model that ranks steps: a folder or an address; by default the agent's.
        engine: Models opened from checkpoint folders.
        endpoint: Models behind an address.
        limit: Number of questions to use, from the first on; by default all.
        shots_from: Questions of the benchmark's training split, from which the solved ones that the agent is
            shown are drawn by reason.seed: a file, or a prepared set. By default it is shown those that we
            wrote.
        shard: Which part of the work is this process's, where hosts divide it: "I/N" for the I-th, from 0, of
            N shards. "auto" finds it where Slurm or GKE starts several processes, "tpu" asks the metadata
            server of a TPU VM, and "none" is one process alone.
    """
    part = shard_from(shard)
    from rationalyst_jax.pipeline.models import Models
    from rationalyst_jax.pipeline.reason import Cast
    from rationalyst_jax.pipeline.reason import reason as solve
    from rationalyst_jax.prompts.prompt import load_prompts
    from rationalyst_jax.tasks.benchmarks import task_named

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
            shots_from=shots_from,
            shard=part,
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
