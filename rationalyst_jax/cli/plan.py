"""`rationalyst plan`: does it fit these TPUs, how fast can it be at most, and what would mining take?"""

import math
import shlex
from argparse import ArgumentError
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse.typing import PositiveFloat, PositiveInt
from rich.console import Console

from rationalyst_jax.lm.devices.chips import CHIPS, GIB, Chip
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.mine.config import AnnotateConfig, FilterConfig
from rationalyst_jax.plan.config import PRESETS, MiningAssumptions, Preset, PresetName
from rationalyst_jax.report.mining import costs_table
from rationalyst_jax.report.tables import counts_table
from rationalyst_jax.train.config import TrainConfig

if TYPE_CHECKING:
    from rationalyst_jax.plan.mining import MiningSettings
    from rationalyst_jax.plan.plan import Plan, PlanSettings

# All chips divide the model: no weight has to be gathered.
BY_TENSOR = MeshShape(replica=1, fsdp=1, tensor=-1)


def run(
    model: str,
    train: TrainConfig,
    filter: FilterConfig,
    annotate: AnnotateConfig,
    engine: EngineConfig,
    assume: MiningAssumptions,
    topology: str | None = None,
    stage: Literal["train", "filter", "mine"] = "train",
    slices: int = 1,
    mesh: MeshShape = BY_TENSOR,
    documents: Path | None = None,
    prompts: str | None = None,
    count: PositiveInt | None = None,  # pyright: ignore[reportInvalidTypeForm]
    chip: str | None = None,
    chips: PositiveInt = 1,  # pyright: ignore[reportInvalidTypeForm]
    preset: PresetName | None = None,
    hours: PositiveFloat | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> None:
    """Say what a stage would take of chips that need not be there. Nothing is run.

    Of train and filter the program is compiled for TPUs. Prints for each chip its memory, its exchanges with
    other chips, its operations, and the least time that these take, and the flags of libtpu that it was
    compiled with: those of LIBTPU_INIT_ARGS, or the chip's own. Where the program does not fit, plan makes
    changes, the mildest first, until it does; it names them, and the exit status is 1.

    Of mine, with the filter, tokens and operations are counted on a sample of documents, for copying and for
    inserting. What only a model can tell is assumed: the result is an estimate.

    Configs of `train`, `filter` and `mine` can be given as they are.

    Args:
        model: Name of a published shape (llama3-8b, llama3.1-8b, llama3.2-1b, ...), or a checkpoint folder,
            of which only config.json is read. The stage mine needs a folder, for its tokenizer, or "world"
            for the shipped model.
        topology: Kind and layout of the chips of a slice, such as v5e:4x4 or v5p:2x2x1, for train and filter.
        train: Settings of the training that is planned.
        filter: Settings of the filter that is planned.
        annotate: Settings with which documents are to be annotated. Both methods are counted; those of
            insertion can be given with method insert.
        engine: How models are to be opened. For mine, pages limits what is shared.
        assume: What the stage mine takes for granted.
        stage: Stage that is planned.
        slices: Number of such slices, connected by a network.
        mesh: How the chips divide the filter's work; the filter itself needs the same --mesh.
        documents: Sample of the documents to mine: a file or a folder of shards. Each row has text, and may
            have id and source.
        prompts: Prompt set, for mine: the name of a shipped one (llama3, world), or a YAML file.
        count: Number of documents that are to be mined; by default those of the sample.
        chip: Kind of the chips that are to mine, such as v5e or h100; without it no hours are told.
        chips: Number of chips that are to mine.
        preset: A machine by name, in place of topology, chip and chips: one TPU v5e as Colab has it, eight as
            Kaggle has them, or two T4 GPUs. For GPUs nothing is compiled: what is kept in memory is counted.
        hours: Time that there is. It is told how much of the work fits into it, at assume.utilisation.
    """
    if hours is not None and not math.isfinite(hours):
        raise ArgumentError(None, f"--hours must be finite, got {hours}")
    if preset is not None:
        for name, is_given in {
            "topology": topology is not None,
            "slices": slices != 1,
            "chip": chip is not None,
            "chips": chips != 1,
        }.items():
            if is_given:
                raise ArgumentError(None, f"--{name} is given, and --preset has its own: give one of them")
        machine = PRESETS[preset]
        if stage == "mine":
            chip, chips = machine.chip, machine.chips
        else:
            topology = machine.topology
    if stage == "mine":
        if topology is not None:
            raise ArgumentError(None, "--topology is for train and filter: mine has --chip and --chips")
        if slices != 1:
            raise ArgumentError(None, "--slices is for train and filter: mine has --chip and --chips")
        if documents is None or prompts is None:
            raise ArgumentError(None, "--stage mine needs a sample of --documents, and --prompts")
        from rationalyst_jax.plan.mining import MiningSettings

        settings = MiningSettings(annotate, filter, engine)
        return _mining(model, documents, prompts, settings, assume, count, chip, chips, hours)
    if preset is None and topology is None:
        raise ArgumentError(None, f"--stage {stage} needs a --topology")
    for name, given in {"documents": documents, "count": count, "chip": chip}.items():
        if given is not None:
            raise ArgumentError(None, f"--{name} is for --stage mine")
    from rationalyst_jax.plan.plan import PlanSettings

    planned = PlanSettings(train, filter, mesh)
    if topology is not None:
        _compiled(stage, model, topology, slices, planned, hours, assume.utilisation)
    elif preset is not None:
        _counted(stage, model, PRESETS[preset], planned, hours, assume.utilisation)


def _mining(
    model: str,
    documents: Path,
    prompts: str,
    settings: "MiningSettings",
    assumed: MiningAssumptions,
    count: int | None,
    chip: str | None,
    chips: int,
    hours: float | None,
) -> None:
    """Prints what mining would take with each method."""
    if chip is not None and chip not in CHIPS:
        raise ValueError(f"--chip {chip}: must be one of {', '.join(CHIPS)}")
    if chip is None and hours is not None:
        raise ArgumentError(None, "--hours needs chips that take them: --preset, or --chip and --chips")
    from rationalyst_jax.lm.weights.open import open_checkpoint
    from rationalyst_jax.mine.documents import read_documents
    from rationalyst_jax.plan.mining import Method, mining_cost
    from rationalyst_jax.prompts.prompt import load_prompts
    from rationalyst_jax.world.checkpoint import checkpoint_path

    console = Console()
    checkpoint = open_checkpoint(checkpoint_path(model))
    prompt_set = load_prompts(prompts)
    sample = read_documents(documents)
    factor = 1.0 if count is None else count / len(sample)
    known = (sample, checkpoint.config, checkpoint.tokenizer, prompt_set, settings, assumed)
    methods: tuple[Method, ...] = ("copy", "insert")
    with console.status("counting"):
        costs = {method: mining_cost(method, *known).scaled(factor) for method in methods}
    on_chips = None
    said = [
        f"a rationale has {assumed.rationale_tokens:g} tokens, and its markers",
        f"a copy is the document, with rationales at {assumed.rationales_per_place:.0%} of its places "
        f"({settings.annotate.places})",
        "all rationales are usable, and the model that writes them scores them",
    ]
    if settings.annotate.most_places is not None:
        said.append("the most surprising places are any: they are drawn by lot")
    if chip is not None:
        peak, dtype = CHIPS[chip].peak
        on_chips = (f"{chips} x {chip}", chips * peak * assumed.utilisation)
        said.append(f"utilisation: {assumed.utilisation:.0%} of {peak / 1e12:g} TFLOP/s a chip ({dtype})")
    title = f"mining {count or len(sample):,} documents, estimated from {len(sample):,}"
    within = None if hours is None else (hours, count or len(sample))
    console.print(costs_table(title, costs, on_chips, within))
    console.print("\n- ".join(["An estimate. Assumed:", *said]), highlight=False)


def _counted(
    stage: Literal["train", "filter"],
    model: str,
    machine: Preset,
    settings: "PlanSettings",
    hours: float | None,
    utilisation: float,
) -> None:
    """Prints what GPUs would have to keep. Raises ValueError where even that does not fit."""
    import jax

    from rationalyst_jax.plan.plan import gpus, plan, shape

    jax.config.update("jax_platforms", "cpu")
    console = Console()
    chip = CHIPS[machine.chip]
    found = plan(gpus(stage, shape(model), chip, machine.chips), settings)
    title = f"{stage} {model} on {machine.chips} x {machine.chip}: counted, not compiled"
    within = _within(found, chip, hours, utilisation) if found.peak <= found.usable else {}
    console.print(counts_table(title, _memory(found) | within))
    if chip.float32 is not None and stage == "train" and settings.train.dtype == "bfloat16":
        console.print(f"{machine.chip} has no bfloat16: give --train.dtype float32")
    if found.peak > found.usable:
        raise ValueError(found.verdict)


def _within(found: "Plan", chip: Chip, hours: float | None, utilisation: float) -> dict[str, object]:
    """How much of the work fits into the time, if one is given."""
    from rationalyst_jax.plan.plan import tokens_within

    if hours is None:
        return {}
    _, T = found.rows
    tokens = tokens_within(found, chip, hours, utilisation)
    flops_a_second, dtype = chip.peak
    return {
        f"estimated for {hours:g} hours: full rows of {T} tokens": f"{tokens / T:,.0f}",
        "assumed": f"{utilisation:.0%} of {flops_a_second / 1e12:g} TFLOP/s a chip ({dtype})",
    }


def _compiled(
    stage: Literal["train", "filter"],
    model: str,
    topology: str,
    slices: int,
    settings: "PlanSettings",
    hours: float | None,
    utilisation: float,
) -> None:
    """Prints what a compiled program takes, and what to change where it does not fit."""
    import jax

    from rationalyst_jax.plan.nearest import Trial, nearest, written
    from rationalyst_jax.plan.plan import libtpu_args, plan, shape, target

    jax.config.update("jax_platforms", "cpu")  # a TPU that is here may be at work
    console = Console()
    planned = target(stage, shape(model), topology, slices)
    with console.status("compiling"):
        found = plan(planned, settings)
    how = "compiled, not run" if found.compiled else "not compiled"
    title = f"{stage} {model} on {slices} x {topology}: {how}"
    within = _within(found, planned.chip, hours, utilisation) if found.fits else {}
    console.print(counts_table(title, _memory(found) | _work(found) | within))
    flags = shlex.quote(libtpu_args(planned.chip))
    console.print(f"LIBTPU_INIT_ARGS={flags}", soft_wrap=True, highlight=False)
    if found.fits:
        return

    def tell(trial: Trial) -> None:
        console.print(f"{written(settings, trial.changes)}: {trial.plan.verdict}", highlight=False)

    with console.status("looking for what fits"):
        better = nearest(planned, settings, lambda changed: plan(planned, changed), tell)
    if better is None:
        chips = -(-sum(found.parts.values()) * len(planned.devices) // planned.usable)
        raise ValueError(f"{found.verdict}; no setting helps: what is kept fills {chips} chips")
    raise ValueError(f"{found.verdict}; {written(settings, better.changes)} {better.plan.verdict}")


def _memory(found: "Plan") -> dict[str, object]:
    """What each chip holds, in GiB, and whether it can."""
    replica, fsdp, tensor = found.mesh
    rows = {**found.parts, "activations and temporary": found.peak - sum(found.parts.values())}
    if not found.compiled:
        rows.popitem()
    peak = "peak" if found.compiled else "all these, not compiled"
    return {
        "mesh": f"replica {replica}, fsdp {fsdp}, tensor {tensor}",
        **{f"{name} (GiB a chip)": f"{size / GIB:.2f}" for name, size in rows.items()},
        f"{peak} (GiB a chip)": f"{found.peak / GIB:.2f} of {found.usable / GIB:.2f}",
        "verdict": found.verdict,
    }


def _work(found: "Plan") -> dict[str, object]:
    """What each chip does with the rows of one microbatch."""
    if found.program is None:
        return {}
    from rationalyst_jax.plan.program import by_kind

    exchanged, floor = found.program
    floors = {
        "operations": floor.compute,
        "memory": floor.memory,
        "exchanges": floor.communication,
    }
    B, T = found.rows
    return {
        "rows at a time": f"{B} x {T} tokens",
        **{
            f"{kind} (times, GiB received)": f"{count}, {received / GIB:.3f}"
            for kind, (count, received) in by_kind(exchanged).items()
        },
        "operations (T a chip)": f"{found.flops / 1e12:.1f}",
        **{f"time floor by {name} (ms)": f"{1000 * seconds:.0f}" for name, seconds in floors.items()},
        "bound by": max(floors, key=lambda name: floors[name]),
        "compile time (s)": f"{found.seconds:.0f}",
    }
