"""What a run would take of chips that are not there: counted from shardings, and compiled."""

import json
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_files import rationalyst
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from random_model import random_llama

from rationalyst_jax.cli.main import CONFIGS
from rationalyst_jax.lm.devices.chips import CHIPS, GIB, libtpu_init_args
from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.devices.sharding import make_mesh
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.model.settings import LoraConfig
from rationalyst_jax.mine.config import FilterConfig
from rationalyst_jax.plan import plan as planning
from rationalyst_jax.plan.nearest import Trial, changed, ladder, nearest, written
from rationalyst_jax.plan.plan import Plan, PlanSettings, Target, exceeded, filtering, plan, training
from rationalyst_jax.plan.program import BETWEEN_SLICES, TimeFloor, by_kind, memory
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.loop import begin, first_state

# Divisible by eight devices along any axis.
TINY = LlamaConfig(64, 16, 32, num_layers=2, num_heads=8, num_kv_heads=8, head_dim=4)
RUN = TrainConfig(row_length=32, microbatch_rows=2)
SETTINGS = PlanSettings(RUN, FilterConfig(row_length=32, rows_per_batch=8), MeshShape(fsdp=1, tensor=-1))


def here(stage: Any = "train", usable: int = GIB) -> Target:
    """The simulated devices of this machine."""
    return Target(stage, TINY, CHIPS["v5e"], jax.devices(), 1, usable)


# ---- Bytes ----


@pytest.mark.parametrize(
    ("message", "needed", "there"),
    [
        (
            "Ran out of memory in memory space hbm. Used 18.00G of 15.75G hbm. Exceeded by 2.25G.",
            18 * GIB,
            15.75 * GIB,
        ),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (2.00T) exceeds "
            "available HBM (512.5M).",
            2048 * GIB,
            512.5 * 2**20,
        ),
    ],
)
def test_what_the_compiler_says_of_memory_is_read(message, needed, there):
    assert exceeded(message) == (needed, there)


def test_a_message_without_figures_is_shown():
    with pytest.raises(ValueError, match="does not say by how much: Ran out of vmem"):
        exceeded("Ran out of vmem")


def of_first_device(tree: Any) -> int:
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


