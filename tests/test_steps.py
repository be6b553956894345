"""A step's arithmetic, against the same thing written out: what is summed, what divides it, what a bad value does."""

import dataclasses
import functools
import re
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fcn_jax import evaluation, losses, metrics, models, state, steps
from fcn_jax.models.layers import BatchNorm, Conv, Dropout
from fcn_jax.ops.grid import IMAGE
from fcn_jax.ops.unpooling import unpool_nearest

pytestmark = pytest.mark.usefixtures("fast_compilation")

CLASSES = 3


class Toy(nn.Module):
    """Two convolutions with dropout between them: all that a step can tell of a net."""

    dropout: float = 0.0
    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, image, *, train=False, example_index=None):
        x = nn.relu(Conv(4, 3, 1, dtype=image.dtype, name="first")(image))
        x = Dropout(self.dropout, name="drop")(x, train=train, example_index=example_index)
        return Conv(CLASSES, 1, dtype=image.dtype, name="second")(x)


class Wide(nn.Module):
    """A kernel between two others: it is read on the way down and up again, and then learns."""

    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, image, *, train=False, example_index=None):
        x = nn.relu(Conv(8, 1, dtype=image.dtype, name="first")(image))
        x = nn.relu(Conv(128, 5, 2, dtype=image.dtype, name="second")(x))
        return Conv(CLASSES, 1, dtype=image.dtype, name="third")(x)


@pytest.fixture(scope="module")
def batch():
    """Four images, half of whose pixels are void, in different shares."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, (4, 5, 6)).astype(np.uint8)
    for image, share in enumerate((0.0, 0.9, 0.5, 0.6)):
        label[image][rng.random((5, 6)) < share] = 255
    image = rng.standard_normal((4, 5, 6, 3), np.float32)
    return {"image": image, "label": label, "index": np.arange(4, dtype=np.int32)}


@pytest.fixture(scope="module")
def params(batch):
    return Toy().init(jax.random.key(1), batch["image"])["params"]


def apply(params, image) -> Any:
    return Toy().apply({"params": params}, image)


def one_step(params, batch, *, dropout=0.0, step=0, normalization="valid_mean", optimizer=None, **arguments):
    """Parameters and report after one step of plain descent at rate 1, so that the change is minus the gradient."""
    optimizer = optimizer or optax.sgd(1.0)
    train_step = steps.make_train_step(Toy(dropout), optimizer, normalization=normalization, **arguments)
    begun = dataclasses.replace(state.create(params, optimizer), step=jnp.asarray(step, jnp.int32))
    after, report = jax.jit(train_step)(begun, batch)
    assert int(after.step) == step + 1
    return after.params, report


def gradient(params, batch, **arguments):
    return jax.tree.map(jnp.subtract, params, one_step(params, batch, **arguments)[0])


def assert_trees_close(found, wanted, tolerance=2e-6):
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(wanted))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("normalization", steps.NORMALIZATIONS)
def test_the_sum_over_all_pixels_is_divided_once(params, batch, normalization):
    def loss(params):
        return losses.cross_entropy(apply(params, batch["image"]), batch["label"])

    (loss_sum, pixels), wanted = jax.value_and_grad(loss, has_aux=True)(params)
    divisor = 4 if normalization == "sum" else int((batch["label"] != 255).sum())
    wanted = jax.tree.map(lambda g: g / divisor, wanted)
    assert_trees_close(gradient(params, batch, normalization=normalization), wanted)
    _, report = one_step(params, batch, normalization=normalization)
    assert int(report["pixels"]) == int(pixels) == (batch["label"] != 255).sum()
    assert float(report["loss_sum"]) == pytest.approx(float(loss_sum), rel=1e-6)
    norms = [float(jnp.linalg.norm(leaf.ravel())) for leaf in jax.tree.leaves(wanted)]
    np.testing.assert_allclose(report["gradient_norms"], norms, rtol=1e-5)


@pytest.mark.parametrize("normalization", ["sum", "valid_mean"])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_changes_nothing(params, batch, normalization, accumulate):
    """In float64, with dropout: parts have unequal numbers of pixels, and masks belong to the examples."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        batch = batch | {"image": batch["image"].astype(np.float64)}
        arguments = {"normalization": normalization, "dropout": 0.5}
        whole, whole_report = one_step(params, batch, **arguments)
        parts, parts_report = one_step(params, batch, accumulate=accumulate, **arguments)
        assert parts["first"]["kernel"].dtype == np.float64
        assert_trees_close(parts, whole, 1e-14)
        assert_trees_close(parts_report, whole_report, 1e-6)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_mean_of_the_parts_means(params, batch, accumulate):
    """Caffe's iter_size with a normalized loss: each part is divided by its own pixels, whatever their number."""

    def loss(params):
        means = []
        for rows in np.arange(4).reshape(-1, accumulate).T:
            total, pixels = losses.cross_entropy(apply(params, batch["image"][rows]), batch["label"][rows])
            means.append(total / pixels.astype(total.dtype))
        return sum(means) / accumulate

    found = gradient(params, batch, normalization="part_mean", accumulate=accumulate)
    assert_trees_close(found, jax.grad(loss)(params), 1e-5)


