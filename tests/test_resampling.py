"""Losses and counts row by row from coarse scores: the same as of the whole, and without ever holding it."""

from functools import partial
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


def rowwise_losses(classes) -> dict[str, losses.Loss]:
    """The losses by parts by their names, and cross-entropy with class weights, counted or not."""
    weights = np.linspace(0.5, 2, classes, dtype=np.float32)
    weighted = partial(losses.of_pixels, losses.cross_entropy, class_weights=weights)
    plain = {name: loss for name, loss in losses.LOSSES.items() if loss.by_parts}
    return plain | {"weighted": weighted(), "weighted, counted": weighted(count_weights=True)}


every_loss = pytest.mark.parametrize("name", rowwise_losses(2))


def scene(classes=4) -> Any:
    draw = np.random.RandomState(0)
    labels = draw.randint(0, classes, (2, *SIZE)).astype(np.uint8)
    labels[draw.uniform(size=labels.shape) < 0.3] = 255
    return draw.normal(size=(2, 7, 6, classes)).astype(np.float32) * 3, labels


@every_kind
@every_loss
def test_losses_are_those_of_the_whole(kind, name):
    scores, labels = scene()
    loss, resampling = rowwise_losses(4)[name], KINDS[kind]

    def whole(scores):
        return loss(resampling(scores), labels)

    def by_rows(scores):
        return loss.finish(sum_over_rows(loss.sums, scores, labels, resampling))

    (wanted, count), gradient = jax.jit(jax.value_and_grad(whole, has_aux=True))(scores)
    (found, counted), row_gradient = jax.jit(jax.value_and_grad(by_rows, has_aux=True))(scores)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert counted.dtype == count.dtype
    np.testing.assert_allclose(counted, count, rtol=1e-6)
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


@pytest.mark.parametrize(
    ("name", "topology"),
    [
        *((name, slices.LOCAL) for name in ("cross_entropy", "weighted", "focal", "dice")),
        *(
            pytest.param(name, "v5e:1x1", marks=pytest.mark.slow)
            for name in ("cross_entropy", "weighted", "focal", "dice")
        ),
    ],
)
def test_the_logits_are_never_held(name, topology, request):
    """Temporaries of value and gradient at batch 8, 512×512, 21 classes, by the compilers' own figures."""
    if topology != slices.LOCAL:
        request.getfixturevalue("libtpu")
    device = SingleDeviceSharding(slices.devices(slices.parse(topology))[0])
    resampling = bilinear.upsampling((66, 66), 16, 8, offset=9, size=(512, 512))
    scores = jax.ShapeDtypeStruct((8, 66, 66, 21), jnp.float32, sharding=device)
    labels = jax.ShapeDtypeStruct((8, 512, 512), jnp.uint8, sharding=device)
    loss = rowwise_losses(21)[name]

    def temporaries(function):
        compiled = jax.jit(jax.value_and_grad(function)).lower(scores, labels).compile()
        memory: Any = compiled.memory_analysis()
        return memory.temp_size_in_bytes

    plain = temporaries(lambda scores, labels: loss(resampling(scores), labels)[0])
    fused = temporaries(lambda scores, labels: loss.finish(sum_over_rows(loss.sums, scores, labels, resampling))[0])
    assert fused <= plain / 6
