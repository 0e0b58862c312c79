"""`rationalyst inspect`: how do rationales differ from human ones, from others, and from saying nothing?"""

from argparse import ArgumentError
from pathlib import Path

from rich.console import Console

from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.mine.config import FilterConfig
from rationalyst_jax.report.progress import track


def run(
    rationales: Path,
    out: Path,
    filter: FilterConfig,
    human: Path | None = None,
    model: str | None = None,
    prompts: str | None = None,
    mesh: MeshShape | None = None,
) -> None:
    """Look for faults of rationales, and compare their gains with those of others at the same places.

    Each rationale's place is scored with the rationale itself, a human explanation, the rationale of another
    document, the sentence before it, and an empty phrase. Without a model only the words are judged: whether
    a rationale copies the following text, leaks its result, says nothing, or repeats the preceding text.

    Args:
        rationales: Parquet file that `rationalyst mine` or `rationalyst filter` wrote, a folder of such
            files, or a JSONL file with preceding, rationale and following. All are inspected, kept or not.
        out: JSONL file to write: for each rationale its gains and faults. A histogram of the gains is beside
            it (.png). Until it is written, gains are in <out>.scores.jsonl, where a killed run continues.
        filter: How gains are computed, and which the filter would keep; keep has no effect. The seed also
            draws the rationales of other documents.
        human: File of human explanations. Each row has id (that of the document) and explanation, and may
            have start, the character of the document that it belongs before. ECQA's and MMLU-Pro's own files
            do as well.
        model: Checkpoint folder of the scoring model, or "world" for the shipped one. By default no gains are
            computed.
        prompts: Prompt set of the model: the name of a shipped one (llama3, world), or a YAML file.
        mesh: How all devices divide the work; by default one device is used.
    """
    if (model is None) != (prompts is None):
        raise ArgumentError(None, "--model and --prompts go together")
    from rationalyst_jax.lm.engine.config import EngineConfig
    from rationalyst_jax.pipeline.inspect import Scorer, inspect_rationales
    from rationalyst_jax.pipeline.models import Models
    from rationalyst_jax.prompts.prompt import load_prompts
    from rationalyst_jax.report.rationales import fault_examples, faults_table, gains_table

    console = Console()

    def note(text: str) -> None:
        console.print(text, style="yellow", markup=False)

    if model is None or prompts is None:
        inspection, inspected = inspect_rationales(rationales, out, filter, human=human)
    else:
        prompt_set = load_prompts(prompts)
        with Models(EngineConfig()) as models, track(console, "rationales scored") as progress:
            scorer = Scorer(model, models, prompt_set)
            inspection, inspected = inspect_rationales(
                rationales, out, filter, scorer, human=human, mesh=mesh, progress=progress, note=note
            )
    console.print(f"{inspection.rationales} rationales of {inspection.documents} documents", highlight=False)
    if inspection.gains:
        console.print(gains_table(inspection))
    console.print(faults_table(inspection))
    for line in fault_examples(inspected):
        console.print(line, highlight=False)
