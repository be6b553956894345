"""The drawn data set: pure in (seed, split, index), balanced, and of no use to whoever looks at colour alone."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import cast
from zlib import crc32

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fcn_jax.data import synthetic
from fcn_jax.data.synthetic import INFO, Shapes, open_split
from fcn_jax.errors import ConfigError
from fcn_jax.labels import IGNORE
from fcn_jax.losses import cross_entropy
from fcn_jax.metrics import confusion, scores


def fingerprint(example) -> int:
    return crc32(example["label"].tobytes(), crc32(example["image"].tobytes()))


def fields(**changes):
    shapes = {"height": 64, "width": 96, "train_images": 20, "val_images": 5, "seed": 3}
    return SimpleNamespace(shapes=SimpleNamespace(**(shapes | changes)))


@pytest.fixture(scope="module")
def examples():
    source = Shapes(128, 128, 150, "train")
    return [source[index] for index in range(len(source))]


def mean_iou(matrix: np.ndarray) -> float:
    hits = np.diag(matrix)
    return float(np.mean(hits / (matrix.sum(0) + matrix.sum(1) - hits)))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 70), (96, 96), (200, 41)])
def test_examples_have_the_agreed_form(height, width):
    source = Shapes(height, width, 9, "val", seed=1)
    example = source[8]
    assert example["image"].shape == (height, width, 3)
    assert example["image"].dtype == np.uint8 and example["image"].flags.c_contiguous
    assert example["label"].shape == (height, width) and example["label"].dtype == np.uint8
    assert set(np.unique(example["label"])) <= {*range(INFO.num_classes), IGNORE}
    assert example["id"] == "shapes_val_000008"
    assert len(source) == 9 and source.info.class_names[0] == "background"


def test_an_example_depends_on_seed_split_and_index_only():
    source = Shapes(64, 64, 10, "train", seed=4)
    forwards = [fingerprint(source[index]) for index in range(10)]
    again = [fingerprint(Shapes(64, 64, 1000, "train", seed=4)[index]) for index in reversed(range(10))]
    assert forwards == again[::-1]
    others = [Shapes(64, 64, 10, "val", seed=4), Shapes(64, 64, 10, "train", seed=5)]
    everything = forwards + [fingerprint(other[index]) for other in others for index in range(10)]
    assert len(set(everything)) == 30


def test_threads_and_processes_draw_the_same():
    source = Shapes(64, 64, 32, "train", seed=2)
    expected = [fingerprint(source[index]) for index in range(32)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda index: fingerprint(source[index]), range(32))) == expected
    program = (
        "import pickle, sys; from zlib import crc32; source = pickle.load(sys.stdin.buffer); example = source[7];"
        "print(crc32(example['label'].tobytes(), crc32(example['image'].tobytes())), 'jax' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(source), capture_output=True, check=True)
    assert run.stdout.decode().split() == [str(expected[7]), "False"]


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_outside_is_refused(index):
    with pytest.raises(IndexError, match=f"no image {index} among 10"):
        Shapes(64, 64, 10, "train")[index]


def test_every_class_is_common_and_background_is_not_everything(examples):
    labels = np.concatenate([example["label"].ravel() for example in examples])
    shares = np.bincount(labels, minlength=IGNORE + 1) / labels.size
    assert 0.6 < shares[0] < 0.75
    assert shares[1 : INFO.num_classes].min() > 0.025
    assert 0.02 < shares[IGNORE] < 0.06


def test_void_is_a_contour_one_pixel_wide(examples):
    """Void parts different labels, and opening it by 3×3 pixels leaves next to nothing."""
    void = np.stack([example["label"] for example in examples]) == IGNORE
    thick = np.stack([cv2.morphologyEx(each.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3))) for each in void])
    assert thick.sum() < 0.03 * void.sum()
    for example in examples[:20]:
        label = example["label"]
        between = label[:, 1:] != label[:, :-1]
        assert (label[:, 1:][between] == IGNORE).sum() + (label[:, :-1][between] == IGNORE).sum() > 0.9 * between.sum()


def test_things_stand_out_from_what_they_touch():
    """Between things and all that they touch lie grey levels and a rim of ink, darker than either."""
    rng = np.random.default_rng(0)
    gaps = [abs(synthetic.contrasting_tone(rng, np.array([120.0])) - 120) for _ in range(100)]
    assert np.quantile(gaps, 0.05) >= synthetic.CONTRAST
    assert synthetic.TONES[0] > synthetic.INK.max() + synthetic.CONTRAST


def test_a_colour_histogram_knows_little(examples):
    """The majority class of each of 16³ colours, fitted on 100 images and scored on 50."""

    def colours(part):
        image = np.stack([example["image"] for example in part]).astype(int) // 16
        label = np.stack([example["label"] for example in part]).astype(int)
        valid = label != IGNORE
        return (image @ [256, 16, 1])[valid], label[valid]

    def pairs(first, second, num_first):
        counts = np.bincount(first * INFO.num_classes + second, minlength=num_first * INFO.num_classes)
        return counts.reshape(num_first, INFO.num_classes).astype(float)

    votes = pairs(*colours(examples[:100]), 16**3)
    colour, label = colours(examples[100:])
    # All pixels count alike, or all classes: mean IU rewards rare classes, so the second classifier may do better.
    for weights in (np.ones(INFO.num_classes), 1 / votes.sum(0)):
        guess = (votes * weights).argmax(1)[colour]
        assert mean_iou(pairs(label, guess, INFO.num_classes)) <= 0.40


@pytest.mark.slow
def test_a_net_of_1x1_convolutions_knows_little(examples):
    """Three layers of 64 on single pixels, with all pixels counting alike or all classes; scored as the histogram."""
    net = nn.Sequential(
        [nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(INFO.num_classes)]
    )
    optimizer = optax.adam(2e-3)

    def pixels(part):
        image = np.stack([example["image"] for example in part]).astype(np.float32).reshape(-1, 3) / 64 - 2
        return image, np.stack([example["label"] for example in part]).reshape(-1)

    @jax.jit
    def learn(params, opt_state, image, label, weights):
        def loss(params):
            total, count = cross_entropy(cast(jax.Array, net.apply(params, image)), label, weights)
            return total / count.astype(total.dtype)

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    image, label = pixels(examples[:100])
    unseen, truth = pixels(examples[100:])
    shares = np.bincount(label[label != IGNORE], minlength=INFO.num_classes) / np.sum(label != IGNORE)
    for weights in (np.ones(INFO.num_classes), 1 / shares / INFO.num_classes):
        params = net.init(jax.random.key(0), image[:1])
        opt_state, rng = optimizer.init(params), np.random.default_rng(0)
        for _ in range(600):
            batch = rng.integers(0, len(image), 8192)
            params, opt_state = learn(params, opt_state, image[batch], label[batch], weights.astype(np.float32))
        guess = jnp.argmax(cast(jax.Array, net.apply(params, unseen)), -1)
        assert scores(confusion(jnp.asarray(truth), guess, INFO.num_classes)).mean_iou <= 0.40


def test_a_lollipop_is_a_stick_with_a_disc():
    """The stem is as wide as a stick, the head as wide as a disc: neither can be told from its middle alone."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        widths = synthetic.fill(synthetic.lollipop(rng), 1.0, 0.0)[0].sum(0)
        widths = widths[widths > 2]
        assert 22 <= widths.max() <= 36.5
        assert 10 <= np.median(widths[-20:-2]) <= 13.5


