"""`rationalyst choose`: multiple-choice questions answered by the likelihood of their choices."""

from pathlib import Path

from jsonargparse.typing import PositiveInt
from rich.console import Console

from rationalyst_jax.cli.shard import shard_from
from rationalyst_jax.evaluate.config import ChooseConfig
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.report.grades import choices_table, guided_choices_table
from rationalyst_jax.report.progress import track
from rationalyst_jax.roles.config import EndpointConfig
from rationalyst_jax.tasks.names import TaskName


def run(
    task: TaskName,
    questions: str,
    model: str,
    out: Path,
    choose: ChooseConfig,
    engine: EngineConfig,
    endpoint: EndpointConfig,
    rationalyst: str | None = None,
    prompts: str = "llama3",
    limit: PositiveInt | None = None,  # pyright: ignore[reportInvalidTypeForm]
    mesh: MeshShape | None = None,
    shard: str = "auto",
) -> None:
    """Answer multiple-choice questions by likelihood: which choice does the model find likeliest?

    Nothing is written by the model, and no demonstrations are shown. Contexts, choices and numbers are those
    of lm-evaluation-harness. Of equal choices the first counts.

    With --rationalyst each question is asked three times: alone, with the rationale that RATIONALYST writes
    for it before the choices, and with that of another question.

    Args:
        task: Name of the benchmark. Those whose answer is a choice can be asked.
        questions: File of the benchmark's questions, in its own format, or tfds:NAME[:SPLIT][@DIR], a set
            that `rationalyst data` or TensorFlow Datasets prepared in DIR.
        model: Checkpoint folder, or "world" for the shipped model.
        out: JSONL file to write: of each question the context and the choices, the tokens of each choice,
            its numbers (nats) under each rule, and the letter that each rule picks. Until it is whole it is
            called <out>.partial, and a killed run continues there. What was asked is in <out>.config.json.
        choose: How choices are scored.
        engine: A RATIONALYST opened from a checkpoint folder.
        endpoint: A RATIONALYST behind an address.
        rationalyst: Model that writes rationales: a checkpoint folder, "world" for the shipped model, or the
            address of an OpenAI-compatible endpoint (http://host:port/v1).
        prompts: Prompt set for the RATIONALYST: the name of a shipped one (llama3, world), or a YAML file.
        limit: Number of questions to use, from the first on; by default all.
        mesh: How all devices divide the work; by default one device is used.
        shard: Which part of the work is this process's, where hosts divide it: "I/N" for the I-th, from 0, of
            N shards. "auto" finds it where Slurm or GKE starts several processes, "tpu" asks the metadata
            server of a TPU VM, and "none" is one process alone.
    """
    part = shard_from(shard)
    from rationalyst_jax.pipeline.choose import Guide
    from rationalyst_jax.pipeline.choose import choose as stage
    from rationalyst_jax.pipeline.models import Models
    from rationalyst_jax.prompts.prompt import load_prompts
    from rationalyst_jax.tasks.benchmarks import task_named

    console = Console()

    def note(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    benchmark = task_named(task)
    guide = None if rationalyst is None else Guide(rationalyst, load_prompts(prompts))
    what = "questions scored" if guide is None else "passes over questions"
    with Models(engine, endpoint) as models, track(console, what) as progress:
        found = stage(
            benchmark,
            questions,
            model,
            models,
            choose,
            out,
            guide=guide,
            limit=limit,
            mesh=mesh,
            shard=part,
            progress=progress,
            note=note,
        )
    if found.accuracy:
        console.print(choices_table(benchmark, found.graded, found.accuracy))
    if found.guided:
        console.print(guided_choices_table(benchmark, found.guided))
    if not found.graded:
        console.print(f"{found.questions} questions scored, none with an answer")
