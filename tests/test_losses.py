"""Cross-entropy: by hand, void pixels against their removal, and what no label and no logit may do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.losses import MAX_PIXEL_LOSS, cross_entropy

VOID = [255, 21, 200]  # "not there", and two values that are no class of four


def scene(seed=0, classes=4, shape=(2, 3, 5)):
    """Logits and int32 labels, a third of which are no class."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, shape)
    labels = np.where(generator.random(shape) < 1 / 3, generator.choice([*VOID, -1], shape), labels)
    return generator.normal(size=(*shape, classes)).astype(np.float32) * 3, labels.astype(np.int32)


@jax.jit
def value_and_gradient(logits, labels):
    (total, count), gradient = jax.value_and_grad(cross_entropy, has_aux=True)(logits, labels)
    return total, count, gradient


def test_by_hand():
    """Two pixels of probabilities (¼, ¾) and (½, ½), one void."""
    logits = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]]))
    total, count, gradient = value_and_gradient(logits, jnp.array([1, 0, 255]))
    np.testing.assert_allclose(total, -np.log(0.75) - np.log(0.5), rtol=1e-6)
    assert count == 2
    assert jnp.result_type(count) == jnp.int32
    np.testing.assert_allclose(gradient, [[0.25, -0.25], [-0.5, 0.5], [0, 0]], atol=1e-7)


def test_masked_is_compressed():
    """A pixel that is no class might as well not be there: value, count and gradient."""
    logits, labels = scene()
    keep = (labels >= 0) & (labels < 4)
    total, count, gradient = value_and_gradient(logits, labels)
    wanted_total, wanted_count, wanted_gradient = value_and_gradient(logits[keep], labels[keep])
    np.testing.assert_allclose(total, wanted_total, rtol=1e-6)
    assert count == wanted_count == keep.sum()
    np.testing.assert_allclose(gradient[keep], wanted_gradient, atol=1e-7)
    np.testing.assert_array_equal(gradient[~keep], 0)


@pytest.mark.parametrize("label", [-1, 4, 21, 255, 256, -2147483648])
def test_labels_that_are_no_class_add_nothing(label):
    total, count, gradient = value_and_gradient(jnp.array([[5.0, 1, 2, 3]]), jnp.array([label]))
    assert (total, count) == (0, 0)
    np.testing.assert_array_equal(gradient, 0)


def test_255_is_void_even_with_more_classes_than_that():
    total, count, gradient = value_and_gradient(jnp.zeros((2, 300)), jnp.array([255, 256]))
    np.testing.assert_allclose(total, np.log(300), rtol=1e-6)
    assert count == 1
    np.testing.assert_array_equal(gradient[0], 0)


def test_unsigned_bytes_are_labels_too():
    logits, labels = scene()
    labels = np.where(labels < 0, 255, labels)
    wanted, found = value_and_gradient(logits, labels), value_and_gradient(logits, labels.astype(np.uint8))
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("logits", "label", "value", "gradient"),
    [
        ([0.0, 100], 0, MAX_PIXEL_LOSS, [-1, 1]),  # clamped in value, not in gradient
        ([0.0, 80], 0, 80, [-1, 1]),
        ([0.0, 1e4], 0, MAX_PIXEL_LOSS, [-1, 1]),
        ([0.0, 1e30], 0, MAX_PIXEL_LOSS, [-1, 1]),  # where subtracting it would leave nothing
        ([-1e38, 1e38], 0, MAX_PIXEL_LOSS, [-1, 1]),
        ([-1e38, 1e38], 1, 0, [0, 0]),
        ([1e38, 1e38], 1, np.log(2), [0.5, -0.5]),
    ],
)
def test_huge_logits(logits, label, value, gradient):
    total, _, found = value_and_gradient(jnp.array([logits]), jnp.array([label]))
    np.testing.assert_allclose(total, value, rtol=1e-6)
    np.testing.assert_allclose(found[0], gradient, atol=1e-6)


def test_the_clamp_is_caffes():
    np.testing.assert_allclose(MAX_PIXEL_LOSS, 87.3365, atol=1e-4)


def test_class_weights_weigh_terms_and_not_the_count():
    logits, labels = scene()
    weights = jnp.array([0.5, 0.0, 3.0, 1.25])
    valid = (labels >= 0) & (labels < 4)
    log_probabilities = jax.nn.log_softmax(logits)
    wanted = -sum(float(weights[k] * log_probabilities[..., k][labels == k].sum()) for k in range(4))

    @jax.jit
    def weighted(logits):
        (total, count), gradient = jax.value_and_grad(cross_entropy, has_aux=True)(logits, labels, weights)
        return total, count, gradient

    total, count, gradient = weighted(logits)
    np.testing.assert_allclose(total, wanted, rtol=1e-5)
    assert count == valid.sum()
    plain = value_and_gradient(logits, labels)[2]
    factor = np.where(valid, np.asarray(weights)[np.where(valid, labels, 0)], 0)[..., None]
    np.testing.assert_allclose(gradient, plain * factor, atol=1e-6)
    assert "HIGHEST" in str(jax.make_jaxpr(lambda x: cross_entropy(x, labels, weights))(logits))


def test_all_void():
    total, count, gradient = value_and_gradient(scene()[0], np.full((2, 3, 5), 255, np.uint8))
    assert (total, count) == (0, 0)
    np.testing.assert_array_equal(gradient, 0)


def test_bfloat16_logits_are_computed_in_float32():
    logits, labels = scene()
    half = jnp.asarray(logits, jnp.bfloat16)
    total, _, gradient = value_and_gradient(half, labels)
    assert (total.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(total, value_and_gradient(half.astype(jnp.float32), labels)[0], rtol=1e-6)


def test_float64_stays():
    logits, labels = scene()
    with jax.enable_x64():
        total, count, gradient = value_and_gradient(logits.astype(np.float64), labels)
        weighted, _ = cross_entropy(jnp.asarray(logits, jnp.float64), labels, jnp.ones(4, jnp.float32))
    assert (total.dtype, gradient.dtype, weighted.dtype, count.dtype) == (*["float64"] * 3, "int32")
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    wanted = -sum(log_probabilities[..., k][labels == k].sum() for k in range(4))
    np.testing.assert_allclose([total, weighted], wanted, rtol=1e-13)


def test_parts_add_up():
    logits, labels = scene()
    whole = value_and_gradient(logits, labels)
    parts = [value_and_gradient(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(parts[0][0] + parts[1][0], whole[0], rtol=1e-6)
    assert parts[0][1] + parts[1][1] == whole[1]
    np.testing.assert_allclose(jnp.concatenate([part[2] for part in parts]), whole[2], atol=1e-7)


def test_one_class_costs_nothing():
    assert cross_entropy(jnp.array([[3.0], [4.0]]), jnp.array([0, 255])) == (0, 1)
