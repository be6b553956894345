"""Experiments so small that a test can run them whole: a narrow FCN on a few drawn images of 32×32."""

from pathlib import Path

from ml_collections import ConfigDict

from fcn_jax import config as experiment
from fcn_jax import data, workdirs
from fcn_jax.inputs import FCN_INPUT


def config(**changes) -> ConfigDict:
    """A config by the defaults, made tiny; `changes` are fields by their full names: `config(**{"optim.lr": 0.1})`."""
    tiny = experiment.default()
    small = {
        "name": "tiny",
        "model.name": "fcn32s",
        "model.trunk": "vgg11",  # the fewest layers to compile
        "model.width": 1 / 16,
        "model.fc_width": 16,
        "input.order": "BGR",
        "input.mean": FCN_INPUT.mean,
        "input.scale": (1 / 64,) * 3,
        "data.batch_size": 8,
        "data.threads": 2,
        "data.shapes.height": 32,
        "data.shapes.width": 32,
        "data.shapes.train_images": 6,
        "data.shapes.val_images": 3,
        "optim.name": "adamw",
        "optim.lr": 1e-2,
        "train.steps": 12,
        "train.log_every": 3,
        "train.eval_every": 6,
        "train.checkpoint_every": 2,
        "train.pictures": 2,
    }
    tiny.update_from_flattened_dict(small | changes)
    return tiny


def source(fields: ConfigDict, split: str):
    return data.open_split(fields.data, split)


def claimed(workdir: Path, tiny: ConfigDict) -> Path:
    """A working directory that says what its run is, before the first step."""
    workdirs.claim(workdir, tiny, source(tiny, "train").info)
    return workdir
