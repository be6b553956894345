"""What an experiment is: every field with its default, checked, and kept beside the run as JSON."""

import dataclasses
import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fcn_jax import fields, losses, models, optim, parallel, steps
from fcn_jax.data import DATASETS, balance, transforms
from fcn_jax.errors import CheckpointError, ConfigError, did_you_mean, one_line
from fcn_jax.inputs import FCN_INPUT, InputSpec
from fcn_jax.labels import DatasetInfo, Info, by_head, only_head
from fcn_jax.models.fcn import PADDINGS
from fcn_jax.models.layers import UPSAMPLING_FORMS
from fcn_jax.models.trunks import TRUNKS
from fcn_jax.ops import rematerialisation

CONFIG_FILE, CLASSES_FILE = "config.json", "classes.json"  # in a workdir: what the run is
DTYPES = ("float32", "bfloat16")
PRECISIONS = ("default", "high", "highest")

# What may differ between a run and its resumption: how long, when, and where things lie. Threads change no result.
FREE_ON_RESUME = (
    *("train.steps", "train.log_every", "train.eval_every", "train.checkpoint_every"),
    *("parallel.mode", "parallel.shard_state", "train.remat"),  # where and how it is computed, not what
    *("data.root", "data.cache", "data.threads", "data.voc.sbd_root", "data.voc.boxes_root"),
    "data.pascal_context.labels_root",
    *("init.workdir", "init.weights", "init.stream_workdirs", "loss.class_weights"),
    *(f"data.folder.{path}" for path in ("images", "masks", "classes", "colors", "train_list", "val_list")),
)


# ml_collections' annotations give every field every type at once, which tells a reader and a type checker nothing.
Config: TypeAlias = Any


