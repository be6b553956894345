"""Losses and counts row by row from coarse scores: the same as of the whole, and without ever holding it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from fcn_jax import losses, metrics, models
from fcn_jax.ops import bilinear
from fcn_jax.ops.resampling import map_rows, sum_over_rows
from fcn_jax.plan import slices

SIZE = (45, 37)
KINDS: dict[str, Any] = {
    "transposed": bilinear.upsampling((7, 6), 16, 8, offset=9, size=SIZE),
    "half-pixel": bilinear.interpolation((7, 6), SIZE),
    "aligned": bilinear.interpolation((7, 6), (49, 41), align_corners=True).crop(*SIZE),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def scene(classes=4) -> Any:
    draw = np.random.RandomState(0)
    labels = draw.randint(0, classes, (2, *SIZE)).astype(np.uint8)
    labels[draw.uniform(size=labels.shape) < 0.3] = 255
    return draw.normal(size=(2, 7, 6, classes)).astype(np.float32) * 3, labels


@every_kind
@pytest.mark.parametrize("name", [name for name, loss in losses.LOSSES.items() if loss.by_parts])
def test_losses_are_those_of_the_whole(kind, name):
    scores, labels = scene()
    loss, resampling = losses.LOSSES[name], KINDS[kind]

    def whole(scores):
        return loss(resampling(scores), labels)

    def by_rows(scores):
        return loss.finish(sum_over_rows(loss.sums, scores, labels, resampling))

    (wanted, count), gradient = jax.jit(jax.value_and_grad(whole, has_aux=True))(scores)
    (found, counted), row_gradient = jax.jit(jax.value_and_grad(by_rows, has_aux=True))(scores)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert int(count) == int(counted)
    np.testing.assert_allclose(row_gradient, gradient, rtol=0, atol=1e-5 * np.abs(gradient).max())


@every_kind
def test_counts_and_labels_are_those_of_the_whole(kind):
    scores, labels = scene()
    resampling = KINDS[kind]
    predicted = jnp.argmax(resampling(scores), axis=-1)

    def counted(logits, labels):
        return metrics.confusion(labels, jnp.argmax(logits, axis=-1), 4)

    each = losses.each_image(counted)
    found = jax.jit(lambda scores: sum_over_rows(each, scores, labels, resampling).sum(0))(scores)
    np.testing.assert_array_equal(found, metrics.confusion(jnp.asarray(labels), predicted, 4))
    mapped = jax.jit(lambda scores: map_rows(lambda x: jnp.argmax(x, axis=-1).astype(jnp.uint8), scores, resampling))
    np.testing.assert_array_equal(mapped(scores), predicted)


def test_learned_up_sampling_is_no_resampling():
    module: Any = models.create("fcn8s", 3, width=1 / 32, fc_width=8, upsampling={"upscore8": "dense"})
    assert module.resampling((3, 3), (8, 8)) is None


@pytest.mark.parametrize("topology", [slices.LOCAL, pytest.param("v5e:1x1", marks=pytest.mark.slow)])
def test_the_logits_are_never_held(topology):
    """Temporaries of value and gradient at batch 8, 512×512, 21 classes, by the compilers' own figures."""
    if topology != slices.LOCAL:
        pytest.importorskip("libtpu", reason="libtpu is not installed")
    device = SingleDeviceSharding(slices.devices(slices.parse(topology))[0])
    resampling = bilinear.upsampling((66, 66), 16, 8, offset=9, size=(512, 512))
    scores = jax.ShapeDtypeStruct((8, 66, 66, 21), jnp.float32, sharding=device)
    labels = jax.ShapeDtypeStruct((8, 512, 512), jnp.uint8, sharding=device)
    loss = losses.LOSSES["cross_entropy"]

    def temporaries(function):
        compiled = jax.jit(jax.value_and_grad(function)).lower(scores, labels).compile()
        memory: Any = compiled.memory_analysis()
        return memory.temp_size_in_bytes

    plain = temporaries(lambda scores, labels: loss(resampling(scores), labels)[0])
    fused = temporaries(lambda scores, labels: loss.finish(sum_over_rows(loss.sums, scores, labels, resampling))[0])
    assert fused <= plain / 6
