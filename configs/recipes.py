"""What the experiments share, by the data that they are trained on; each config file adds what its net needs."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fcn_jax import config as experiment
from fcn_jax import models
from fcn_jax.config import set_input
from fcn_jax.inputs import (
    CONTEXT_INPUT,
    FCN_INPUT,
    NYUD_COLOR_DEPTH_INPUT,
    NYUD_COLOR_HHA_INPUT,
    NYUD_COLOR_INPUT,
    NYUD_HHA_INPUT,
    SEGNET_INPUT,
    SIFTFLOW_INPUT,
    InputSpec,
)

Recipe = Callable[[experiment.Config], None]


def start(model: str, variant: str, variants: Mapping[str, Recipe] | None = None) -> experiment.Config:
    """The experiment of that net on that data. Raises ConfigError for a variant that does not exist."""
    variants = VARIANTS if variants is None else variants
    config = experiment.default()
    config.name = model if variant == "shapes" else f"{model}-{variant}"
    config.model.name = model
    variants[experiment.choose(variant, variants)](config)
    return config


def set_model(config: experiment.Config, **fields: Any) -> None:
    """Sets those fields of `model` that the config's net has."""
    taken = models.arguments(config.model.name)
    config.model.update({field: value for field, value in fields.items() if field in taken})


def shapes(config: experiment.Config) -> None:
    """The embedded data set, drawn as it is read: minutes on two CPU cores, from random parameters."""
    set_model(config, width=0.25, fc_width=256, dropout=0.0)
    # What He's initialisation expects: inputs of about unit variance.
    config.input.update(order="BGR", mean=FCN_INPUT.mean, scale=(1 / 32, 1 / 32, 1 / 32))
    config.data.batch_size = 4
    config.data.shapes.update(height=128, width=128, train_images=100_000, val_images=200)
    config.optim.update(name="adamw", lr=1.5e-3, beta2=0.99, weight_decay=1e-4, lr_multipliers=(), clip_norm=1.0)
    config.optim.update(schedule="cosine", warmup_steps=50)
    config.train.update(steps=1800, eval_every=600, checkpoint_every=300, log_every=100)


def camvid(config: experiment.Config) -> None:
    """Street scenes, 480×360, from ImageNet's VGG-16 without its classifier: fc6 and fc7 are narrow and start anew."""
    set_model(config, fc_width=512)
    config.init.weights = "weights/VGG_ILSVRC_16_conv_layers.caffemodel"
    config.init.skip = ("fc*", "score_*")
    config.data.update(name="camvid", root="data/camvid", batch_size=2)
    config.data.augment.update(flip=True, scale=(0.6, 1.2), crop=(224, 320), color=0.1)
    config.optim.update(name="adamw", lr=1e-4, weight_decay=1e-4, clip_norm=1.0, lr_multipliers=())
    config.optim.update(schedule="poly", warmup_steps=50, frozen=("conv1_*", "conv2_*"))
    config.train.update(steps=2700, eval_every=900, checkpoint_every=150, log_every=20)


def release(config: experiment.Config) -> None:
    """The solver of the FCN release: whole images one by one, a summed loss, heavy momentum, biases at twice the rate.

    From the authors' 16-layer classifier. A stage after the first starts from the one before (`stage`).
    """
    config.model.padding = "caffe"
    config.init.weights = "weights/VGG_ILSVRC_16_layers.caffemodel"
    config.init.skip = ("fc8", "score_*")
    config.loss.normalization = "sum"
    config.optim.update(lr=1e-10, momentum=0.99, weight_decay=5e-4)
    config.train.update(steps=100_000, eval_every=4000, checkpoint_every=1000, log_every=20)


def stage(config: experiment.Config, workdir: str, lr: float) -> None:
    """Starts from the run of a coarser net, at another rate."""
    config.init.update(workdir=workdir, weights="", skip=())
    config.optim.lr = lr


def voc2012(config: experiment.Config) -> None:
    """SBD's training images, scored on the images of VOC 2011's val that are not among them."""
    release(config)
    set_input(config, FCN_INPUT)
    config.data.update(name="voc2012", root="data/VOCdevkit", train_split="sbd_train", val_split="seg11valid")
    config.data.voc.sbd_root = "data/benchmark_RELEASE"


def twenty_images(config: experiment.Config, lr: float, normalization: str = "valid_mean") -> None:
    """20 images a step, as in the CVPR paper: one after another, at a rate for the mean over their pixels."""
    config.data.batch_size = 20
    config.loss.normalization = normalization
    config.optim.update(lr=lr, momentum=0.9, accumulate=20)


def cvpr2015(config: experiment.Config) -> None:
    """The solver of the CVPR paper.

    It gives days, not steps; 20,000 for the first stage are about the three days that it took.
    """
    voc2012(config)
    twenty_images(config, lr=1e-4)
    config.train.update(steps=20_000, eval_every=1000, checkpoint_every=200)


