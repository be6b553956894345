"""What an experiment is: faults are one plain line, JSON brings it back, and a resumed run is the same run."""

import functools

import jax
import jax.numpy as jnp
import pytest
import tiny

from fcn_jax import config as experiment
from fcn_jax.errors import CheckpointError, ConfigError


def changed(field: str, value):
    """The default config with any value in a field, as a config file may set it."""
    config = experiment.default()
    *groups, name = field.split(".")
    holder = functools.reduce(lambda group, part: group[part], groups, config)
    with holder.unlocked(), holder.ignore_type():
        holder[name] = value
    return config


def fault(field: str, value) -> str:
    with pytest.raises(ConfigError) as caught:
        experiment.validate(changed(field, value))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_defaults_are_sound():
    experiment.validate(experiment.default())
    experiment.validate(tiny.config())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optim.lrr", 1.0, "no config field 'optim.lrr'; did you mean 'lr'?"),
        ("data.augment.flop", True, "no config field 'data.augment.flop'; did you mean 'flip'?"),
        ("sedd", 1, "no config field 'sedd'; did you mean 'seed'?"),
        ("optim", 3, "optim=3 must be a group of fields"),
        ("model.name", "fcn8", "model.name='fcn8' is none of "),
        ("model.name", "fcn8", "did you mean 'fcn8s'?"),
        ("data.name", "shape", "did you mean 'shapes'?"),
        ("optim.schedule", "cosin", "did you mean 'cosine'?"),
        ("parallel.mode", "pmpa", "did you mean 'pmap'?"),
        ("loss.normalization", "mean", "loss.normalization='mean' is none of sum, valid_mean"),
        ("data.batch_size", 0, "data.batch_size=0 must be at least 1"),
        ("data.batch_size", 2.5, "data.batch_size=2.5 must be a whole number"),
        ("data.batch_size", True, "data.batch_size=True must be a whole number"),
        ("train.eval_every", -1, "train.eval_every=-1 must be at least 0"),
        ("model.width", 0.0, "model.width=0.0 must be above 0"),
        ("model.dropout", 1.0, "model.dropout=1.0 must be at least 0 and below 1"),
        ("optim.lr", "fast", "optim.lr='fast' must be a number"),
        ("optim.lr", float("nan"), "optim.lr=nan must be a number"),
        ("data.root", 3, "data.root=3 must be text"),
        ("data.augment.flip", "yes", "data.augment.flip='yes' must be True or False"),
        ("data.augment.scale", (3,), "data.augment.scale=(3,) must be 2 numbers, as (1.0, 1.0)"),
        ("data.augment.scale", (2.0, 1.0), "data.augment.scale=(2.0, 1.0) must be (low, high) with 0 < low ≤ high"),
        ("data.augment.crop", (32.5, 32), "data.augment.crop=(32.5, 32) must be 2 whole numbers, as (0, 0)"),
        ("input.mean", (1.0, 2.0, 3.0), "input.mean and input.scale need input.order, whose channels they are of"),
        ("input.mean", (1.0, "2", 3.0), "input.mean=(1.0, '2', 3.0) must be numbers: (1000, 2000)"),
        (
            "input.order",
            "RBB",
            "input: order must be RGB, BGR, one of them with D or HHA behind, or HHA alone; not 'RBB'",
        ),
        ("input.order", "RGBD", "input: mean and scale need 4 values each, one a channel of RGBD"),
        ("optim.frozen", ("conv*", 3), "optim.frozen=('conv*', 3) must be names"),
        ("optim.boundaries", ("a",), "optim.boundaries=('a',) must be numbers"),
        ("optim.lr_multipliers", ("*/bias", 2.0), "optim.lr_multipliers=('*/bias', 2.0) must be rules"),
        ("optim.schedule", "step", "optim.schedule='step' and optim.boundaries"),
        ("optim.warmup_steps", 1000, "optim.warmup_steps=1000 leaves none of 1000 steps"),
        (
            "optim.warmup_from",
            0.5,
            "optim.warmup_from=0.5 must be a share, up to 1, with optim.warmup_steps",
        ),
        ("optim.boundaries", (10,), "optim.schedule='step' and optim.boundaries"),
        ("optim.momentum", 1.0, "optim.momentum=1.0 must be at least 0 and below 1"),
        ("seed", -1, "seed=-1 must be at least 0"),
        ("seed", 2**32, "seed=4294967296 must be below 2³²"),
        (
            "data.root",
            "photos",
            "data.name='shapes' draws its images; for your own folder say --config configs/fcn8s.py:folder",
        ),
        ("data.folder.value_255", "void", "data.folder.value_255 is of data.name='folder', and it is 'shapes'"),
        ("init.extra_channels", "mean", "init.extra_channels says how a weight file's first layer grows"),
        ("data.augment.crop", (0, 32), "data.augment.crop=(0, 32) must be height and width, or (0, 0)"),
        ("init.skip", ("fc6",), "init.skip=('fc6',) needs init.weights"),
        ("loss.normalization", "sum", "optim.lr=0.001 with loss.normalization='sum' blows up"),
        ("parallel.shard_state", True, "parallel.shard_state needs parallel.mode='mesh', and it is 'pmap'"),
    ],
)
def test_a_fault_is_named(field, value, message):
    assert message in fault(field, value)