KINDS = {
    "full": RUN,
    "bfloat16": replace(RUN, dtype="bfloat16", master_dtype="bfloat16", moment_dtype="bfloat16"),
    "lora": replace(RUN, dtype="bfloat16", lora=LoraConfig(rank=2)),
    "adafactor": replace(RUN, optimizer="adafactor"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_what_a_run_places_on_a_device(kind):
    config = KINDS[kind]
    mesh = make_mesh(2, 2, 2, jax.devices())
    step = training(TINY, config, mesh)
    parts = begin(random_llama(TINY), config, mesh)
    state = first_state(parts, config, 10, mesh)
    kept = dict(step.parts)
    assert kept.pop(f"parameters, {config.master_dtype}") == of_first_device(state.weights)
    assert kept.pop("optimizer") == of_first_device(state.optimizer)
    of_trained = sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(state.weights))
    assert kept.pop("gradients, float32") == 4 * of_trained
    if config.lora is not None:
        assert kept.pop("frozen parameters, bfloat16") == of_first_device(parts.frozen)
    assert not kept


def test_a_compiled_step_takes_what_is_kept_and_its_rows():
    step = training(TINY, KINDS["lora"], make_mesh(2, 2, 2, jax.devices()))
    needed = memory(step.lower().compile())
    kept = sum(size for name, size in step.parts.items() if name != "gradients, float32")
    rows = 6 * 2 * 32 * 4  # of one of four shards
    counters = 3 * 4  # microbatches, step and its number
    assert needed.arguments == kept + rows + counters
    assert step.rows == (8, 32)


def test_a_filter_batch_takes_weights_and_its_rows():
    step = filtering(TINY, SETTINGS.filter, make_mesh(2, 2, 2, jax.devices()))
    model = nnx.eval_shape(lambda: Llama(TINY, rngs=nnx.Rngs(0)))
    norms = {path: w for path, w in nnx.to_flat_state(nnx.state(model)) if "norm" in str(path)}
    every = sum(math.prod(w.shape) for w in jax.tree.leaves(nnx.state(model)))
    of_norms = sum(math.prod(w.shape) for w in norms.values())
    weights = 2 * ((every - of_norms) // 4 + of_norms // 2)  # norms have no axis that `tensor` divides
    assert step.parts == {"parameters, bfloat16": weights}
    arrays = 3 + 2  # rows; places and targets
    assert memory(step.lower().compile()).arguments == weights + arrays * 2 * 32 * 4
    assert step.rows == (8, 32)


def test_rows_that_shards_cannot_share_are_refused():
    with pytest.raises(ValueError, match="8 rows a batch cannot be divided among 3 shards"):
        filtering(TINY, SETTINGS.filter, make_mesh(1, 3, 1, jax.devices()[:3]))


# ---- Plans ----


def test_what_is_kept_alone_may_be_too_much():
    found = plan(here(usable=1000), SETTINGS)
    assert not found.fits and not found.compiled
    assert found.peak == sum(found.parts.values())


def test_the_compilers_refusal_is_a_plan(monkeypatch):
    def refuse(*arguments):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: required for HLO temporaries (3.50G) exceeds available HBM (1.00G)."
        )

    step = training(TINY, RUN, make_mesh(1, 8, 1, jax.devices()))._replace(lower=refuse)
    monkeypatch.setattr(planning, "training", lambda *_: step)
    found = plan(here(), SETTINGS)
    assert found.compiled and found.program is None
    assert found.verdict == "does not fit by at least 2.50 GiB"


# ---- What helps ----

ALL_THAT_HELPS = [
    {"train.mesh": MeshShape(1, -1, 1)},
    {"train.remat": "dots"},
    {"train.remat": "full"},
    {"train.microbatch_rows": 2},
    {"train.microbatch_rows": 1},
    {"train.dtype": "bfloat16"},
    {"train.mesh": MeshShape(1, -1, 2)},
    {"train.mesh": MeshShape(1, -1, 4)},
    {"train.mesh": MeshShape(1, -1, 8)},
    {"train.remat": "offload"},
    {"train.moment_dtype": "bfloat16"},
    {"train.master_dtype": "bfloat16"},
    {"train.optimizer": "adafactor"},
    {"train.lora": LoraConfig()},
]
HEAVY = replace(SETTINGS, train=replace(RUN, microbatch_rows=4, mesh=MeshShape(replica=2)))


def test_the_ladder_begins_with_what_costs_time_and_ends_with_what_is_trained():
    assert ladder(here(), HEAVY) == ALL_THAT_HELPS


def test_what_has_been_done_is_not_on_the_ladder():
    done = replace(
        RUN,
        remat="offload",
        microbatch_rows=1,
        dtype="bfloat16",
        master_dtype="bfloat16",
        optimizer="adafactor",
    )
    mesh = MeshShape(fsdp=1, tensor=-1)
    settings = replace(SETTINGS, train=replace(done, mesh=mesh))
    assert ladder(here(), settings) == [{"train.lora": LoraConfig()}]
    assert ladder(here("filter"), SETTINGS) == [{"filter.rows_per_batch": n} for n in (4, 2, 1)]


def needing(needs: Any, tried: list) -> Any:
    """Plans whose program needs what a function of the training settings says; 10 there are."""

    def attempt(settings: PlanSettings) -> Plan:
        tried.append(settings)
        peak = needs(settings.train)
        program = ([], TimeFloor(1.0, 1.0, 1.0)) if peak <= 10 else None
        return Plan((1, 8, 1), (16, 32), {"kept": 1}, peak, 10, 1.0, program, 1.0 if peak < 100 else 0.0)

    return attempt


def lighter(train: TrainConfig) -> int:
    """18, less 3 for each half of the rows, 4 for remat, 2 for moments and 2 for weights in bfloat16."""
    rows = 3 * (4 // train.microbatch_rows).bit_length() - 3
    remat = {"none": 0, "dots": 2, "full": 4, "offload": 5}[train.remat]
    coarse = (train.moment_dtype == "bfloat16") + (train.master_dtype == "bfloat16")
    return 18 - rows - remat - 2 * coarse


@pytest.mark.parametrize(
    ("needs", "options"),
    [
        (lambda t: 20 if t.mesh.replica > 1 else 10, "--train.mesh.replica 1"),
        (lambda t: lighter(t) - 6, "--train.mesh.replica 1 --train.remat dots"),
        (lighter, "--train.mesh.replica 1 --train.remat full --train.microbatch_rows 1"),
        (
            lambda t: lighter(t) + 5,
            "--train.mesh.replica 1 --train.mesh.tensor 8 --train.remat offload --train.microbatch_rows 1 "
            "--train.dtype bfloat16 --train.moment_dtype bfloat16",
        ),
    ],
)
def test_the_first_changes_that_suffice_are_taken(needs, options):
    told: list[Trial] = []
    better = nearest(here(), HEAVY, needing(needs, tried := []), told.append)
    assert better and written(HEAVY, better.changes) == options
    assert [changed(HEAVY, trial.changes) for trial in told] == tried
    below = ALL_THAT_HELPS[: len(told)]
    assert better.changes == {key: value for rung in below for key, value in rung.items()}


def test_nothing_may_help():
    assert nearest(here(), HEAVY, needing(lambda t: 11, tried := []), lambda trial: None) is None
    assert len(tried) == len(ALL_THAT_HELPS)


# ---- The command ----

GOOD = "plan --model llama3.2-1b --topology v5e:1x1"


@pytest.fixture
def stand_in(monkeypatch) -> list[PlanSettings]:
    """The command with plans made up, in place of a compiler: the settings that were planned."""
    asked: list[PlanSettings] = []
    monkeypatch.setattr(planning, "target", lambda stage, model, topology, slices: here(stage))
    monkeypatch.setattr(planning, "plan", lambda target, settings: needing(lighter, asked)(settings))
    return asked


def test_what_is_suggested_can_be_typed(stand_in, capsys):
    everything = {key: value for rung in ALL_THAT_HELPS for key, value in rung.items()}
    rationalyst(f"{GOOD} {written(SETTINGS, everything)} --train.microbatch_rows 1")
    wanted = changed(replace(SETTINGS, train=TrainConfig()), everything).train
    assert stand_in[0].train == wanted


def test_what_does_not_fit_ends_with_a_suggestion(stand_in, capsys):
    assert rationalyst(f"{GOOD} --train.microbatch_rows 4") == 1
    out, err = capsys.readouterr()
    assert err == (
        "rationalyst plan: does not fit by at least 0.00 GiB; "
        "--train.remat full --train.microbatch_rows 1 fits, 0.00 GiB to spare\n"
    )
    assert "verdict" in out and "\n--train.remat dots: does not fit by" in out


@pytest.fixture
def plans(monkeypatch) -> list[Plan]:
    """The plans that the command makes."""
    made = []
    real = planning.plan

    def keep(target: Target, settings: PlanSettings) -> Plan:
        made.append(real(target, settings))
        return made[-1]

    monkeypatch.setattr(planning, "plan", keep)
    return made


@pytest.mark.parametrize(("stage", "rows"), [("train", (8, 32)), ("filter", (8, 32))])
def test_what_fits_is_told(stage, rows, plans, monkeypatch, capsys):
    monkeypatch.setattr(planning, "target", lambda stage, model, topology, slices: here(stage))
    monkeypatch.setattr(planning, "shape", lambda model: TINY)
    given = "--train.row_length 32 --filter.row_length 32 --train.microbatch_rows 1"
    assert rationalyst(f"{GOOD} --stage {stage} {given}") == 0
    out = capsys.readouterr().out
    [found] = plans
    said = (
        "compiled, not run",
        "parameters",
        "all-reduce",
        "time floor",
        "bound by",
        "compile time",
        found.verdict,
    )
    assert all(words in out for words in said)
    assert found.verdict == f"fits, {(GIB - found.peak) / GIB:.2f} GiB to spare"
    assert found.rows == rows and found.seconds > 0 and found.program
    exchanged, floor = found.program
    assert "all-reduce" in by_kind(exchanged)
    assert floor.compute == found.flops / CHIPS["v5e"].flops
    assert out.endswith("\nLIBTPU_INIT_ARGS=''\n")


def test_libtpu_is_told_the_flags_of_the_chip_unless_it_was_told_others(monkeypatch):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    v6e = replace(here(), chip=CHIPS["v6e"])
    assert planning.libtpu_args(v6e.chip) == libtpu_init_args("v6e-8")
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_tpu_"):  # the CPU's compiler knows no such flag
        plan(v6e, SETTINGS)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--others=1")
    assert planning.libtpu_args(v6e.chip) == "--others=1"
    assert plan(v6e, SETTINGS).program


@pytest.mark.parametrize(
    ("accelerator", "flags"),
    [("v5litepod-16", 0), ("v5p-8", 5), ("v6e-256", 5), ("v4-8", 0), ("tpu7x-8", 0), ("", 0)],
)
def test_an_accelerator_has_the_flags_of_its_chip(accelerator, flags):
    assert len(libtpu_init_args(accelerator).split()) == flags


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (GOOD.replace("v5e:1x1", "h100:8"), "--topology h100:8: plan compiles for TPUs"),
        (GOOD.replace("v5e:1x1", "v4:2x2x1"), "v4 cannot be divided ahead of time"),
        (GOOD.replace("v5e:1x1", "v5e"), "--topology v5e: must be a TPU's name and layout"),
        (GOOD.replace("v5e:1x1", "v5e:0x4"), "must be a TPU's name and layout"),
        (GOOD.replace("v5e:1x1", "v5e:2x2x2"), "must be a TPU's name and layout"),
        (GOOD.replace("v5e:1x1", "v5e:32x16"), "at most v2:16x16, v3:32x32, v5e:16x16"),
        (GOOD.replace("v5e:1x1", "tpu:2x2"), "must be a TPU's name and layout"),
        (f"{GOOD} --slices 0", "--slices must be at least 1, got 0"),
        (GOOD.replace("llama3.2-1b", "llama4"), "--model llama4: no such folder, and none of llama3-8b,"),
        (GOOD.replace("llama3.2-1b", "folder"), "folder/config.json: no such file"),
        (GOOD, "plan needs the TPU's compiler: pip install 'rationalyst_jax[aot]'"),
    ],
)
def test_bad_input_is_one_line(files, command, says, capsys, monkeypatch):
    monkeypatch.chdir(files)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert rationalyst(command) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and says in err


