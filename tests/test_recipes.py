"""Every experiment of `configs/`: described where it is, sound, and of a net that can be made and optimised."""

import functools
import importlib
import re
from pathlib import Path

import pytest

from fcn_jax import config as experiment
from fcn_jax import models, optim, state
from fcn_jax.errors import ConfigError
from fcn_jax.weights import names as weight_names
from tools import nets_table

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "recipes")
NUM_CLASSES = {
    **{"shapes": 8, "folder": 3, "camvid": 11, "voc2012": 21, "nyud": 40, "pascal_context": 60},
    "siftflow": {"sem": 33, "geo": 3},
}
# Nets that are not called like their config file.
NETS = {
    ("fcn16s", "cvpr2015"): "fcn16s_2015",
    ("fcn8s", "cvpr2015"): "fcn8s_2015",
    ("deeplab_largefov", "voc2012-msc"): "deeplab_msc",
    ("bayesian_segnet", "voc2012"): "bayesian_segnet_pascal",
}
# Layers of classifiers' files that the nets do not have.
IN_FILES = ("fc6", "fc7", "fc8", "backbone.fc", "loss1_conv", "score_fr")


def described(file: str) -> list[str]:
    """The variants that a config file's own text names, the one without a name first."""
    text = importlib.import_module(f"configs.{file}").__doc__ or ""
    return list(dict.fromkeys(re.findall(rf"--config configs/{file}\.py(?::([\w-]+))?", text)))


# Many experiments are of one net.
abstract_variables = functools.cache(state.abstract_variables)
EXPERIMENTS = [(file, variant or "shapes") for file in FILES for variant in described(file)]


@pytest.mark.parametrize("file", FILES)
def test_a_config_file_describes_each_of_its_variants(file):
    with pytest.raises(ConfigError, match="no variant 'none-such'") as error:
        importlib.import_module(f"configs.{file}").get_config("none-such")
    there_are = str(error.value).partition("there are ")[2].split(", ")
    assert sorted(there_are) == sorted(variant or "shapes" for variant in described(file))


@pytest.mark.parametrize(("file", "variant"), EXPERIMENTS)
def test_every_experiment_is_sound(file, variant):
    config = importlib.import_module(f"configs.{file}").get_config(variant)
    experiment.validate(config)
    assert config.name.startswith(file.replace("fcn_resnet", "fcn_resnet50"))
    assert config.name.endswith(variant) or variant == "shapes"
    assert config.model.name == NETS.get((file, variant), config.name.removesuffix(f"-{variant}"))
    assert variant.startswith(config.data.name.replace("_", "-")) or variant in ("fixed", "cvpr2015")
    module = experiment.make_model(config, NUM_CLASSES[config.data.name])
    assert module.in_channels == len(experiment.input_spec(config).order)  # pyright: ignore[reportAttributeAccessIssue]
    variables = abstract_variables(module)
    optim.make_optimizer(config.optim, config.train.steps, variables["params"])
    assert "batch_stats" in variables or not config.train.statistics_batches
    for pattern in config.init.skip:
        layers = (*variables["params"], *IN_FILES)
        assert any(weight_names.matches(layer, pattern) for layer in layers), pattern


def test_no_two_experiments_share_a_workdir():
    configs = [importlib.import_module(f"configs.{file}").get_config(variant) for file, variant in EXPERIMENTS]
    names = [config.name for config in configs]
    assert len(set(names)) == len(names)
    # A later stage starts from the workdir of another experiment.
    starts = [path for config in configs for path in (config.init.workdir, *config.init.stream_workdirs) if path]
    assert starts and set(starts) <= {f"runs/{name}" for name in names}


def test_every_net_has_an_experiment_or_is_named_in_one():
    words = set(re.findall(r"\w+", "\n".join((FOLDER / f"{file}.py").read_text() for file in FILES)))
    for name in models.SEGMENTATION:
        short = name.removeprefix("segnet_basic") if name.startswith("segnet_basic_") else name
        assert name in words or short in words, name


@pytest.mark.parametrize("name", nets_table.NETS)
def test_the_nets_of_the_table_are_sound(name):
    run, earlier = nets_table.NETS[name], list(nets_table.NETS)[: list(nets_table.NETS).index(name)]
    config = importlib.import_module(f"configs.{Path(run.config).stem}").get_config()
    config.update_from_flattened_dict(nets_table.COMMON | run.fields)
    assert not run.start or run.start in earlier  # whose run is there when this one begins
    config.init.workdir = run.start
    experiment.validate(config)
    variables = abstract_variables(experiment.make_model(config, NUM_CLASSES["shapes"]))
    optim.make_optimizer(config.optim, config.train.steps, variables["params"])
