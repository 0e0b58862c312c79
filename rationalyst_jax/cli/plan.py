"""`rationalyst plan`: does it fit these TPUs, and how fast can it be at most?"""

from typing import TYPE_CHECKING, Literal

from rich.console import Console

from rationalyst_jax.lm.devices.chips import GIB
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.mine.config import FilterConfig
from rationalyst_jax.report.tables import counts_table
from rationalyst_jax.train.config import TrainConfig

if TYPE_CHECKING:
    from rationalyst_jax.plan.plan import Plan

# All chips divide the model: no weight has to be gathered.
BY_TENSOR = MeshShape(replica=1, fsdp=1, tensor=-1)

# Keys of the other commands' config files that say nothing about memory or speed.
PASSED_OVER = ("prompts",)


def run(
    model: str,
    topology: str,
    train: TrainConfig,
    filter: FilterConfig,
    stage: Literal["train", "filter"] = "train",
    slices: int = 1,
    mesh: MeshShape = BY_TENSOR,
) -> None:
    """Compile the program of a stage for TPUs that need not be there, and say whether it fits.

    Prints for each chip its memory, its exchanges with other chips, its operations, and the least time that
    these take. Where the program does not fit, plan makes changes, the mildest first, until it does; it names
    them, and the exit status is 1. Nothing is run. Configs of `train` and `filter` can be given as they are.

    Args:
        model: Name of a published shape (llama3-8b, llama3.1-8b, llama3.2-1b, ...), or a checkpoint folder,
            of which only config.json is read.
        topology: Kind and layout of the chips of a slice, such as v5e:4x4 or v5p:2x2x1.
        train: Settings of the training that is planned.
        filter: Settings of the filter that is planned.
        stage: Stage that is planned.
        slices: Number of such slices, connected by a network.
        mesh: How the chips divide the filter's work; the filter itself needs the same --mesh.
    """
    import jax

    from rationalyst_jax.plan.nearest import Trial, nearest, written
    from rationalyst_jax.plan.plan import PlanSettings, plan, shape, target

    jax.config.update("jax_platforms", "cpu")  # a TPU that is here may be at work
    console = Console()
    planned = target(stage, shape(model), topology, slices)
    settings = PlanSettings(train, filter, mesh)
    with console.status("compiling"):
        found = plan(planned, settings)
    how = "compiled, not run" if found.compiled else "not compiled"
    title = f"{stage} {model} on {slices} x {topology}: {how}"
    console.print(counts_table(title, _memory(found) | _work(found)))
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