def test_masks_belong_to_seed_step_and_place_in_the_batch(params, batch):
    reference = gradient(params, batch, dropout=0.5)
    order = np.array([2, 0, 3, 1])
    assert_trees_close(gradient(params, {k: x[order] for k, x in batch.items()}, dropout=0.5), reference)
    for other in ({"step": 1}, {"seed": 1}):
        changed = gradient(params, batch, dropout=0.5, **other)
        assert not np.allclose(changed["second"]["kernel"], reference["second"]["kernel"], rtol=1e-3)
    moved = gradient(params, batch | {"index": batch["index"] + 4}, dropout=0.5)
    assert not np.allclose(moved["second"]["kernel"], reference["second"]["kernel"], rtol=1e-3)


def test_frozen_parameters_have_no_gradient(params, batch):
    free, held = (one_step(params, batch, frozen=frozen)[1]["gradient_norms"] for frozen in ((), ("first/*",)))
    assert (np.asarray(free) > 0).all()
    np.testing.assert_array_equal(np.asarray(held) > 0, [False, False, True, True])
    np.testing.assert_allclose(held[2:], free[2:], rtol=1e-6)


@pytest.mark.parametrize("frozen", [("first/*",), ("*",)])
@pytest.mark.parametrize("options", [{"remat": "convolutions"}, {"remat": "blocks"}, {"accumulate": 2}])
def test_frozen_parameters_stay_so_whatever_else_is_asked(params, batch, frozen, options):
    _, wanted = one_step(params, batch, frozen=frozen)
    _, found = one_step(params, batch, frozen=frozen, **options)
    np.testing.assert_allclose(found["gradient_norms"], wanted["gradient_norms"], rtol=1e-5)
    assert (np.asarray(wanted["gradient_norms"]) > 0).sum() == (2 if frozen == ("first/*",) else 0)


def test_a_batch_without_a_labelled_pixel_teaches_nothing(params, batch):
    void = batch | {"label": np.full_like(batch["label"], 255)}
    after, report = one_step(params, void)
    assert (float(report["loss_sum"]), int(report["pixels"])) == (0, 0)
    jax.tree.map(np.testing.assert_array_equal, after, params)


def test_a_nonfinite_step_is_reported_and_leaves_everything_alone(params, batch):
    optimizer = optax.adam(0.1)
    train_step = jax.jit(steps.make_train_step(Toy(), optimizer, normalization="valid_mean"))
    begun, _ = train_step(state.create(params, optimizer), batch)
    image = batch["image"].copy()
    image[1, 2, 3] = np.inf
    image_label = batch["label"].copy()
    image_label[1] = 0
    after, report = train_step(begun, batch | {"image": image, "label": image_label})
    assert not np.isfinite(report["loss_sum"]) or not np.isfinite(report["gradient_norms"]).all()
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (begun.params, begun.opt_state))
    assert int(after.step) == 2

    broken = jax.tree.map(jnp.copy, params)
    broken["second"]["bias"] = broken["second"]["bias"].at[1].set(jnp.inf)
    after, report = one_step(broken, batch)
    assert not np.isfinite(report["gradient_norms"]).all()
    jax.tree.map(np.testing.assert_array_equal, after, broken)


