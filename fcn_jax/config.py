"""What an experiment is: every field with its default, checked, and kept beside the run as JSON."""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from fcn_jax import models, optim, parallel, steps
from fcn_jax.data import DATASETS
from fcn_jax.errors import CheckpointError, ConfigError
from fcn_jax.inputs import FCN_INPUT, InputSpec
from fcn_jax.models.fcn import PADDINGS
from fcn_jax.models.layers import UPSAMPLING_FORMS

DTYPES = ("float32", "bfloat16", "float64")
PRECISIONS = ("default", "high", "highest")

# What may differ between a run and its resumption: when things happen and where they lie, not what is computed.
FREE_ON_RESUME = ("train", "parallel", "data.root", "data.cache", "data.threads", "data.voc.sbd_root", "init")


# ml_collections' annotations give every field every type at once, which tells a reader and a type checker nothing.
Config: TypeAlias = Any


def default() -> Config:
    """Every field there is. A config file starts from this and changes what its experiment needs."""
    config: Config = ConfigDict()
    config.name = "experiment"  # the default workdir is runs/<name>
    config.seed = 0

    config.model = ConfigDict()
    config.model.name = "fcn8s"
    config.model.padding = "same"  # or "caffe": 100 pixels around the image, as released
    config.model.width = 1.0  # multiplies all channel counts
    config.model.fc_width = 4096  # channels of fc6 and fc7
    config.model.dropout = 0.5
    config.model.upsampling = "fixed"  # or a parameter that starts bilinear: "grouped", "dense"
    config.model.dtype = "float32"  # of the computation; parameters, scores and loss stay float32
    config.model.precision = "default"  # of convolutions on accelerators

    config.input = ConfigDict()  # what the net sees; see inputs.InputSpec
    config.input.order = FCN_INPUT.order
    config.input.mean = FCN_INPUT.mean
    config.input.scale = FCN_INPUT.scale

    config.init = ConfigDict()
    config.init.workdir = ""  # start from another run's parameters (32s → 16s → 8s); layers it lacks start anew
    config.init.weights = ""  # or from a weight file
    config.init.skip = ()  # layers that start anew although the file, or the net, has them
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
    config.data.voc = ConfigDict({"sbd_root": ""})
    config.data.augment = ConfigDict()
    config.data.augment.update(flip=False, scale=(1.0, 1.0), crop=(0, 0), color=0.0)

    config.loss = ConfigDict()
    config.loss.normalization = "valid_mean"  # or "sum": over pixels, mean over images (Caffe's normalize: false)

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

    config.parallel = ConfigDict({"mode": "pmap"})
    config.deterministic = False  # GPU: operations that give the same bits every time, at some cost
    return config


def choose(argument: str, variants: Iterable[str]) -> str:
    """Checks a config file's `:argument`. Raises ConfigError with what there is."""
    variants = tuple(variants)
    if argument not in variants:
        hint = _did_you_mean(argument, variants)
        raise ConfigError(f"no variant {argument!r}{hint}; there are {', '.join(variants)}")
    return argument


def validate(config: Config) -> None:
    """Raises ConfigError, one plain line, for a value that is none of its field's or for fields that contradict."""
    _check_fields(default().to_dict(), config.to_dict())
    for field, value, choices in (
        ("model.name", config.model.name, models.MODELS),
        ("model.padding", config.model.padding, PADDINGS),
        ("model.upsampling", config.model.upsampling, UPSAMPLING_FORMS),
        ("model.dtype", config.model.dtype, DTYPES),
        ("model.precision", config.model.precision, PRECISIONS),
        ("data.name", config.data.name, DATASETS),
        ("loss.normalization", config.loss.normalization, steps.NORMALIZATIONS),
        ("optim.name", config.optim.name, optim.OPTIMIZERS),
        ("optim.schedule", config.optim.schedule, optim.SCHEDULES),
        ("parallel.mode", config.parallel.mode, parallel.MODES),
    ):
        if value not in choices:
            hint = _did_you_mean(value, choices)
            raise ConfigError(f"{field}={value!r} is none of {', '.join(choices)}{hint}")
    for field, value, lowest in (
        ("data.batch_size", config.data.batch_size, 1),
        ("data.threads", config.data.threads, 1),
        ("optim.accumulate", config.optim.accumulate, 1),
        ("train.steps", config.train.steps, 1),
        ("train.log_every", config.train.log_every, 1),
        ("train.eval_every", config.train.eval_every, 0),
        ("train.checkpoint_every", config.train.checkpoint_every, 1),
        ("train.pictures", config.train.pictures, 0),
        ("model.fc_width", config.model.fc_width, 1),
        ("optim.warmup_steps", config.optim.warmup_steps, 0),
        ("optim.clip_norm", config.optim.clip_norm, 0),
        ("optim.lr", config.optim.lr, 0),
    ):
        if value < lowest:
            raise ConfigError(f"{field}={value} must be at least {lowest}")
    if not config.model.width > 0:
        raise ConfigError(f"model.width={config.model.width} must be above 0")
    if not 0 <= config.model.dropout < 1:
        raise ConfigError(f"model.dropout={config.model.dropout} must be at least 0 and below 1")
    if config.init.workdir and config.init.weights:
        raise ConfigError("init.workdir and init.weights contradict each other: a net starts from one of them")
    if config.init.skip and not config.init.weights:
        raise ConfigError(f"init.skip={config.init.skip} needs init.weights, the file whose layers it names")
    if config.loss.normalization == "sum" and config.optim.name == "sgd" and config.optim.lr > 1e-6:
        raise ConfigError(
            f"optim.lr={config.optim.lr} with loss.normalization='sum' blows up: the gradient is summed over "
            "all pixels of an image; use 'valid_mean', or a rate of about 1e-10"
        )
    if config.optim.schedule == "step" and not config.optim.boundaries:
        raise ConfigError("optim.schedule='step' needs optim.boundaries, the steps at which the rate falls")
    if config.optim.warmup_steps >= config.train.steps:
        raise ConfigError(f"optim.warmup_steps={config.optim.warmup_steps} leaves none of {config.train.steps} steps")
    low, high = config.data.augment.scale
    if not 0 < low <= high:
        raise ConfigError(f"data.augment.scale={(low, high)} must be (low, high) with 0 < low ≤ high")
    input_spec(config)


