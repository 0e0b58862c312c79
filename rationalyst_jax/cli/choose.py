"""`rationalyst choose`: multiple-choice questions answered by the likelihood of their choices."""

from pathlib import Path

from jsonargparse.typing import PositiveInt
from rich.console import Console
from rich.table import Table

from rationalyst_jax.evaluate.config import ChooseConfig
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.report.progress import track

# What lm-evaluation-harness calls the accuracy under a rule.
HARNESS = {
    "sum": "acc",
    "per_character": "acc_norm",
    "per_byte": "acc_bytes",
    "unconditional": "acc_mutual_info",
}


def run(
    task: str,
    questions: Path,
    model: str,
    out: Path,
    choose: ChooseConfig,
    limit: PositiveInt | None = None,  # pyright: ignore[reportInvalidTypeForm]
    mesh: MeshShape | None = None,
) -> None:
    """Answer multiple-choice questions by likelihood: which choice does the model find likeliest?

    Nothing is written by the model, and no demonstrations are shown. Contexts, choices and numbers are those
    of lm-evaluation-harness. Of equal choices the first counts.

    Args:
        task: Name of the benchmark (arc, ecqa, hellaswag, mmlu_pro).
        questions: File of the benchmark's questions, in its own format.
        model: Checkpoint folder, or "world" for the shipped model.
        out: JSONL file to write: of each question the context and the choices, the tokens of each choice,
            its numbers (nats) under each rule, and the letter that each rule picks. Until it is whole it is
            called <out>.partial, and a killed run continues there.
        choose: How choices are scored.
        limit: Number of questions to use, from the first on; by default all.
        mesh: How all devices divide the work; by default one device is used.
    """
    from rationalyst_jax.lm.engine.config import EngineConfig
    from rationalyst_jax.pipeline.choose import choose as stage
    from rationalyst_jax.pipeline.models import Models
    from rationalyst_jax.tasks.benchmarks import task_named

    console = Console()
    with Models(EngineConfig()) as models, track(console, "questions scored") as progress:
        found = stage(
            task_named(task),
            questions,
            model,
            models,
            choose,
            out,
            limit=limit,
            mesh=mesh,
            progress=progress,
        )
    title = f"{task}: accuracy in % by the likelihood of the choices, 95 % intervals, n = {found.graded}"
    table = Table(title=title, title_justify="left")
    table.add_column("rule")
    table.add_column("lm-evaluation-harness")
    table.add_column("accuracy", justify="right", no_wrap=True)
    for rule, of_rule in found.accuracy.items():
        shown = f"{100 * of_rule.mean:.1f} [{100 * of_rule.low:.1f}, {100 * of_rule.high:.1f}]"
        table.add_row(rule, HARNESS.get(rule, "–"), shown)
    console.print(table if found.accuracy else f"{found.questions} questions scored, none with an answer")
