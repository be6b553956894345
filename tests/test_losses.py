"""The losses: by hand, void pixels against their removal, and what no label and no logit may do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import config as experiment
from fcn_jax import losses
from fcn_jax.losses import MAX_PIXEL_LOSS, cross_entropy, dice, focal, lovasz, top_k

VOID = [255, 21, 200]  # "not there", and two values that are no class of four


def scene(seed=0, classes=4, shape=(2, 3, 5)) -> Any:
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
    # A product, in an accelerator's default precision, would round the weights.
    assert "dot_general" not in str(jax.make_jaxpr(lambda x: cross_entropy(x, labels, weights))(logits))


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


def test_the_count_may_be_of_weights():
    """PyTorch's denominator: the mean is then a weighted one."""
    logits, labels = scene()
    weights = jnp.array([0.5, 2.0, 0.0, 4.0])
    total, count = cross_entropy(logits, labels, weights, count_weights=True)
    valid = labels[(labels >= 0) & (labels < 4)]
    np.testing.assert_allclose(count, np.asarray(weights)[valid].sum(), rtol=1e-6)
    np.testing.assert_allclose(total, cross_entropy(logits, labels, weights)[0], rtol=1e-6)


OTHERS = {"focal": focal, "top_k": top_k, "dice": dice, "lovasz": lovasz}


def probabilities(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def focal_by_hand(logits, labels):
    p = [probabilities(x)[y] for x, y in zip(logits.reshape(-1, 4), labels.ravel(), strict=True) if 0 <= y < 4]
    return sum(-((1 - x) ** 2) * np.log(x) for x in p), len(p)


def top_k_by_hand(logits, labels):
    total, count = 0.0, 0
    for image, truth in zip(logits, labels, strict=True):
        costs = sorted(
            (
                -np.log(probabilities(x)[y])
                for x, y in zip(image.reshape(-1, 4), truth.ravel(), strict=True)
                if 0 <= y < 4
            ),
            reverse=True,
        )
        kept = int(np.ceil(0.25 * len(costs)))
        total, count = total + sum(costs[:kept]), count + kept
    return total, count


def dice_by_hand(logits, labels):
    total = 0.0
    for image, truth in zip(logits, labels, strict=True):
        valid = (truth >= 0) & (truth < 4)
        p, g = probabilities(image[valid]), np.eye(4)[truth[valid]]
        present = g.sum(0) > 0
        total += np.mean((1 - 2 * (p * g).sum(0) / ((p**2).sum(0) + g.sum(0)))[present])
    return total, len(logits)


def lovasz_by_hand(logits, labels):
    """The definition itself: the set function is asked for every prefix of the sorted errors."""
    total = 0.0
    for image, truth in zip(logits, labels, strict=True):
        valid = (truth >= 0) & (truth < 4)
        p, y = probabilities(image[valid].astype(np.float64)), truth[valid]
        of_class = []
        for c in np.unique(y):
            foreground = y == c
            errors = np.where(foreground, 1 - p[:, c], p[:, c])
            order, before, sum_ = np.argsort(-errors), 0.0, 0.0
            for n in range(1, len(order) + 1):
                mistaken = np.zeros(len(y), bool)
                mistaken[order[:n]] = True
                predicted = foreground ^ mistaken
                jaccard = 1 - (predicted & foreground).sum() / max((predicted | foreground).sum(), 1)
                sum_ += errors[order[n - 1]] * (jaccard - before)
                before = jaccard
            of_class.append(sum_)
        total += np.mean(of_class)
    return total, len(logits)


BY_HAND = {"focal": focal_by_hand, "top_k": top_k_by_hand, "dice": dice_by_hand, "lovasz": lovasz_by_hand}
every_other = pytest.mark.parametrize("name", OTHERS)


@every_other
def test_is_what_its_paper_says(name):
    logits, labels = scene(3)
    total, count = jax.jit(OTHERS[name])(logits, labels)
    wanted, counted = BY_HAND[name](logits, labels)
    np.testing.assert_allclose(total, wanted, rtol=2e-5)
    assert int(count) == counted


@every_other
def test_void_pixels_have_no_part_in_it(name):
    """Neither value nor gradient changes with what a net says of them, and they have no gradient themselves."""
    logits, labels = scene(4)
    void = (labels < 0) | (labels >= 4)
    other = np.where(void[..., None], 7.0, logits).astype(np.float32)
    take = jax.jit(jax.value_and_grad(lambda x: OTHERS[name](x, labels)[0]))
    (value, gradient), (again, changed) = take(logits), take(other)
    np.testing.assert_allclose(value, again, rtol=1e-6)
    np.testing.assert_allclose(gradient, changed, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(gradient)[void], 0)
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


@every_other
def test_images_add_up(name):
    logits, labels = scene(5, shape=(4, 3, 5))
    whole = OTHERS[name](logits, labels)
    parts = [OTHERS[name](logits[i : i + 2], labels[i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(whole[0], parts[0][0] + parts[1][0], rtol=1e-6)
    assert int(whole[1]) == int(parts[0][1]) + int(parts[1][1])


@every_other
def test_an_image_without_a_label_costs_nothing(name):
    logits, labels = scene(6)
    total, count = OTHERS[name](logits, np.full_like(labels, 255))
    assert (float(total), int(count)) == (0.0, 0)
    gradient = jax.grad(lambda x: OTHERS[name](x, np.full_like(labels, 255))[0])(logits)
    np.testing.assert_array_equal(gradient, 0)


@every_other
def test_a_sure_and_right_net_costs_nothing(name):
    labels = scene()[1] % 4
    logits = 60.0 * np.eye(4, dtype=np.float32)[labels]
    value, gradient = jax.value_and_grad(lambda x: OTHERS[name](x, labels)[0])(logits)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    assert np.all(np.isfinite(gradient))


def test_gamma_0_is_cross_entropy():
    logits, labels = scene()
    np.testing.assert_allclose(focal(logits, labels, gamma=0.0)[0], cross_entropy(logits, labels)[0], rtol=1e-6)
    np.testing.assert_allclose(top_k(logits, labels, fraction=1.0)[0], cross_entropy(logits, labels)[0], rtol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_config_names_them(name):
    fields = experiment.default().loss
    fields.name = name
    logits, labels = scene()
    wanted = losses.LOSSES[name](logits, labels)
    np.testing.assert_allclose(losses.make_loss(fields)(logits, labels), wanted, rtol=1e-6)


def test_a_config_weighs_classes():
    fields = experiment.default().loss
    weights = np.array([1, 2, 3, 4], np.float32)
    logits, labels = scene()
    found = losses.make_loss(fields, weights)(logits, labels)
    np.testing.assert_allclose(found, cross_entropy(logits, labels, jnp.asarray(weights)), rtol=1e-6)
