"""What to change where a plan does not fit: the mildest settings with which it does.

Changes stand on a ladder. Those at its foot cost time, those above keep numbers more coarsely, those at its
top train in another way. It is climbed from the foot, each change on top of those below it, until the plan
fits.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.model.settings import LoraConfig
from rationalyst_jax.plan.plan import Plan, PlanSettings, Target

Changes = Mapping[str, Any]  # of settings, by their names on the command line


@dataclass(frozen=True)
class Trial:
    """Changes, and what becomes of the plan with them."""

    changes: Changes
    plan: Plan


def nearest(
    target: Target,
    settings: PlanSettings,
    attempt: Callable[[PlanSettings], Plan],
    tell: Callable[[Trial], None],
) -> Trial | None:
    """The first changes on the ladder, each with all below it, with which it fits; None where none do.

    `attempt` makes a plan, at most one for each rung; `tell` hears of each.
    """
    changes: Changes = {}
    for rung in ladder(target, settings):
        changes = {**changes, **rung}
        trial = Trial(changes, attempt(changed(settings, changes)))
        tell(trial)
        if trial.plan.fits:
            return trial
    return None


def ladder(target: Target, settings: PlanSettings) -> list[Changes]:
    """All changes that are left to make, the mildest first."""
    return _training_ladder(target, settings) if target.stage == "train" else _filter_ladder(target, settings)


def changed(settings: Any, changes: Changes) -> Any:
    """The settings with some of them changed."""
    for key, value in changes.items():
        name, _, rest = key.partition(".")
        value = changed(getattr(settings, name), {rest: value}) if rest else value
        settings = replace(settings, **{name: value})
    return settings


def written(settings: PlanSettings, changes: Changes) -> str:
    """The changes as options of the command line."""
    options = {}
    for key, value in changes.items():
        before: Any = settings
        for name in key.split("."):
            before = getattr(before, name)
        if not isinstance(value, MeshShape | LoraConfig):
            options[key] = value
        elif before is None:  # to name one value of a part that was absent brings the others
            name, first = next(iter(asdict(value).items()))
            options[f"{key}.{name}"] = first
        else:
            options |= {f"{key}.{n}": v for n, v in asdict(value).items() if v != getattr(before, n)}
    return " ".join(f"--{option} {value}" for option, value in options.items())


def _training_ladder(target: Target, settings: PlanSettings) -> list[Changes]:
    config = settings.train
    replica, _, tensor = config.mesh.sizes(len(target.devices))
    rungs: list[Changes] = []
    if replica > target.slices:  # every replica keeps all weights
        rungs.append({"train.mesh": MeshShape(target.slices, -1, tensor)})
    kinds = ["none", "dots", "full", "offload"]
    lighter = kinds[kinds.index(config.remat) + 1 :]
    rungs += [{"train.remat": remat} for remat in lighter if remat != "offload"]
    rungs += [{"train.microbatch_rows": rows} for rows in _halves(config.microbatch_rows)]
    if config.dtype == "float32":
        rungs.append({"train.dtype": "bfloat16"})
    rungs += [{"train.mesh": shape} for shape in _more_tensor(target, tensor)]
    if lighter:
        rungs.append({"train.remat": "offload"})
    if config.optimizer == "adamw" and config.moment_dtype == "float32":
        rungs.append({"train.moment_dtype": "bfloat16"})
    if config.master_dtype == "float32":
        rungs.append({"train.master_dtype": "bfloat16"})
    if config.optimizer == "adamw":
        rungs.append({"train.optimizer": "adafactor"})
    if config.lora is None:
        rungs.append({"train.lora": LoraConfig()})
    return rungs


def _filter_ladder(target: Target, settings: PlanSettings) -> list[Changes]:
    replica, fsdp, tensor = settings.mesh.sizes(len(target.devices))
    rows = [rows for rows in _halves(settings.filter.rows_per_batch) if rows % (replica * fsdp) == 0]
    rungs: list[Changes] = [{"filter.rows_per_batch": n} for n in rows]
    return rungs + [{"mesh": shape} for shape in _more_tensor(target, tensor)]


def _halves(n: int) -> list[int]:
    """Half of n, half of that, and so on down to 1."""
    return [n >> i for i in range(1, n.bit_length())]


def _more_tensor(target: Target, tensor: int) -> list[MeshShape]:
    """Meshes that divide heads, feed-forward layer and words further than among `tensor` chips."""
    model = target.model
    chips = len(target.devices) // target.slices
    divided = (chips, model.num_kv_heads, model.intermediate_size, model.vocab_size)
    sizes = [tensor << i for i in range(1, model.num_kv_heads.bit_length())]
    return [MeshShape(target.slices, -1, n) for n in sizes if not any(size % n for size in divided)]