def test_fields_that_contradict_each_other():
    config = experiment.default()
    config.optim.update(schedule="step", boundaries=(20, 10))
    with pytest.raises(ConfigError, match=r"optim\.boundaries=\(20, 10\) must be steps above 0 that rise"):
        experiment.validate(config)
    config = experiment.default()
    config.loss.update(name="focal", class_weight_values=(1.0, 2.0))
    with pytest.raises(ConfigError, match=r"loss\.class_weight_values weigh loss\.name='cross_entropy'"):
        experiment.validate(config)


def test_a_net_starts_from_one_place():
    config = experiment.default()
    config.init.update(workdir="runs/a", weights="a.caffemodel")
    with pytest.raises(ConfigError, match=r"init\.workdir and init\.weights contradict each other"):
        experiment.validate(config)


def test_the_width_holds_for_the_whole_net():
    config = changed("model.width", 1 / 64)
    shapes = jax.eval_shape(lambda: experiment.make_model(config, 3).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    assert shapes["params"]["fc7"]["kernel"].shape == (1, 1, 64, 64)


def test_a_config_file_knows_its_variants():
    assert experiment.choose("camvid", ("shapes", "camvid")) == "camvid"
    with pytest.raises(ConfigError, match=r"no variant 'camvit'; did you mean 'camvid'\?; there are shapes, camvid"):
        experiment.choose("camvit", ("shapes", "camvid"))


def test_json_brings_a_config_back(tmp_path):
    config = tiny.config(**{"optim.frozen": ("conv*",), "data.augment.crop": (32, 32)})
    path = tmp_path / "config.json"
    path.write_text(experiment.to_json(config))
    loaded = experiment.load(path)
    assert loaded.to_dict() == config.to_dict()
    assert experiment.to_json(loaded) == experiment.to_json(config)
    experiment.validate(loaded)
    experiment.check_resume(config, loaded, tmp_path)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json is missing: .* is not the workdir of a run"):
        experiment.load(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"name": ')
    with pytest.raises(CheckpointError, match=r"config\.json is no valid JSON"):
        experiment.load(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [("train.steps", 99), ("train.log_every", 7), ("data.root", "/elsewhere"), ("init.weights", "moved.caffemodel")],
)
def test_steps_intervals_and_paths_may_change(field, value, tmp_path):
    experiment.check_resume(changed(field, value), experiment.default(), tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "difference"),
    [
        ("optim.lr", 0.5, "optim.lr: 0.001 → 0.5"),
        ("data.batch_size", 2, "data.batch_size: 1 → 2"),
        ("data.augment.crop", (8, 8), "data.augment.crop: (0, 0) → (8, 8)"),
        ("seed", 1, "seed: 0 → 1"),
    ],
)
def test_nothing_else_may(field, value, difference, tmp_path):
    with pytest.raises(ConfigError) as caught:
        experiment.check_resume(changed(field, value), experiment.default(), tmp_path)
    assert f"holds a run with another config ({difference})" in str(caught.value)


def test_the_net_is_as_the_config_says():
    model = experiment.make_model(tiny.config(**{"model.dtype": "bfloat16", "model.padding": "caffe"}), 4)
    assert (model.num_classes, model.stride, model.padding, model.fc_width) == (4, 32, "caffe", 16)
    assert (model.dtype, model.precision) == (jnp.bfloat16, None)