def input_spec(config: Config) -> InputSpec:
    """What the experiment's net wants to see."""
    try:
        return InputSpec(config.input.order, tuple(config.input.mean), tuple(config.input.scale))
    except ValueError as error:
        raise ConfigError(f"input: {error}") from None


def make_model(config: Config, num_classes: int) -> nn.Module:
    """The experiment's net, for a data set of that many classes."""
    fields = config.model
    return models.create(
        fields.name,
        num_classes,
        padding=fields.padding,
        width=fields.width,
        fc_width=fields.fc_width,
        dropout=fields.dropout,
        upsampling=fields.upsampling,
        dtype=jnp.dtype(fields.dtype),
        precision=None if fields.precision == "default" else fields.precision,
    )


def to_json(config: Config) -> str:
    """The config with every field resolved."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def load(path: Path) -> Config:
    """Reads back what `to_json` wrote. Raises CheckpointError when there is none."""
    try:
        saved = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {path.parent} is not the workdir of a run") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is no valid JSON ({error})") from None
    return ConfigDict(_tuples(saved))


def check_resume(config: Config, saved: Config, workdir: Path) -> None:
    """Raises ConfigError with every difference that would make the resumed run another one."""
    new, old = _flat(config.to_dict()), _flat(saved.to_dict())
    differences = [
        f"{field}: {old.get(field)!r} → {new.get(field)!r}"
        for field in sorted(new.keys() | old.keys())
        if new.get(field) != old.get(field)
        and not any(field == free or field.startswith(free + ".") for free in FREE_ON_RESUME)
    ]
    if differences:
        raise ConfigError(
            f"{workdir} holds a run with another config ({'; '.join(differences)}): choose another --workdir, "
            "or undo these"
        )


def _check_fields(known: Mapping, given: Any, prefix: str = "") -> None:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')}={given!r} must be a group of fields: {', '.join(known)}")
    for field, value in given.items():
        if field not in known:
            raise ConfigError(f"no config field {prefix + field!r}{_did_you_mean(field, known)}")
        if isinstance(known[field], Mapping):
            _check_fields(known[field], value, f"{prefix}{field}.")
        else:
            _check_form(prefix + field, known[field], value)


def _check_form(field: str, known: Any, value: Any) -> None:
    """Text stays text, a number a number, and a tuple has as many entries, of the same kind."""
    if field in _NAME_TUPLES or field in _NUMBER_TUPLES or field in _RULE_TUPLES:
        form, what = {
            **dict.fromkeys(_NAME_TUPLES, (_is_text, "names: ('conv*', 'fc*')")),
            **dict.fromkeys(_NUMBER_TUPLES, (_is_number, "numbers: (1000, 2000)")),
            **dict.fromkeys(_RULE_TUPLES, (_is_rule, "rules: (('*/bias', 2.0),)")),
        }[field]
        fits = isinstance(value, tuple | list) and all(map(form, value))
    elif isinstance(known, tuple):
        whole = all(isinstance(entry, int) for entry in known)
        what = f"{len(known)} {'whole numbers' if whole else 'numbers'}, as {known}"
        fits = isinstance(value, tuple | list) and len(value) == len(known)
        fits = fits and all(_is_number(entry) and (isinstance(entry, int) or not whole) for entry in value)
    elif isinstance(known, bool):
        fits, what = isinstance(value, bool), "True or False"
    elif isinstance(known, int):
        fits, what = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif isinstance(known, float):
        fits, what = _is_number(value), "a number"
    else:
        fits, what = _is_text(value), "text"
    if not fits:
        raise ConfigError(f"{field}={value!r} must be {what}")


_NAME_TUPLES = ("init.skip", "optim.frozen")
_NUMBER_TUPLES = ("optim.boundaries",)
_RULE_TUPLES = ("optim.lr_multipliers", "optim.decay_multipliers")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_rule(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and _is_text(value[0]) and _is_number(value[1])


def _did_you_mean(given: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(given), list(choices), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _flat(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for field, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{field}.")
        else:
            flat[prefix + field] = _tuples(value)
    return flat


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, Mapping):
        return {field: _tuples(item) for field, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    return value
