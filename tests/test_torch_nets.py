"""Checkpoints laid out as torchvision's and torchfcn's, saved by torch: they load without it and give what it gives."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch_writer as writer
from cases import filled

from configs import fcn_resnet
from fcn_jax import losses, models, state, steps, weights
from fcn_jax.errors import WeightFileError
from fcn_jax.inputs import FCN_INPUT, IMAGENET_INPUT

FOLDER = Path(__file__).parent / "golden" / "torch_nets"  # made by tools/golden_torch_nets.py
VGGS, RESNETS = ("vgg11", "vgg13", "vgg16", "vgg19"), ("fcn_resnet50", "fcn_resnet101")
SIZES = {
    **dict.fromkeys(VGGS, (224, 224)),
    **{"fcn32s": (37, 30), "fcn16s": (31, 23), "fcn8s": (19, 26), "fcn8s_atonce": (22, 27)},
    **dict.fromkeys(RESNETS, (33, 26)),
}
DEEPEST = "fcn_resnet101"
CLASSES, IMAGES = 4, 2  # of these, and of a training step
pytestmark = pytest.mark.usefixtures("fast_compilation")


def image(height: int, width: int, count: int = 1) -> np.ndarray:
    places = np.arange(count * height * width * 3).reshape(count, height, width, 3)
    return (((places * 7919) % 257 - 128) / 64).astype(np.float32)


def labels(height: int, width: int, count: int) -> np.ndarray:
    found = (np.arange(count * height * width) * 7919) % 257 % (CLASSES + 1)
    return np.where(found == CLASSES, 255, found).reshape(count, height, width).astype(np.uint8)


def load(model: str) -> weights.Net:
    return weights.load_net(FOLDER / f"{model}.pth", model)


@pytest.mark.parametrize(
    "model",
    [*(model for model in SIZES if model != DEEPEST), pytest.param(DEEPEST, marks=pytest.mark.slow)],
)
def test_logits_are_those_of_torch(model):
    net = load(model)
    logits = jax.jit(net.module.apply)(net.variables, image(*SIZES[model]))
    wanted = np.load(FOLDER / f"{model}.npz")["logits"]
    found = np.moveaxis(np.asarray(logits), -1, 1).reshape(wanted.shape)
    difference = np.max(np.abs(found - wanted)) / np.max(np.abs(wanted))
    print(f"{model}: {difference:.1e}")
    assert difference <= 1e-5
    assert net.input_spec == (IMAGENET_INPUT if model in VGGS + RESNETS else FCN_INPUT)


@pytest.mark.parametrize(
    ("model", "classes", "form"),
    [("fcn32s", 2, "dense"), ("fcn16s", 2, "fixed"), ("fcn8s", 4, "dense"), ("fcn8s_atonce", 3, "fixed")],
)
def test_torchfcns_files_tell_their_nets(model, classes, form):
    """Whether they were saved with the bilinear kernels that torchfcn trains with, or others."""
    module = load(model).module
    assert (module.num_classes, module.padding, set(module.upsampling.values())) == (classes, "caffe", {form})


@pytest.mark.parametrize("model", VGGS)
def test_torchvisions_classifiers_tell_their_classes(model):
    assert load(model).module.num_classes == 5


@pytest.mark.parametrize("model", RESNETS)
def test_torchvisions_fcns_tell_their_nets(model):
    module = load(model).module
    assert (module.num_classes, module.width, module.auxiliary) == (CLASSES, 1 / 64, True)


def test_the_name_alone_tells_a_net_at_once():
    """torchfcn scales pools in its code: the file is the same as that of a net of stages, and logits are not."""
    path = FOLDER / "fcn8s_atonce.pth"
    at_once, stages = load("fcn8s_atonce"), weights.load_net(path, "fcn8s")
    assert (at_once.module.pool_scales, stages.module.pool_scales) == ((0.01, 0.0001), (1.0, 1.0))
    jax.tree.map(np.testing.assert_array_equal, at_once.variables, stages.variables)


@pytest.mark.parametrize("model", RESNETS)
def test_nothing_of_a_file_is_left_out(model):
    blobs = weights.read(FOLDER / f"{model}.pth")
    counted = [name for name in blobs if not name.endswith("num_batches_tracked")]
    assert len(counted) < len(blobs)
    report = load(model).report
    assert report.num_loaded == sum(blobs[name].size for name in counted) and not report.unread


# What torch calls the leaves of a net.
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def test_torchvisions_classifier_becomes_the_backbone(tmp_path):
    """Its ResNet-50 for ImageNet, as the recipe takes it: what is no backbone keeps its initialisation."""
    config = fcn_resnet.get_config("voc2012-coco")
    variables = filled(models.create(config.model.name, CLASSES, width=1 / 32))
    rng = np.random.default_rng(0)
    wanted = jax.tree_util.tree_map_with_path(
        lambda path, leaf: rng.random(leaf.shape, np.float32) if path[1].key.startswith("backbone.") else leaf,
        variables,
    )
    file = {
        f"{layer.removeprefix('backbone.')}.{LEAVES[leaf]}": value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        for layers in wanted.values()
        for layer, leaves in layers.items()
        for leaf, value in leaves.items()
        if layer.startswith("backbone.")
    }
    means = [name for name in file if name.endswith("running_mean")]
    file |= {name.replace("running_mean", "num_batches_tracked"): np.array(7) for name in means}
    file |= {"fc.weight": np.ones((5, 64), np.float32), "fc.bias": np.ones(5, np.float32)}
    # As many as torchvision's has.
    assert len(file) == 320 and {"conv1.weight", "layer1.0.conv1.weight", "layer4.2.bn3.running_var"} < file.keys()
    path = tmp_path / "resnet50.pth"
    path.write_bytes(writer.checkpoint(file))

    blobs = weights.read(path)
    assert weights.expected_input(blobs) == IMAGENET_INPUT
    found, report = weights.transfer(blobs, variables, config.model.name, config.init.skip)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert report.unread == {"backbone.fc.0": 320, "backbone.fc.1": 5}
    with pytest.raises(WeightFileError, match=r"in the file only: fc\.weight \(5×64\), fc\.bias \(5\)"):
        weights.transfer(blobs, variables, config.model.name, ("classifier.*", "aux_classifier.*"))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ("vgg11_bn", ("torchvision's VGG with batch norm, which no net here takes",) * 2),
        ("vgg13", ("in the file only: features.2.weight (2×2×3×3)", "features.7.bias (4)")),
    ],
)
def test_other_nets_are_refused_in_one_line(other, told):
    path = FOLDER / f"{other}.pth"
    with pytest.raises(WeightFileError) as error:
        weights.load_net(path, "vgg11")
    refusals = [str(error.value)]
    with pytest.raises(WeightFileError) as error:
        weights.load(path, load("vgg11").variables, "vgg11")
    refusals.append(str(error.value))
    assert all(str(path) in text and "\n" not in text for text in refusals)
    assert all(expected in text for expected, text in zip(told, refusals, strict=True))


def training() -> tuple[Any, Any, dict[str, Any], Any]:
    """A net without dropout, torch's weights in float64, a batch, and the variables that a step of torch's leaves.

    In place of new parameters these are gradients.
    """
    module, variables = weights.load_model(FOLDER / "fcn_resnet50.pth", "fcn_resnet50", dropout=0.0, dtype=np.float64)
    variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    batch = {
        "image": image(33, 26, IMAGES).astype(np.float64),
        "label": labels(33, 26, IMAGES),
        "index": np.arange(IMAGES, dtype=np.int32),
    }
    return module, variables, batch, weights.load(FOLDER / "fcn_resnet50_step.pth", variables, module)


def assert_close(found, wanted, tolerance: float) -> None:
    """Leaf by leaf, relative to each leaf's largest value."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        difference = np.max(np.abs(a - b)) / np.max(np.abs(b))
        assert a.dtype == np.float64 and difference <= tolerance, f"{jax.tree_util.keystr(path)}: {difference:.1e}"


