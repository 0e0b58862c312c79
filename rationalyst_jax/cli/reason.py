"""`rationalyst reason`: solves questions with one strategy and writes a trace of each."""

from collections import Counter
from functools import cache
from pathlib import Path

from jsonargparse.typing import PositiveInt
from rich.console import Console

from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.report.progress import so_far, track
from rationalyst_jax.report.tables import counts_table
from rationalyst_jax.world.checkpoint import checkpoint_path


def run(
    task: str,
    questions: Path,
    agent: str,
    prompts: str,
    out: Path,
    reason: ReasonConfig,
    rationalyst: str | None = None,
    scorer: str | None = None,
    limit: PositiveInt | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> None:
    """Solve a task's questions with one strategy.

    Args:
        task: The benchmark, which knows how questions are read and answers are found (gsm8k).
        questions: Its file of questions.
        agent: Checkpoint folder of the model that proposes steps ("world": the one shipped).
        prompts: A shipped prompt set (llama3, world) or a YAML file.
        out: JSONL file of traces, one per question; a killed run continues.
        rationalyst: Checkpoint folder of the model that writes rationales, where the strategy needs one.
        scorer: Checkpoint folder of the model that ranks steps; the agent's by default.
        limit: Only so many questions, the first ones.
    """
    from rationalyst_jax.evaluate.tasks import task_named
    from rationalyst_jax.lm.generate import Engine
    from rationalyst_jax.lm.prompt import load_prompts
    from rationalyst_jax.pipeline.checkpoint import open_checkpoint
    from rationalyst_jax.reason.roles import Role, Roles
    from rationalyst_jax.reason.solve import check_strategy, solve
    from rationalyst_jax.reason.trajectory import Question

    console = Console()
    check_strategy(reason.strategy, has_rationalyst=rationalyst is not None)
    benchmark, prompt_set = task_named(task), load_prompts(prompts)
    asked = [Question(q.id, q.text) for q in benchmark.read(questions)[:limit]]
    names = {name: checkpoint_path(name).resolve() for name in (agent, rationalyst, scorer) if name}

    @cache
    def role(path: Path) -> Role:  # models that are the same folder share one engine
        checkpoint = open_checkpoint(str(path))
        engine = Engine(checkpoint.load_for_inference(), checkpoint.tokenizer)
        return Role(engine, checkpoint.tokenizer, checkpoint.fingerprint)

    roles = Roles(
        agent=role(names[agent]),
        rationalyst=role(names[rationalyst]) if rationalyst else None,
        scorer=role(names[scorer or agent]),
    )
    with track(console, f"questions ({reason.strategy})", len(asked)) as advance:
        traces = solve(asked, roles, prompt_set, reason, benchmark.extract, out, so_far(advance))
    rows: dict[str, object] = {
        "questions": len(traces),
        "answered": sum(trace.answer is not None for trace in traces),
        "steps a question": sum(len(trace.steps) for trace in traces) / len(traces),
    }
    rows |= {f"ended by: {finish}": n for finish, n in Counter(t.finish for t in traces).most_common()}
    for part in ("agent", "rationalyst", "scorer"):
        used = [trace.tokens[part] for trace in traces if part in trace.tokens]
        if used:
            rows[f"tokens generated / scored, {part}"] = (
                f"{sum(u.generated for u in used)} / {sum(u.scored for u in used)}"
            )
    console.print(counts_table(f"solved: {reason.strategy}", rows))