def default() -> Config:
    """Every field there is. A config file starts from this and changes what its experiment needs."""
    config: Config = ConfigDict()
    config.name = "experiment"  # the default workdir is runs/<name>
    config.seed = 0

    config.model = ConfigDict()
    config.model.name = "fcn8s"
    config.model.trunk = ""  # other than the net's own, of FCN and SegNet: vgg11 … vgg19
    config.model.streams = ()  # late fusion: a net for each even share of the input's channels, named by its stream
    config.model.padding = "same"  # or "caffe": 100 pixels around the image, as released
    config.model.width = 1.0  # multiplies all channel counts
    config.model.fc_width = 0  # channels of fc6 and fc7; 0 means the published ones times width
    config.model.dropout = -1.0  # the share that is dropped; below 0: as published
    config.model.momentum = 0.9  # what batch norm's running statistics keep at each step
    config.model.upsampling = "fixed"  # or a parameter that starts bilinear: "grouped", "dense"
    config.model.dtype = "float32"  # of the computation; parameters, scores and loss stay float32
    config.model.precision = "default"  # of convolutions on accelerators

    config.input = ConfigDict()  # what the net sees; see inputs.InputSpec
    config.input.order = ""  # and with it mean and scale: as the weights it starts from expect, else as the FCN release
    config.input.mean = ()
    config.input.scale = ()

    config.init = ConfigDict()
    config.init.workdir = ""  # start from another run's parameters (32s → 16s → 8s); layers it lacks start anew
    config.init.weights = ""  # or from a weight file
    config.init.skip = ()  # layers that start anew although the file, or the net, has them
    config.init.stream_workdirs = ()  # late fusion: the runs that the streams start from, in their order
    config.init.extra_channels = ""  # "mean": channels that the first layer has beyond the file's start as their mean
    config.init.fc_scale = 1.0  # multiplies the initial kernels of fc6 and fc7, where they start anew

    config.data = ConfigDict()
    config.data.name = "shapes"
    config.data.root = ""
    config.data.cache = "~/.cache/fcn_jax"  # prepared copies of camvid and voc2012
    config.data.train_split = "train"
    config.data.val_split = "val"
    config.data.batch_size = 1  # images a step, over all devices and hosts
    config.data.threads = 4
    config.data.shapes = ConfigDict()
    config.data.shapes.update(height=96, width=96, train_images=2000, val_images=200, seed=0)
    config.data.folder = ConfigDict()
    config.data.folder.update(
        images="images",  # relative to data.root
        masks="masks",
        classes="classes.txt",
        colors="",
        value_255="",  # masks of {0, 255} alone: is 255 a "class" or "void"?
        train_list="",
        val_list="",
        val_fraction=0.1,
        split_seed=0,
    )
    config.data.voc = ConfigDict({"sbd_root": "", "crops": "", "boxes_root": ""})  # crops: "objects", "windows"
    config.data.nyud = ConfigDict({"modality": "color"})  # or "hha", "color-d", "color-hha"
    config.data.pascal_context = ConfigDict({"labels_root": ""})
    config.data.augment = ConfigDict()
    config.data.augment.update(flip=False, scale=(1.0, 1.0), short_side=(0, 0), crop=(0, 0), color=0.0)

    config.loss = ConfigDict()
    config.loss.name = "cross_entropy"  # or "focal", "top_k", "dice", "lovasz": see losses.LOSSES
    config.loss.gamma = 2.0  # of focal
    config.loss.fraction = 0.25  # of an image's pixels that top_k keeps
    config.loss.class_weights = ""  # of cross_entropy: a file of python -m fcn_jax.data stats, or "camvid-released"
    config.loss.class_weight_values = ()  # the numbers themselves, by class: what the former says, as the run keeps it
    config.loss.balancing = "median_frequency"  # which of the file's weights: or "enet", "inverse"
    config.loss.count_weights = False  # divide by the pixels' weights, as PyTorch does, and not by their number
    config.loss.auxiliary = 0.5  # weight of an auxiliary head
    config.loss.fused = True  # row by row from the coarse scores, where net and loss allow it, without full-size logits
    config.loss.at_scores = False  # compare the coarse scores, with the labels of the pixels they are centred on
    config.loss.normalization = "valid_mean"  # or "sum", "part_mean": see steps.NORMALIZATIONS

    config.optim = ConfigDict()
    config.optim.name = "sgd"
    config.optim.lr = 1e-3
    config.optim.momentum = 0.9  # AdamW's β₁
    config.optim.beta2 = 0.999  # AdamW's β₂
    config.optim.weight_decay = 5e-4
    config.optim.lr_multipliers = (("*/bias", 2.0),)  # the last rule that matches `layer/kind` holds
    config.optim.decay_multipliers = (("*/bias", 0.0),)
    config.optim.frozen = ()
    config.optim.schedule = "fixed"  # fixed, step, poly, cosine
    config.optim.warmup_steps = 0
    config.optim.warmup_from = 0.0  # the share of the rate that the first step has; 0: one step's share of the warm-up
    config.optim.boundaries = ()  # step: at these steps …
    config.optim.gamma = 0.1  # … the rate is multiplied by this
    config.optim.power = 0.9  # poly
    config.optim.clip_norm = 0.0  # of the whole gradient; 0 is off
    config.optim.accumulate = 1  # parts that a batch is run in, one after another

    config.train = ConfigDict()
    config.train.steps = 1000
    config.train.log_every = 50
    config.train.eval_every = 500
    config.train.checkpoint_every = 500
    config.train.pictures = 8  # strips of input, truth and prediction
    config.train.remat = "none"  # what the backward pass computes again: see ops/rematerialisation.py
    config.train.statistics_batches = 0  # at the end batch norm's statistics are computed over so many; 0: running ones

    config.parallel = ConfigDict()
    config.parallel.mode = "pmap"  # or "mesh": jit over a named mesh
    config.parallel.shard_state = False  # under "mesh": each device keeps a share of parameters and momentum alone
    config.deterministic = False  # GPU: operations that give the same bits every time, at some cost
    return config


def choose(argument: str, variants: Iterable[str]) -> str:
    """Checks a config file's `:argument`. Raises ConfigError with what there is."""
    variants = tuple(variants)
    if argument not in variants:
        hint = did_you_mean(argument, variants)
        raise ConfigError(f"no variant {argument!r}{hint}; there are {', '.join(variants)}")
    return argument