def test_a_donated_state_is_changed_in_place(batch):
    """On CPUs; old values that a choice reads beside new ones were copied first, the largest parameters among them."""
    optimizer = optax.sgd(1e-3, momentum=0.9)
    model: Any = Wide()
    begun = state.create(model.init(jax.random.key(1), batch["image"])["params"], optimizer)
    step = jax.jit(steps.make_train_step(model, optimizer, normalization="valid_mean"), donate_argnums=0)
    traced = step.trace(begun, batch)
    text = traced.lower().compile().as_text() or ""
    assert "f32[5,5,8,128]" in text
    assert not re.search(r"f32\[5,5,8,128\]\S* copy\(", text)
    # Each choice by platform is a case, too, of one branch; only CPUs have another one.
    branches = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text().count('"stablehlo.case"')
        for platform in ("cpu", "tpu", "cuda")
    }
    assert branches["cpu"] == branches["tpu"] + 1 == branches["cuda"] + 1


@pytest.mark.slow
def test_a_step_in_bfloat16():
    """Features are of half precision; parameters, momentum and loss are not, and gradients point the same way."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, (2, 40, 56)).astype(np.uint8)
    image = rng.standard_normal((*label.shape, 3), np.float32)
    batch = {"image": image, "label": label, "index": np.arange(2, dtype=np.int32)}
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        model = models.create("fcn8s", CLASSES, trunk="vgg11", width=1 / 16, fc_width=16, padding="same", dtype=dtype)
        params = jax.tree.map(  # with which every layer learns
            lambda x: np.random.default_rng(x.size).normal(0, np.sqrt(2 / max(np.prod(x.shape[:-1]), 8)), x.shape),
            state.abstract_params(model),
        )
        optimizer = optax.trace(decay=0.9)  # its state, after one step, is the gradient
        begun = state.create(jax.tree.map(lambda x: x.astype(np.float32), params), optimizer)
        step = jax.jit(steps.make_train_step(model, optimizer, normalization="valid_mean"))
        after, report = step(begun, batch)
        assert {x.dtype for x in jax.tree.leaves((after.params, after.opt_state))} == {jnp.dtype(jnp.float32)}
        assert {x.dtype for x in jax.tree.leaves(report) if jnp.issubdtype(x.dtype, jnp.floating)} == {
            jnp.dtype(jnp.float32)
        }
        assert ("bf16" in step.lower(begun, batch).as_text()) == (dtype == jnp.bfloat16)
        found[dtype] = float(report["loss_sum"]), jax.tree.leaves(after.opt_state)
    (loss, gradients), (half_loss, half_gradients) = found[jnp.float32], found[jnp.bfloat16]
    assert half_loss == pytest.approx(loss, rel=1e-2)
    for wanted, half in zip(gradients, half_gradients, strict=True):
        along = np.vdot(wanted, half) / (np.linalg.norm(wanted) * np.linalg.norm(half) + 1e-30)
        assert along > 0.9 or not np.any(wanted)


def test_the_eval_step_counts_every_labelled_pixel(params, batch):
    matrix = jax.jit(steps.make_eval_step(Toy(dropout=0.9)))({"params": params}, batch)
    predicted = np.argmax(apply(params, batch["image"]), axis=-1)
    wanted = np.zeros((CLASSES, CLASSES), np.int32)
    for truth, guess in zip(batch["label"].ravel(), predicted.ravel(), strict=True):
        if truth != 255:
            wanted[truth, guess] += 1
    np.testing.assert_array_equal(matrix, wanted)
    np.testing.assert_array_equal(metrics.confusion(batch["label"], predicted, CLASSES), wanted)


class Normed(nn.Module):
    """A net with batch norm, an auxiliary head in training, and scores at half the size."""

    num_classes: int = CLASSES
    auxiliary: bool = False
    axis_name: str | None = None
    in_channels: int = 3

    @nn.compact
    def __call__(self, image, *, train=False, upsample=True, example_index=None):
        x = Conv(4, 2, 0, 2, dtype=image.dtype, name="first")(image)
        x = nn.relu(BatchNorm(0.5, axis_name=self.axis_name, dtype=image.dtype, name="norm")(x, train=train))
        scores = Conv(CLASSES, 1, dtype=image.dtype, name="second")(x)
        up = (lambda x: unpool_nearest(x, image.shape[1:3])) if upsample else (lambda x: x)
        aux = Conv(CLASSES, 1, dtype=image.dtype, name="third")(x) if self.auxiliary else None
        return {"out": up(scores), "aux": up(aux)} if self.auxiliary and train else up(scores)

    def score_grid(self):
        return IMAGE.conv(2, 2)


def normed_step(batch, *, accumulate=1, model=None, **arguments):
    model = model or Normed()
    held = model.init(jax.random.key(1), batch["image"])
    # The heads of an auxiliary net stand in training alone.
    optimizer = optax.sgd(1.0)
    train_step = steps.make_train_step(model, optimizer, normalization="valid_mean", accumulate=accumulate, **arguments)
    begun = state.create(held["params"], optimizer, held["batch_stats"])
    after, report = jax.jit(train_step)(begun, batch)
    return begun, after, report


@pytest.fixture(scope="module")
def even(batch):
    """The batch at an even size."""
    return batch | {"image": batch["image"][:, :4], "label": batch["label"][:, :4]}


def test_running_statistics_are_part_of_the_state(even):
    begun, after, _ = normed_step(even)
    x: Any = Conv(4, 2, 0, 2).apply({"params": begun.params["first"]}, even["image"])
    np.testing.assert_allclose(after.batch_stats["norm"]["mean"], 0.5 * np.mean(x, (0, 1, 2)), rtol=1e-5, atol=1e-6)


def test_each_part_has_its_own_statistics(even):
    """As with Caffe's iter_size: the second part goes on from what the first left."""
    begun, after, _ = normed_step(even, accumulate=2)
    running = np.zeros(4)
    for part in (even["image"][::2], even["image"][1::2]):
        x: Any = Conv(4, 2, 0, 2).apply({"params": begun.params["first"]}, part)
        running = 0.5 * running + 0.5 * np.mean(x, (0, 1, 2))
    np.testing.assert_allclose(after.batch_stats["norm"]["mean"], running, rtol=1e-5, atol=1e-6)