def test_the_configs_of_other_commands_can_be_given(stand_in):
    for name in ("llama3-8b-train", "llama3-8b-filter", "llama3-8b-mine"):
        assert rationalyst(f"{GOOD} --config {CONFIGS / name}.yaml") == 1  # it does not fit
    assert stand_in


def test_what_belongs_to_another_stage_is_refused(capsys):
    assert rationalyst("plan --model llama3.2-1b") == 2
    assert "--stage train needs a --topology" in capsys.readouterr().err
    assert rationalyst(f"{GOOD} --documents x.jsonl") == 2
    assert "--documents is for --stage mine" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--topology v5e:4x4", "--chip v5e", "--slices 3", "--chips 7"])
def test_a_preset_and_its_own_options_are_refused(option, capsys):
    assert rationalyst(f"plan --model llama3.2-1b --preset colab-v5e-1 {option}") == 2
    assert f"{option.split()[0]} is given, and --preset has its own" in capsys.readouterr().err


@pytest.mark.parametrize("hours", ["inf", "1e400", "nan"])
def test_hours_without_an_end_are_refused(hours, capsys):
    assert rationalyst(f"plan --model llama3.2-1b --preset colab-v5e-1 --hours {hours}") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_of_gpus_what_is_kept_is_counted_and_nothing_compiled(capsys):
    config = "--config llama3.2-1b-train-1chip --model llama3.2-1b"
    assert rationalyst(f"plan --preset t4x2 --hours 9 {config}") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "on 2 x t4: counted, not compiled" in out and "t4 has no bfloat16" in out
    assert "20% of 8.1 TFLOP/s a chip (float32)" in out and "compile time" not in out
    assert rationalyst("plan --preset t4x2 --hours 9 --model llama3-8b --config llama3-8b-train") == 1
    out, err = capsys.readouterr()
    assert (
        "estimated" not in out
        and err.startswith("rationalyst plan: does not fit by at least")
        and err.count("\n") == 1
    )