def validate(config: Config) -> None:
    """Raises ConfigError, one plain line, for a value that is none of its field's or for fields that contradict."""
    fields.check(default().to_dict(), config.to_dict())
    for field, value, choices in (
        ("model.name", config.model.name, models.SEGMENTATION),
        ("model.trunk", config.model.trunk, ("", *TRUNKS)),
        ("model.padding", config.model.padding, PADDINGS),
        ("model.upsampling", config.model.upsampling, UPSAMPLING_FORMS),
        ("model.dtype", config.model.dtype, DTYPES),
        ("model.precision", config.model.precision, PRECISIONS),
        ("data.name", config.data.name, DATASETS),
        ("init.extra_channels", config.init.extra_channels, ("", "mean")),
        ("loss.name", config.loss.name, losses.LOSSES),
        ("loss.balancing", config.loss.balancing, balance.FORMULAS),
        ("loss.normalization", config.loss.normalization, steps.NORMALIZATIONS),
        ("optim.name", config.optim.name, optim.OPTIMIZERS),
        ("optim.schedule", config.optim.schedule, optim.SCHEDULES),
        ("train.remat", config.train.remat, rematerialisation.POLICIES),
        ("parallel.mode", config.parallel.mode, parallel.MODES),
    ):
        if value not in choices:
            hint = did_you_mean(value, choices)
            raise ConfigError(f"{field}={value!r} is none of {', '.join(filter(None, choices))}{hint}")
    for field, value, lowest in (
        ("data.batch_size", config.data.batch_size, 1),
        ("data.threads", config.data.threads, 1),
        ("optim.accumulate", config.optim.accumulate, 1),
        ("train.steps", config.train.steps, 1),
        ("train.log_every", config.train.log_every, 1),
        ("train.eval_every", config.train.eval_every, 0),
        ("train.checkpoint_every", config.train.checkpoint_every, 1),
        ("train.pictures", config.train.pictures, 0),
        ("model.fc_width", config.model.fc_width, 0),
        ("optim.warmup_steps", config.optim.warmup_steps, 0),
        ("optim.warmup_from", config.optim.warmup_from, 0),
        ("optim.clip_norm", config.optim.clip_norm, 0),
        ("optim.lr", config.optim.lr, 0),
        ("optim.weight_decay", config.optim.weight_decay, 0),
        ("optim.gamma", config.optim.gamma, 0),
        ("optim.power", config.optim.power, 0),
        ("init.fc_scale", config.init.fc_scale, 0),
        ("loss.gamma", config.loss.gamma, 0),
        ("loss.auxiliary", config.loss.auxiliary, 0),
        ("train.statistics_batches", config.train.statistics_batches, 0),
        ("seed", config.seed, 0),
    ):
        if value < lowest:
            raise ConfigError(f"{field}={value} must be at least {lowest}")
    if config.seed >= 2**32:
        raise ConfigError(f"seed={config.seed} must be below 2³² = {2**32}")
    if not config.model.width > 0:
        raise ConfigError(f"model.width={config.model.width} must be above 0")
    if not 0 < config.loss.fraction <= 1:
        raise ConfigError(f"loss.fraction={config.loss.fraction} must be above 0 and at most 1")
    for field in ("class_weights", "class_weight_values"):
        if config.loss[field] and config.loss.name != "cross_entropy":
            raise ConfigError(f"loss.{field} weigh loss.name='cross_entropy', and it is {config.loss.name!r}")
    if config.loss.count_weights and not (config.loss.class_weights or config.loss.class_weight_values):
        raise ConfigError("loss.count_weights divides by loss.class_weights, and there are none")
    if config.loss.at_scores and config.model.upsampling != "fixed":
        raise ConfigError(
            f"loss.at_scores up-samples nothing, so that model.upsampling={config.model.upsampling!r} would never learn"
        )
    if config.parallel.shard_state and config.parallel.mode != "mesh":
        raise ConfigError(
            f"parallel.shard_state needs parallel.mode='mesh', and it is {config.parallel.mode!r}: a pmapped step "
            "holds the whole state on every device"
        )
    for field, value in (
        ("model.dropout", max(config.model.dropout, 0)),
        ("model.momentum", config.model.momentum),
        ("optim.momentum", config.optim.momentum),
        ("optim.beta2", config.optim.beta2),
    ):
        if not 0 <= value < 1:
            raise ConfigError(f"{field}={value} must be at least 0 and below 1")
    starts = [field for field in ("workdir", "weights", "stream_workdirs") if config.init[field]]
    if len(starts) > 1:
        raise ConfigError(f"init.{' and init.'.join(starts)} contradict each other: a net starts from one of them")
    if config.init.stream_workdirs and len(config.init.stream_workdirs) != len(config.model.streams):
        raise ConfigError(
            f"init.stream_workdirs names {len(config.init.stream_workdirs)} runs for the {len(config.model.streams)} "
            "of model.streams: give one for each"
        )
    if config.init.skip and not starts:
        raise ConfigError(f"init.skip={config.init.skip} needs init.weights or init.workdir, whose layers it names")
    if config.init.extra_channels and not config.init.weights:
        raise ConfigError("init.extra_channels says how a weight file's first layer grows, and init.weights names none")
    plain_sgd = config.optim.name in ("sgd", "torch_sgd") and not config.optim.clip_norm
    if config.loss.normalization == "sum" and plain_sgd and config.optim.lr > 1e-6:
        raise ConfigError(
            f"optim.lr={config.optim.lr} with loss.normalization='sum' blows up: the gradient is summed over "
            "all pixels of an image; use 'valid_mean', or a rate of about 1e-10"
        )
    if (config.optim.schedule == "step") != bool(config.optim.boundaries):
        raise ConfigError("optim.schedule='step' and optim.boundaries, the steps at which the rate falls, go together")
    boundaries = config.optim.boundaries
    if list(boundaries) != sorted(set(boundaries)) or (boundaries and boundaries[0] <= 0):
        raise ConfigError(f"optim.boundaries={tuple(boundaries)} must be steps above 0 that rise")
    if config.optim.warmup_from > 1 or (config.optim.warmup_from and not config.optim.warmup_steps):
        raise ConfigError(
            f"optim.warmup_from={config.optim.warmup_from} must be a share, up to 1, with optim.warmup_steps"
        )
    if config.optim.warmup_steps >= config.train.steps:
        raise ConfigError(f"optim.warmup_steps={config.optim.warmup_steps} leaves none of {config.train.steps} steps")
    if config.data.root and config.data.name == "shapes":
        raise ConfigError(
            f"data.root={config.data.root!r} is read by no one: data.name='shapes' draws its images; for your own "
            "folder say --config configs/fcn8s.py:folder"
        )
    known = default().data.to_dict()
    for group, name in (("folder", "folder"), ("voc", "voc2012"), ("nyud", "nyud"), ("pascal_context",) * 2):
        changed = [field for field, value in config.data[group].items() if value != known[group][field]]
        if changed and config.data.name != name:
            raise ConfigError(f"data.{group}.{changed[0]} is of data.name={name!r}, and it is {config.data.name!r}")
    transforms.check(config.data.augment)
    if config.input.order:
        input_spec(config)
    elif config.input.mean or config.input.scale:
        raise ConfigError("input.mean and input.scale need input.order, whose channels they are of")


