"""Rematerialisation changes what is kept for the backward pass, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fcn_jax import losses, models, parallel
from fcn_jax.models.layers import BatchNorm
from fcn_jax.ops import rematerialisation

NETS = {
    "fcn8s": {"width": 1 / 8, "fc_width": 16},
    "segnet": {"width": 1 / 8, "trunk": "vgg11"},
    "deconvnet": {"width": 1 / 32, "fc_width": 8},
    "deeplab_largefov": {"width": 1 / 16, "fc_width": 8},
    "fcn_resnet50": {"width": 1 / 16},
}
IMAGE = (2, 64, 96, 3)


def loss_of(name: str, policy: str, dtype=jnp.float32):
    """The net's variables, and its loss under a policy, with the statistics that it leaves."""
    model = models.create(name, 5, dtype=dtype, **NETS[name])
    image = jnp.asarray(np.random.default_rng(0).standard_normal(IMAGE), dtype)
    labels = jnp.asarray(np.random.default_rng(1).integers(0, 5, IMAGE[:3]), jnp.uint8)
    variables = model.init(jax.random.key(0), image[:, :32, :32])

    def loss(params, batch_stats):
        held = {"params": params, "batch_stats": batch_stats}
        rngs = {"dropout": jax.random.key(1)}
        logits, changed = model.apply(held, image, train=True, rngs=rngs, mutable=["batch_stats"])
        return sum(losses.cross_entropy(each, labels)[0] for each in jax.tree.leaves(logits)), changed

    return variables, rematerialisation.rematerialised(loss, policy)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_each_policy_keeps_less(name):
    """Bytes that live between the forward and the backward pass, parameters not counted; nothing is computed."""

    def kept(policy: str) -> int:
        variables, loss = loss_of(name, policy)
        params = variables["params"]
        residuals = jax.eval_shape(
            lambda params: jax.vjp(loss, params, variables.get("batch_stats", {}), has_aux=True)[1], params
        )
        size = sum(each.size * each.dtype.itemsize for each in jax.tree.leaves(residuals))
        return size - sum(each.size * each.dtype.itemsize for each in jax.tree.leaves(params))

    none, convolutions, blocks = (kept(policy) for policy in rematerialisation.POLICIES)
    assert convolutions < 0.7 * none
    assert blocks < 0.7 * convolutions


@pytest.mark.slow
@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.parametrize("name", ["fcn8s", "segnet", "fcn_resnet50"])
def test_no_policy_changes_loss_gradients_or_statistics(name):
    with jax.enable_x64(True):
        found = []
        for policy in rematerialisation.POLICIES:
            variables, loss = loss_of(name, policy, jnp.float64)
            gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
            found.append(gradient(variables["params"], variables.get("batch_stats", {})))
        for other in found[1:]:
            for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(other), strict=True):
                # Batch norm multiplies rounding; a gradient that is cut off or doubled would differ by its own size.
                np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-8 * float(jnp.max(jnp.abs(a))) + 1e-12)


@pytest.mark.parametrize("policy", rematerialisation.POLICIES)
def test_devices_meet_once_for_the_statistics_of_batch_norm(policy):
    """Nothing of it is asked for again in the backward pass, whatever else is computed once more."""
    norm = BatchNorm(axis_name="data")
    x = jnp.ones((4, 2, 2, 3))
    variables = BatchNorm().init(jax.random.key(0), x, train=False)

    def loss(x):
        normed, _ = norm.apply(variables, jnp.sin(x), train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.square(normed))

    mesh, split = parallel.make_mesh(jax.local_devices()[:2]), PartitionSpec("data")
    gradient = jax.grad(rematerialisation.rematerialised(loss, policy))
    mapped = jax.shard_map(gradient, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    assert jax.jit(mapped).lower(x).as_text().count("stablehlo.all_gather") == 2  # mean and variance


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match="no rematerialisation policy 'block'; there are none, convolutions, blocks"):
        rematerialisation.rematerialised(lambda x: x, "block")