def test_the_work_of_some_hours_is_the_peak_times_the_utilisation():
    floor = TimeFloor(compute=1.0, memory=0.1, communication=3.0)
    found = Plan((1, 1, 1), (4, 1024), {"kept": 1}, 1, GIB, 197e12, ([], floor), 1.0)
    tokens = planning.tokens_within
    assert tokens(replace(found, program=None), CHIPS["v5e"], 1.0, 0.5) == 4 * 1024 * 3600 / 2
    assert tokens(found, CHIPS["v5e"], 1.0, 0.5) == 4 * 1024 * 3600 / 3  # its exchanges take longer
    assert tokens(found, CHIPS["v5e"], 2.0, 0.1) == 4 * 1024 * 7200 / 10
    assert tokens(found, CHIPS["t4"], 1.0, 1.0) == 4 * 1024 * 3600 / (197 / 8.1)


def test_a_mesh_that_does_not_divide_the_chips_is_named(monkeypatch, capsys):
    monkeypatch.setattr(planning, "target", lambda stage, model, topology, slices: here(stage))
    assert rationalyst(f"{GOOD} --train.mesh.tensor 3") == 1
    assert "mesh: replica 1, fsdp -1, tensor 3 do not divide 8 devices" in capsys.readouterr().err


# ---- Ready configs ----