def cvpr2015_stage(config: experiment.Config, model: str, before: str, lr: float) -> None:
    """A stage after the first, of a net that learns its up-sampling; it took about a day."""
    config.model.name = model
    stage(config, f"runs/{before}-cvpr2015", lr)
    config.train.steps = 7000


def nyud(config: experiment.Config, modality: str, spec: InputSpec) -> None:
    """NYUDv2 rooms of 480×640, 40 classes: colour, geometry (HHA), colour with depth, or both nets fused late."""
    release(config)
    set_input(config, spec)
    config.data.update(name="nyud", root="data/nyud", train_split="trainval", val_split="test")
    config.data.nyud.modality = modality
    config.train.eval_every = 2000


def siftflow(config: experiment.Config) -> None:
    """SIFT Flow's scenes of 256×256, scored by two heads: 33 semantic classes, and 3 of geometry."""
    release(config)
    set_input(config, SIFTFLOW_INPUT)
    config.data.update(name="siftflow", root="data/sift-flow", train_split="trainval", val_split="test")
    config.train.eval_every = 2000


def pascal_context(config: experiment.Config) -> None:
    """PASCAL-Context, 59 classes and background; no pixel is void."""
    release(config)
    set_input(config, CONTEXT_INPUT)
    config.data.update(name="pascal_context", root="data/VOCdevkit", train_split="train", val_split="val")
    config.data.pascal_context.labels_root = "data/pascal-context"
    config.train.update(steps=400_000, eval_every=8000)


def folder(config: experiment.Config) -> None:
    """One's own images, masks and class names under `data.root`; nothing but the paths needs to be given."""
    set_model(config, fc_width=512)
    config.data.update(name="folder", root="data/folder", batch_size=4)
    config.data.augment.update(flip=True, scale=(0.75, 1.5), crop=(256, 256), color=0.1)
    config.optim.update(name="adamw", lr=1e-4, weight_decay=1e-4, clip_norm=1.0, lr_multipliers=())
    config.optim.update(schedule="poly", warmup_steps=100)
    config.train.update(steps=5000, eval_every=500, checkpoint_every=250, log_every=20)


def camvid_whole(config: experiment.Config, batch_size: int, steps: int) -> None:
    """The solver of SegNet's authors: whole images, 480×360, at one rate, from ImageNet's VGG-16."""
    config.init.weights = "weights/VGG_ILSVRC_16_layers.caffemodel"
    config.data.update(name="camvid", root="data/camvid", batch_size=batch_size)
    config.optim.update(lr=1e-3, momentum=0.9, weight_decay=5e-4)
    config.train.update(steps=steps, eval_every=1000, checkpoint_every=500, log_every=20)


def statistics_batches(batch_size: int) -> int:
    """Over how many batches of CamVid's 367 training images their script computes batch norm's statistics."""
    return 367 // batch_size + 367 % batch_size


def segnet(config: experiment.Config) -> None:
    """What is SegNet's alone in that solver: bytes are seen, and batch norm is as released."""
    set_input(config, SEGNET_INPUT)
    config.optim.lr_multipliers = (("*/bias", 2.0), ("*_bn/bias", 1.0))
    config.train.statistics_batches = statistics_batches(config.data.batch_size)


def camvid_release(config: experiment.Config) -> None:
    """SegNet as released: four images a step, weighted classes, and statistics of the training set."""
    camvid_whole(config, batch_size=4, steps=40_000)
    segnet(config)
    config.loss.class_weights = "camvid-released"


def camvid_benchmark(config: experiment.Config) -> None:
    """How SegNet's paper (section 4) compares nets: five images a step, classes not weighted.

    The paper trains on 3,433 images, most of which were never published.
    """
    camvid_whole(config, batch_size=5, steps=140_000)


VARIANTS = {
    "shapes": shapes,
    "camvid": camvid,
    "voc2012": voc2012,
    "siftflow": siftflow,
    "pascal-context": pascal_context,
    "folder": folder,
}
# Of FCN on VGG-16, in the stages of the CVPR paper too.
STAGES = {**VARIANTS, "cvpr2015": cvpr2015}
# Of the nets whose papers train on CamVid with a solver of their own.
DECODERS = {
    "shapes": shapes,
    "camvid": camvid,
    "camvid-release": camvid_release,
    "folder": folder,
}
NYUD = {
    "nyud-color": partial(nyud, modality="color", spec=NYUD_COLOR_INPUT),
    "nyud-hha": partial(nyud, modality="hha", spec=NYUD_HHA_INPUT),
    "nyud-color-d": partial(nyud, modality="color-d", spec=NYUD_COLOR_DEPTH_INPUT),
    "nyud-color-hha": partial(nyud, modality="color-hha", spec=NYUD_COLOR_HHA_INPUT),
}