def set_input(config: Config, spec: InputSpec) -> None:
    """Says in the config itself what the net wants to see."""
    config.input.update(order=spec.order, mean=tuple(spec.mean), scale=tuple(spec.scale))


def input_spec(config: Config) -> InputSpec:
    """What the experiment's net wants to see; without an order, what the FCN release does."""
    if not config.input.order:
        return FCN_INPUT
    try:
        return InputSpec(config.input.order, tuple(config.input.mean), tuple(config.input.scale))
    except ValueError as error:
        raise ConfigError(f"input: {error}") from None


def make_model(config: Config, num_classes: int | Mapping[str, int]) -> nn.Module:
    """The experiment's net, for a data set of that many classes (by head, if it has several).

    Raises ConfigError for a field that is set and that the net does not have.
    """
    net = config.model
    taken = models.arguments(net.name)
    chosen = {
        field: value
        for field, value in net.to_dict().items()
        if field not in ("name", "dtype", "precision") and value != default().model[field]
    }
    for field in chosen:
        if field not in taken:
            raise ConfigError(f"model.{field}={chosen[field]!r}: {net.name} has no {field}")
    if net.dropout < 0:
        chosen.pop("dropout", None)
    if isinstance(num_classes, Mapping) and "streams" not in taken:
        raise ConfigError(f"{net.name} has one head, and the data {len(num_classes)}: {', '.join(num_classes)}")
    return models.create(
        net.name,
        num_classes,
        **{field: tuple(value) if isinstance(value, list) else value for field, value in chosen.items()},
        in_channels=len(input_spec(config).order),
        dtype=jnp.dtype(net.dtype),
        precision=None if net.precision == "default" else net.precision,
    )