@pytest.mark.slow
def test_what_training_sees_is_what_torch_sees():
    """By the statistics of the batch: logits of both heads, their losses, and the running statistics after it."""
    wanted = np.load(FOLDER / "fcn_resnet50_step.npz")
    with jax.enable_x64():
        module, variables, batch, after = training()

        @jax.jit
        def forward(variables, batch):
            logits, changed = module.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
            sums = {head: losses.cross_entropy(scores, batch["label"]) for head, scores in logits.items()}
            return logits, sums, changed["batch_stats"]

        logits, sums, statistics = forward(variables, batch)
    for head, loss in zip(("out", "aux"), wanted["losses"], strict=True):
        found = np.moveaxis(np.asarray(logits[head]), -1, 1)
        assert np.max(np.abs(found - wanted[head])) <= 1e-7 * np.max(np.abs(wanted[head]))  # kept as float32
        assert float(sums[head][0]) / int(sums[head][1]) == pytest.approx(loss, rel=1e-12)
    # A tenth of each is new, the variance an unbiased one.
    assert_close(statistics, after["batch_stats"], 1e-12)


@pytest.mark.slow
def test_what_training_learns_is_what_torch_learns():
    """The gradient of the loss and half the auxiliary one."""
    keep = optax.stateless(lambda gradients, params: jax.tree.map(jnp.subtract, gradients, params))
    with jax.enable_x64():
        module, variables, batch, wanted = training()
        step = jax.jit(steps.make_train_step(module, keep, normalization="valid_mean"))
        after, report = step(state.create(variables["params"], keep, variables["batch_stats"]), batch)
    loss = np.load(FOLDER / "fcn_resnet50_step.npz")["losses"][0]
    assert float(report["loss_sum"]) / int(report["pixels"]) == pytest.approx(loss, rel=1e-12)
    assert_close(after.batch_stats, wanted["batch_stats"], 1e-12)
    # A batch norm takes away the scale of a single weight before it: of that gradient little is left, and few digits.
    assert_close(after.params, wanted["params"], 1e-8)
