"""The parts of an experiment, put together in one place."""

import jax
import numpy as np
import pytest

from fcn_jax import parallel
from fcn_jax.assembly import assemble
from fcn_jax.config import default
from fcn_jax.data.synthetic import INFO
from fcn_jax.errors import ConfigError


@pytest.fixture
def config():
    config = default()
    config.model.update(name="segnet_basic", width=1 / 8)
    return config


def zeros(tree):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)


def test_the_abstract_state_is_that_of_a_run(config):
    assembly, mesh = assemble(config, INFO), parallel.make_mesh()
    begun = parallel.put_state(assembly.begin(zeros(assembly.variables)), mesh)
    for real, shape in zip(jax.tree.leaves(begun), jax.tree.leaves(assembly.abstract_state(mesh)), strict=True):
        assert (real.shape, real.dtype, real.sharding) == (shape.shape, shape.dtype, shape.sharding)
    assert begun.batch_stats


@pytest.mark.slow
def test_the_step_takes_a_batch_as_the_loop_puts_it(config, fast_compilation):
    config.data.batch_size = 8
    mesh = parallel.make_mesh(jax.devices()[:2])
    assembly = assemble(config, INFO)
    begun = parallel.put_state(assembly.begin(zeros(assembly.variables)), mesh)
    batch = {
        "image": np.ones((8, 16, 16, 3), np.float32),
        "label": np.zeros((8, 16, 16), np.uint8),
        "index": np.arange(8, dtype=np.int32),
    }
    after, report = assembly.compiled_train_step(mesh)(begun, parallel.put_batch(batch, mesh, "pmap"))
    assert int(after.step) == 1 and int(report["pixels"]) == 8 * 16 * 16


def test_what_cannot_go_together_is_one_line(config):
    config.model.update(name="fcn8s", padding="caffe")
    config.train.statistics_batches = 3
    with pytest.raises(ConfigError, match="fcn8s has none"):
        assemble(config, INFO)
