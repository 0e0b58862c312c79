"""What may go wrong while training: nothing that was learned is lost, and one line says what happened."""

import errno
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_train import FAST, assert_same_weights, fit_examples, metrics_rows, random_examples, tiny_model

from rationalyst_jax.files.interruption import Interrupted
from rationalyst_jax.train import loop
from rationalyst_jax.train.checkpoints import load_trained
from rationalyst_jax.train.loop import FitResult
from rationalyst_jax.train.preemption import Preemption

EXAMPLES = random_examples(60)


class Killed(Exception):
    """Stands for the end of the process."""


def train(run_dir: Path, config=FAST, model=None, **options) -> FitResult:
    return fit_examples(model or tiny_model(), EXAMPLES, config, run_dir, **options)


def at_step(step: int, act):
    def progress(steps, row):
        if row["step"] == step:
            act()

    return progress


def kill():
    raise Killed


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> FitResult:
    return train(tmp_path_factory.mktemp("straight"))


def test_sigterm_saves_and_the_run_goes_on_in_the_same_bits(straight, tmp_path):
    notify = at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM after step [45] of 6, which is saved$"):
        train(tmp_path, replace(FAST, save_every=100), progress=notify)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert len(steps_in(tmp_path / "checkpoints")) == 1
    assert_same_weights(straight.model, train(tmp_path).model)


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("loader", "at step 0 of 6, with nothing to save"),
        ("_restored", "at step 0 of 6, with nothing to save"),
        ("_compiled", "after step 1 of 6, which is saved"),
    ],
)
def test_sigterm_before_the_first_step_is_heard(before, says, straight, tmp_path, monkeypatch):
    real = getattr(loop, before)

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(loop, before, signalled)
    with pytest.raises(Interrupted, match=rf"^stopped by SIGTERM {says}$"):
        train(tmp_path)
    monkeypatch.undo()
    assert_same_weights(straight.model, train(tmp_path).model)