READY = {
    "llama3-8b-train-v5e-8-lora": ("llama3-8b", "v5e:2x4"),
    "llama3-8b-train-v5e-16": ("llama3-8b", "v5e:4x4"),
    "llama3-8b-train-v6e-8": ("llama3-8b", "v6e:2x4"),
    "llama3-8b-train-v5p-8": ("llama3-8b", "v5p:2x2x1"),
    "llama3.2-1b-train-1chip": ("llama3.2-1b", "v5e:1x1"),
}
FOR_GPUS = ["llama3-8b-train-8xh100", "llama3-8b-train-1x80gb-lora"]


@pytest.mark.parametrize("name", ["llama3-8b-train", *READY, *FOR_GPUS])
def test_ready_configs_keep_the_papers_mathematics(name, stand_in):
    rationalyst(f"{GOOD} --config {name}")
    config = stand_in[0].train
    assert config.dtype == "bfloat16"
    precision = {key: getattr(config, key) for key in ("dtype", "master_dtype", "moment_dtype", "lora")}
    assert config.decides() == replace(TrainConfig(), **precision).decides()


@pytest.mark.parametrize("name", ["llama3-8b-train", *READY, *FOR_GPUS])
def test_ready_configs_say_how_they_are_used(name):
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert f"# rationalyst train --config {name} --rationales FILE --model DIR --run_dir DIR" in text
    if name in READY:
        model, topology = READY[name]
        assert f"# rationalyst plan --config {name} --model {model} --topology {topology}" in text


