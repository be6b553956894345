"""Trains an experiment, or goes on with it: python train.py --config configs/fcn8s.py [--workdir runs/fcn8s]."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fcn_jax import command_line, training
from fcn_jax.errors import ConfigError

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: FILE.py or FILE.py:VARIANT.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; runs/<the config's name> by default.")
PROFILE = flags.DEFINE_bool("profile", False, "Write a trace of a few early steps for TensorBoard.")


def main(arguments: Sequence[str]) -> None:
    """The command."""
    command_line.refuse_arguments(arguments)
    config = command_line.experiment(CONFIG)
    if config is None:
        raise ConfigError("name an experiment: --config configs/fcn8s.py")
    workdir = Path(WORKDIR.value or f"runs/{config.name}").expanduser()
    training.train(config, workdir, profile=PROFILE.value)


if __name__ == "__main__":
    command_line.run(main)