def test_a_nonfinite_step_leaves_statistics_alone(even):
    image = even["image"].copy()
    image[0, 0, 0, 0] = np.nan
    begun, after, _ = normed_step(even | {"image": image})
    for a, b in zip(jax.tree.leaves(after.batch_stats), jax.tree.leaves(begun.batch_stats), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_auxiliary_head_learns_from_the_nets_labels(even):
    model = Normed(auxiliary=True)
    begun, after, report = normed_step(even, model=model, auxiliary=0.25)

    def loss(params):
        held = {"params": params, "batch_stats": begun.batch_stats}
        logits: Any = model.apply(held, even["image"], train=True)
        (out, count), (aux, _) = (losses.cross_entropy(logits[name], even["label"]) for name in ("out", "aux"))
        return (out + 0.25 * aux) / count.astype(out.dtype), out

    (_, out), wanted = jax.value_and_grad(loss, has_aux=True)(begun.params)
    assert_trees_close(jax.tree.map(jnp.subtract, begun.params, after.params), wanted, 1e-5)
    np.testing.assert_allclose(report["loss_sum"], out, rtol=1e-5)


def test_scores_are_compared_where_they_are_centred(even):
    """A cell over pixels 0 and 1 is centred between them: the latter counts."""
    begun, after, report = normed_step(even, at_scores=True)
    labels = even["label"][:, 1::2, 1::2]

    def loss(params):
        held = {"params": params, "batch_stats": begun.batch_stats}
        scores: Any = Normed().apply(held, even["image"], train=True, upsample=False)
        total, count = losses.cross_entropy(scores, labels)
        return total / count.astype(total.dtype)

    assert_trees_close(jax.tree.map(jnp.subtract, begun.params, after.params), jax.grad(loss)(begun.params), 1e-5)
    assert int(report["pixels"]) == np.count_nonzero(labels < CLASSES)


@pytest.mark.parametrize("count_weights", [False, True])
def test_weighted_losses_are_divided_by_what_they_count(params, batch, count_weights):
    weights = jnp.array([0.5, 2.0, 3.0])
    loss = losses.of_pixels(losses.cross_entropy, class_weights=weights, count_weights=count_weights)

    def whole(params):
        total, count = loss(apply(params, batch["image"]), batch["label"])
        return total / count.astype(total.dtype)

    assert_trees_close(gradient(params, batch, loss=loss), jax.grad(whole)(params))
    # In two parts the same, with one divisor for both.
    assert_trees_close(gradient(params, batch, loss=loss, accumulate=2), jax.grad(whole)(params))


class TestFused:
    """FCN-8s, narrow and on the trunk of the fewest layers; its last up-sampling is bilinear."""

    CLASSES = 60  # so many that logits are larger than all else together
    SIZE = (40, 56)
    WEIGHTS = np.linspace(0.5, 2, CLASSES, dtype=np.float32)
    LOSSES: ClassVar = {
        "cross_entropy": losses.LOSSES["cross_entropy"],
        "weighted": losses.of_pixels(losses.cross_entropy, class_weights=WEIGHTS),
        "weighted, counted": losses.of_pixels(losses.cross_entropy, class_weights=WEIGHTS, count_weights=True),
        "focal": losses.LOSSES["focal"],
        "dice": losses.LOSSES["dice"],
    }

    @pytest.fixture(scope="class")
    @classmethod
    def run(cls):
        """`run(loss, fused=…)`: state and report after a step, and the bytes of the program's temporaries."""
        model = models.create("fcn8s", cls.CLASSES, trunk="vgg11", width=1 / 32, fc_width=8)
        rng = np.random.default_rng(0)
        params = jax.tree.map(  # with which every layer that may learns
            lambda x: rng.normal(0, np.sqrt(2 / max(np.prod(x.shape[:-1]), 8)), x.shape).astype(np.float32),
            state.abstract_params(model),
        )
        label = rng.integers(0, cls.CLASSES, (2, *cls.SIZE)).astype(np.uint8)
        label[rng.random(label.shape) < 0.4] = 255
        image = rng.standard_normal((*label.shape, 3), np.float32)
        batch = {"image": image, "label": label, "index": np.arange(2, dtype=np.int32)}
        keep = optax.trace(decay=0.0)  # its state is the gradient
        begun = state.create(params, keep)

        @functools.cache
        def run(name, **arguments):
            # What is below the scores would learn from their gradient; without it compiling takes half the time.
            arguments |= {"normalization": "valid_mean", "loss": cls.LOSSES[name], "frozen": ("conv*",)}
            step = steps.make_train_step(model, keep, **arguments)
            compiled = jax.jit(step).lower(begun, batch).compile()
            memory: Any = compiled.memory_analysis()
            return *compiled(begun, batch), memory.temp_size_in_bytes

        return run

    @pytest.mark.parametrize("name", LOSSES)
    def test_the_step_is_the_same(self, run, name):
        after, report, _ = run(name)
        wanted, wanted_report, _ = run(name, fused=False)
        for part in wanted_report:
            np.testing.assert_allclose(report[part], wanted_report[part], rtol=1e-5)
        for found, leaf in zip(jax.tree.leaves(after.opt_state), jax.tree.leaves(wanted.opt_state), strict=True):
            np.testing.assert_allclose(found, leaf, rtol=0, atol=1e-5 * np.abs(leaf).max())

    @pytest.mark.parametrize("name", LOSSES)
    def test_no_array_is_as_large_as_the_logits(self, run, name):
        logits = 4 * 2 * self.SIZE[0] * self.SIZE[1] * self.CLASSES
        assert run(name)[-1] < logits < run(name, fused=False)[-1]

    @pytest.mark.parametrize("padding", ["caffe", "same"])
    def test_nor_is_one_in_evaluation_and_in_use(self, padding):
        """Of the step that counts, and of predicted labels."""
        model = models.create("fcn8s", self.CLASSES, trunk="vgg11", width=1 / 32, fc_width=8, padding=padding)
        batch = {
            "image": jnp.zeros((2, 120, 96, 3)),
            "label": jnp.zeros((2, 120, 96), jnp.uint8),
        }
        variables = {"params": jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.abstract_params(model))}
        logits = 4 * 2 * 120 * 96 * self.CLASSES
        apply: Any = model.apply
        programs = (
            (jax.jit(steps.make_eval_step(model)), batch),
            (evaluation.predicted_labels(model), batch["image"]),
            (jax.jit(lambda variables, image: jnp.argmax(apply(variables, image), axis=-1)), batch["image"]),
        )
        held = []
        for program, argument in programs:
            memory: Any = program.lower(variables, argument).compile().memory_analysis()
            held.append(memory.temp_size_in_bytes)
        counting, labelling, plain = held
        assert counting < logits / 2 > labelling and logits <= plain
