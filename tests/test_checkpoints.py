"""What a run leaves on disk: which checkpoints are kept, that they come back bit for bit, and plain words if not."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fcn_jax import parallel, state
from fcn_jax.checkpoints import Checkpoints
from fcn_jax.errors import CheckpointError


def make_state(step: int, features: int = 4) -> state.TrainState:
    rng = np.random.default_rng(step)
    params = {
        "fc6": {
            "kernel": jnp.asarray(rng.standard_normal((3, 3, 2, features)), jnp.float32),
            "bias": jnp.asarray(rng.standard_normal(features), jnp.bfloat16),
        }
    }
    created = state.create(params, optax.adam(0.1))
    return dataclasses.replace(created, step=jnp.asarray(step, jnp.int32))


def save_all(workdir, scores: dict[int, float | None]) -> None:
    with Checkpoints(workdir) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, make_state(step), score)


def steps_on_disk(workdir) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def assert_same_bits(found, wanted) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Saves at steps 1 to 6; the best is step 2, and some have no score."""
    workdir = tmp_path_factory.mktemp("run")
    save_all(workdir, {1: 0.1, 2: 0.9, 3: 0.3, 4: None, 5: 0.5, 6: None})
    return workdir


def test_the_newest_two_and_the_best_are_kept(run):
    assert steps_on_disk(run) == {"2", "5", "6"}


def test_a_later_best_takes_the_place_of_the_earlier(tmp_path):
    save_all(tmp_path, {1: 0.9, 2: 0.1, 3: 0.1, 4: 0.95, 5: 0.2})
    save_all(tmp_path, {6: 0.2, 7: 0.2})  # a resumed run knows of it too
    assert steps_on_disk(tmp_path) == {"4", "6", "7"}


def test_without_scores_the_newest_two_are_kept(tmp_path):
    save_all(tmp_path, dict.fromkeys(range(1, 5)))
    assert steps_on_disk(tmp_path) == {"3", "4"}


@pytest.mark.parametrize("step", [2, 6])
def test_a_state_comes_back_bit_for_bit(run, step):
    with Checkpoints(run, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 6
        assert_same_bits(checkpoints.restore(step, make_state(0)), make_state(step))


def test_a_state_comes_back_on_other_devices(run, tmp_path):
    """Saved from one device, restored on eight; saved from eight, restored on two."""
    eight, two = parallel.make_mesh(), parallel.make_mesh(jax.local_devices()[:2])
    with Checkpoints(run, read_only=True) as checkpoints:
        wide = checkpoints.restore(6, parallel.put_state(make_state(0), eight))
    assert_same_bits(wide, make_state(6))
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(wide))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(6, wide)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        narrow = checkpoints.restore(6, parallel.put_state(make_state(0), two))
    assert_same_bits(narrow, make_state(6))
    assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(narrow))


def test_a_state_may_be_donated_while_it_is_saved(tmp_path):
    """What is written is what was there when `save` was called, though its memory is taken at once."""
    change = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    big = jax.device_put({"x": jnp.arange(2_000_000, dtype=jnp.float32)})
    with Checkpoints(tmp_path) as checkpoints:
        current = state.TrainState(jnp.zeros((), jnp.int32), big, {}, {"momentum": jnp.ones(1_000_000)})
        for step in range(1, 4):
            checkpoints.save(step, current)
            current = state.TrainState(current.step, change(current.params), {}, change(current.opt_state))
            if step == 1:
                overwritten = change(jnp.zeros(2_000_000, jnp.float32))
    del overwritten
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored = checkpoints.restore(2, current)
    np.testing.assert_array_equal(restored.params["x"], -1)

    with Checkpoints(tmp_path / "first") as checkpoints:
        first = {"x": jnp.arange(2_000_000, dtype=jnp.float32)}
        checkpoints.save(1, state.TrainState(jnp.zeros((), jnp.int32), first, {}, {}))
        change(first)
    with Checkpoints(tmp_path / "first", read_only=True) as checkpoints:
        _, params = checkpoints.restore_params("latest")
    np.testing.assert_array_equal(params["x"], np.arange(2_000_000))


@pytest.mark.parametrize(("which", "step"), [("latest", 6), ("best", 2), ("5", 5)])
def test_a_checkpoint_is_chosen_by_name(run, which, step):
    with Checkpoints(run, read_only=True) as checkpoints:
        found, params = checkpoints.restore_params(which)
        assert found == step
        assert_same_bits(params, make_state(step).params)
        fitted = checkpoints.restore_params(which, make_state(0).params)[1]
        assert_same_bits(fitted, params)


def test_without_scores_the_latest_is_the_best(tmp_path):
    save_all(tmp_path, {1: None, 2: None})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.restore_params("best")[0] == 2


@pytest.mark.parametrize("which", ["3", "7", "bset", "-1"])
def test_a_checkpoint_that_is_not_there(run, which):
    with (
        Checkpoints(run, read_only=True) as checkpoints,
        pytest.raises(CheckpointError, match=rf"no checkpoint '{which}' in .*: there are \[2, 5, 6\], best, latest$"),
    ):
        checkpoints.restore_params(which)


def test_no_checkpoint_at_all(tmp_path):
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(CheckpointError, match=r"checkpoints holds no checkpoint"):
            checkpoints.restore_params("best")
    assert list(tmp_path.iterdir()) == []  # reading makes nothing


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500, message
    return message


def test_a_checkpoint_of_another_net_is_refused(run):
    with Checkpoints(run, read_only=True) as checkpoints:
        wanted = (
            r"checkpoints/6 does not fit the run's config: fc6/bias is \(4,\) there and \(5,\) here, fc6/kernel is "
        )
        with pytest.raises(CheckpointError, match=wanted) as caught:
            checkpoints.restore(6, make_state(0, features=5))
        one_line(caught)
        other = make_state(0).params
        other["fc7"] = other.pop("fc6")
        with pytest.raises(CheckpointError, match=r"checkpoints/5 does not fit") as caught:
            checkpoints.restore_params("5", other)
        one_line(caught)


@pytest.mark.parametrize("damage", ["params", "params/_METADATA", "rest", "params/manifest.ocdbt", "data"])
def test_a_damaged_checkpoint_is_named(run, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    folder = workdir / "checkpoints" / "6"
    if damage == "data":
        files = [path for path in (folder / "params").rglob("d/*") if path.is_file()]
        assert files
        for path in files:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif (folder / damage).is_dir():
        shutil.rmtree(folder / damage)
    else:
        (folder / damage).unlink()
    with Checkpoints(workdir, read_only=True) as checkpoints:
        with pytest.raises(CheckpointError, match=r"checkpoints/6 cannot be restored .*: remove that folder") as caught:
            checkpoints.restore(6, make_state(0))
        one_line(caught)
        if damage != "rest":
            with pytest.raises(CheckpointError, match=r"checkpoints/6 cannot be restored") as caught:
                checkpoints.restore_params("latest")
            one_line(caught)
        assert_same_bits(checkpoints.restore(5, make_state(0)), make_state(5))


def test_a_save_that_was_cut_off_is_no_checkpoint(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    cut_off = workdir / "checkpoints" / "7.orbax-checkpoint-tmp-1234"
    shutil.copytree(workdir / "checkpoints" / "6" / "params", cut_off / "params.orbax-checkpoint-tmp-1235")
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 6
    assert cut_off.exists()  # a reader clears nothing away: a training run may be writing it
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.latest_step() == 6
        checkpoints.save(7, make_state(7))
    assert steps_on_disk(workdir) == {"2", "6", "7"}
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert_same_bits(checkpoints.restore(7, make_state(0)), make_state(7))