def test_outlines_are_filled_to_a_quarter_of_a_pixel():
    """The area that a turned rectangle and a ring cover is that of geometry, give or take a rim of that width."""
    for angle in (0.0, 0.3, 2.0):
        thing, filling = synthetic.fill([(synthetic.bar(30, 12), 255)], 1.0, angle)
        assert 30 * 12 < thing.sum() < 30.5 * 12.5
        assert 26.5 * 8.5 < filling.sum() < 27.5 * 9.5  # without 1.5 pixels of ink on every side
    halved_ring, _ = synthetic.fill([(synthetic.CIRCLE * 32, 255), (synthetic.CIRCLE * 16, 0)], 0.5, 0.0)
    assert np.pi * (15.75**2 - 8.25**2) < halved_ring.sum() < np.pi * (16.25**2 - 7.75**2)


def test_open_split_reads_the_fields():
    train, val = open_split(fields(), "train"), open_split(fields(), "val")
    assert (len(train), len(val)) == (20, 5)
    assert train[0]["image"].shape == (64, 96, 3) and train.size(0) == (64, 96)
    assert fingerprint(train[0]) != fingerprint(val[0])


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({}, "test", "shapes has no split 'test', only train and val"),
        ({"height": 31}, "train", "data.shapes.height is 31: give 32 or more"),
        ({"val_images": 0}, "val", "data.shapes.val_images is 0: give 1 or more"),
        ({"seed": -1}, "val", "data.shapes.seed is -1: give 0 or more"),
    ],
)
def test_faults_are_named(changes, split, message):
    with pytest.raises(ConfigError, match=message):
        open_split(fields(**changes), split)