def class_weights(config: Config, info: Info) -> np.ndarray | None:
    """The weight of each class in the loss, f32 `[c]`, or None; they are written into the config, too.

    Raises ConfigError for weights of other classes.
    """
    source = config.loss.class_weights
    given = config.loss.class_weight_values
    if not source and not given:
        return None
    if not isinstance(info, DatasetInfo):
        raise ConfigError("loss.class_weights are of one head, and the data has several")
    if not source:
        if len(given) != info.num_classes:
            raise ConfigError(f"loss.class_weight_values are {len(given)}, the classes {info.num_classes}")
        return np.array(given, np.float32)
    if source == "camvid-released":
        # Imported on use: the module brings TFDS along.
        weights = importlib.import_module("fcn_jax.data.camvid").RELEASED_WEIGHTS
    else:
        weights = balance.read_weights(Path(source).expanduser(), config.loss.balancing)
    if set(weights) != set(info.class_names):
        raise ConfigError(
            f"loss.class_weights={source!r} are of {', '.join(weights)}; the classes are {', '.join(info.class_names)}"
        )
    config.loss.class_weight_values = tuple(weights[name] for name in info.class_names)
    return np.array(config.loss.class_weight_values, np.float32)


def to_json(config: Config) -> str:
    """The config with every field resolved."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def load(path: Path) -> Config:
    """Reads back what `to_json` wrote. Raises CheckpointError when there is none, or one that is no config of ours."""
    try:
        saved = fields.tuples(json.loads(path.read_text()))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {path.parent} is not the workdir of a run") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is no valid JSON ({error})") from None
    config = default()
    try:
        # Fields that are newer than the file keep their defaults.
        fields.check(config.to_dict(), saved)
    except ConfigError as error:
        raise CheckpointError(f"{path} is no config of a run ({error})") from None
    config.update(saved)
    return config


def load_classes(path: Path) -> Info:
    """The classes of a run, as `classes_to_json` wrote them. Raises CheckpointError when it did not."""
    try:
        saved = json.loads(path.read_text())
        by_name = {"": saved} if "class_names" in saved else saved
        infos = {}
        for head, info in by_name.items():
            palette = tuple(tuple(color) for color in info["palette"])
            infos[head] = DatasetInfo(**info | {"class_names": tuple(info["class_names"]), "palette": palette})
        return only_head(infos)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} holds no classes of a run ({one_line(error)})") from None


def classes_to_json(info: Info) -> str:
    """Names and colours of the classes, by head if there are several, for whoever uses the net without its data."""
    described = {head: dataclasses.asdict(each) for head, each in by_head(info).items()}
    return json.dumps(only_head(described), indent=1) + "\n"


def check_resume(config: Config, saved: Config, workdir: Path, free: Iterable[str] = ()) -> None:
    """Raises ConfigError with every difference that would make the resumed run another one.

    Fields of `free` may differ beside those of FREE_ON_RESUME.
    """
    free = {*FREE_ON_RESUME, *free}
    new, old = fields.flat(config.to_dict()), fields.flat(saved.to_dict())
    differences = [
        f"{field}: {old.get(field)!r} → {new.get(field)!r}"
        for field in sorted(new.keys() | old.keys())
        if new.get(field) != old.get(field) and field not in free
    ]
    if differences:
        raise ConfigError(
            f"{workdir} holds a run with another config ({'; '.join(differences)}): choose another --workdir, "
            "or undo these"
        )