def row(name: str, found: Plan) -> str:
    """A line for the table in docs/training.md: GiB a chip, times in ms, seconds of compilation."""
    assert found.program
    exchanged, floor = found.program
    kept = sum(found.parts.values())
    B, T = found.rows
    cells = [
        name,
        f"{B} x {T}",
        *(f"{size / GIB:.2f}" for size in (kept, found.peak - kept)),
        f"{found.peak / GIB:.2f} of {found.usable / GIB:.2f}",
        f"{sum(c.total for c in exchanged) / GIB:.1f}",
        *(f"{1000 * seconds:.0f}" for seconds in (floor.compute, floor.memory, floor.communication)),
        f"{found.seconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


@pytest.mark.aot
@pytest.mark.usefixtures("tpu_topology")
@pytest.mark.parametrize("name", READY)
def test_ready_configs_fit(name, plans):
    model, topology = READY[name]
    assert rationalyst(f"plan --config {name} --model {model} --topology {topology}") == 0
    print(row(name, plans[0]))


@pytest.mark.aot
@pytest.mark.parametrize("topology", ["v5p:2x2x1", "v6e:2x4"])
def test_with_the_flags_of_a_chip_libtpu_gathers_while_it_multiplies(topology, tpu_topology):
    mesh = Mesh(np.array(tpu_topology(topology)), ("x",))
    rows = NamedSharding(mesh, PartitionSpec("x"))
    multiply = jax.jit(lambda x, w: jnp.tanh(x @ w) @ w.T, in_shardings=(rows, rows), out_shardings=rows)
    x = jax.ShapeDtypeStruct((8192, 4096), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
    flags = libtpu_init_args(topology.partition(":")[0]).replace("--", "").split()
    told: Any = dict(flag.split("=") for flag in flags)  # libtpu refuses what it does not know
    for options in ({}, told):
        program = multiply.lower(x, w).compile(compiler_options=options).as_text() or ""
        assert ("all-gather-start" in program) == bool(options)


@pytest.mark.aot
@pytest.mark.usefixtures("tpu_topology")
def test_the_filter_of_llama_3_8b_fits_eight_chips(plans):
    config = "llama3-8b-filter"
    assert rationalyst(f"plan --stage filter --config {config} --model llama3-8b --topology v5e:2x4") == 0
    print(row("llama3-8b-filter", plans[0]))


@pytest.mark.slow
@pytest.mark.aot
@pytest.mark.usefixtures("tpu_topology")
def test_two_slices_exchange_gradients_alone(plans, tmp_path):
    """A small model, because the shapes make no difference here and large ones take minutes to compile."""
    small = LlamaConfig(1024, 1024, 2048, num_layers=2, num_heads=16, num_kv_heads=8, head_dim=64)
    (tmp_path / "config.json").write_text(json.dumps(small.to_hf()))
    config = "llama3-8b-train-v5e-16"
    asked = f"plan --config {config} --model {tmp_path} --topology v5e:4x4 --slices 2"
    assert rationalyst(asked) == 1  # one replica does not lie in two slices
    assert rationalyst(f"{asked} --train.mesh.replica 2") == 0
    [found] = plans
    assert found.mesh == (2, 16, 1) and found.program
    between = {c.kind: c.total for c in found.program[0] if c.kind.endswith(BETWEEN_SLICES)}
    assert between.keys() == {f"all-reduce{BETWEEN_SLICES}"}


@pytest.mark.slow
@pytest.mark.aot
@pytest.mark.usefixtures("tpu_topology")
def test_what_does_not_fit_fits_with_what_is_suggested(plans, capsys):
    """Llama-3-8B for 16 chips on 4 of them, with everything done already that saves memory but adapters."""
    config = "llama3-8b-train-v5e-16"
    saving = "--train.remat offload --train.mesh.tensor 4 --train.master_dtype bfloat16"
    asked = (
        f"plan --config {config} --model llama3-8b --topology v5e:2x2 {saving} --train.optimizer adafactor"
    )
    assert rationalyst(asked) == 1
    out, err = capsys.readouterr()
    refused, suggested = plans
    assert refused.compiled and not refused.fits and suggested.fits
    assert f"verdict │ {refused.verdict} │" in " ".join(out.split())
    assert err == f"rationalyst plan: {refused.verdict}; --train.lora.rank 16 {suggested.verdict}\n"
    print(out, err)