def test_sigterm_at_the_last_step_is_heard_when_all_is_saved(straight, tmp_path):
    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM after the last of 6 steps, which is saved$"):
        train(tmp_path, progress=at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    again: list[float] = []
    result = train(tmp_path, progress=lambda steps, row: again.append(row["step"]))
    assert not again and result.metrics["val_loss"] == straight.metrics["val_loss"]
    assert_same_weights(straight.model, result.model)


def test_several_processes_ask_with_numbers_that_have_no_gap(tmp_path, monkeypatch):
    asked: list[int] = []

    def reached(number: int) -> bool:
        asked.append(number)
        return number == 3

    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", reached)
    train(tmp_path)
    assert asked == []  # Orbax would ask too, with the numbers of steps
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with Preemption() as preemption:
        assert [preemption.heard() for _ in range(4)] == [False, False, True, True]
    assert asked == [1, 2, 3, 4]


def damage(checkpoint: Path) -> None:
    """Cuts every file of arrays short."""
    arrays = [
        file for file in (checkpoint / "state").rglob("*") if file.is_file() and file.parent.name == "d"
    ]
    assert arrays
    for file in arrays:
        os.truncate(file, file.stat().st_size // 2)


def remove_run(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "run")


@pytest.mark.parametrize("harm", [damage, remove_run])
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_taken(harm, straight, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, progress=at_step(5, kill))
    assert steps_in(tmp_path / "checkpoints") == [2, 4]
    harm(tmp_path / "checkpoints/4")
    notes: list[str] = []
    result = train(tmp_path, note=notes.append)
    assert len(notes) == 2 and "checkpoints/4: damaged checkpoint: " in notes[0]
    assert "put aside as" in notes[0] and (tmp_path / "damaged/4").is_dir()
    assert_same_weights(straight.model, result.model)
    assert [row["step"] for row in metrics_rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_where_every_checkpoint_is_damaged_nothing_is_overwritten(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, progress=at_step(5, kill))
    for step in (2, 4):
        damage(tmp_path / f"checkpoints/{step}")
    with pytest.raises(ValueError, match=r"checkpoints/4: damaged checkpoint: "):
        train(tmp_path)
    assert steps_in(tmp_path / "checkpoints") == [2, 4]


def test_the_best_checkpoint_stays_beside_the_last(tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.5, 2.0, 4.0, 3.5])
    monkeypatch.setattr("rationalyst_jax.train.loop._validate", lambda *_: next(losses))
    train(tmp_path, replace(FAST, save_every=1, validate_every=1, keep=1))
    assert steps_in(tmp_path / "checkpoints") == [2, 6]


def poison(monkeypatch, step: int) -> None:
    """The loss weights of one step's targets are not numbers."""
    from rationalyst_jax.train.batches import Batches

    build = Batches.build

    def poisoned(self, number, held):
        batch = build(self, number, held)
        return replace(batch, weight_ABP=batch.weight_ABP * np.nan) if number == step - 1 else batch

    monkeypatch.setattr(Batches, "build", poisoned)


@pytest.mark.parametrize("step", [3, 4])
def test_the_state_before_a_loss_that_is_no_number_is_kept(step, straight, tmp_path, monkeypatch):
    poison(monkeypatch, step)
    with pytest.raises(
        ValueError, match=rf"^step {step}: loss nan, .*not finite; in its batch are \d documents: d"
    ):
        train(tmp_path, replace(FAST, validation_fraction=0.0))
    assert steps_in(tmp_path / "checkpoints")[-1] == step - 1
    assert len(metrics_rows(tmp_path)) == step - 1
    assert all(
        jnp.isfinite(w).all() for w in jax.tree.leaves(nnx.state(load_trained(tmp_path / "checkpoints")))
    )
    monkeypatch.undo()
    unpoisoned = train(tmp_path / "other", replace(FAST, validation_fraction=0.0)).model
    assert_same_weights(train(tmp_path, replace(FAST, validation_fraction=0.0)).model, unpoisoned)


def too_much(*_, **__):
    return jax.jit(lambda: jnp.zeros((1 << 30, 1 << 20)))()


@pytest.mark.parametrize("where", ["begin", "_compiled"])
def test_memory_that_does_not_suffice_names_what_helps(where, tmp_path, monkeypatch):
    monkeypatch.setattr(f"rationalyst_jax.train.loop.{where}", too_much)
    with pytest.raises(ValueError) as caught:
        train(tmp_path)
    message = str(caught.value)
    assert message.startswith("out of memory: ") and "\n" not in message
    for knob in ("microbatch_rows 2 (fewer)", "remat none (full or offload)", "lora none", "fsdp"):
        assert knob in message


def test_memory_that_does_not_suffice_for_a_checkpoint_does_not_damage_it(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        train(tmp_path, progress=at_step(5, kill))
    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.restore", too_much)
    with pytest.raises(ValueError, match=r"^out of memory: "):
        train(tmp_path)
    assert steps_in(tmp_path / "checkpoints") == [2, 4] and not (tmp_path / "damaged").exists()


def test_a_run_that_goes_on_gives_back_the_memory_of_the_weights_it_began_with(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, progress=at_step(3, kill))
    model = tiny_model()
    train(tmp_path, model=model, progress=at_step(3, lambda: given_back(model)))
    given_back(model)


def given_back(model) -> None:
    assert all(weight.is_deleted() for weight in jax.tree.leaves(nnx.state(model)))


def test_a_validation_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    losses = iter([1.0, float("nan")])
    monkeypatch.setattr("rationalyst_jax.train.loop._validate", lambda *_: next(losses))
    with pytest.raises(ValueError, match=r"^the validation loss after step 4 is nan$"):
        train(tmp_path, replace(FAST, validate_every=2))
    assert steps_in(tmp_path / "checkpoints") == [2] and len(metrics_rows(tmp_path)) == 3


def test_an_update_that_is_not_finite_changes_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"^step 2: loss \d.*, gradient norm \d.*, update norm inf: not"):
        train(tmp_path, replace(FAST, peak_learning_rate=3e38, warmup_fraction=0.5, clip_norm=1e30))
    assert steps_in(tmp_path / "checkpoints") == [1]
    assert_same_weights(tiny_model(), load_trained(tmp_path / "checkpoints"))


def test_a_full_disk_is_said_and_the_checkpoint_before_is_whole(small_disk, tmp_path):
    small_disk(tmp_path, "8m")
    with pytest.raises(Killed):
        train(tmp_path, progress=at_step(3, kill))
    (tmp_path / "filler").write_bytes(bytes(shutil.disk_usage(tmp_path).free - 40_000))
    with pytest.raises(OSError) as caught:
        train(tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "checkpoints")
    assert "the checkpoint of step 2 is whole" in str(caught.value)
    (tmp_path / "filler").unlink()
    assert train(tmp_path).steps == 6
