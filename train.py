"""Trains an experiment, or goes on with it: python train.py --config configs/fcn8s.py [--workdir runs/fcn8s]."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fcn_jax import command_line, hosts, training
from fcn_jax.errors import ConfigError
from fcn_jax.preemption import Preemption

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: FILE.py or FILE.py:VARIANT.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; runs/<the config's name> by default.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "On several hosts: HOST:PORT of the first; or auto, on TPU slices, under Slurm and Open MPI."
)
HOSTS = flags.DEFINE_integer("hosts", None, "How many hosts take part.", lower_bound=1)
HOST = flags.DEFINE_integer("host", None, "Which of them this is, from 0.", lower_bound=0)
START_TIMEOUT = flags.DEFINE_integer(
    "start_timeout", 300, "Seconds within which all hosts must have come.", lower_bound=1
)
HEARTBEAT = flags.DEFINE_integer(
    "heartbeat", 100, "Seconds without a sign of a host after which the others end.", lower_bound=1
)
STALL_TIMEOUT = flags.DEFINE_integer(
    "stall_timeout",
    3600,
    "Seconds after which a host ends that waits for others which live and do not get on.",
    lower_bound=1,
)
PROFILE = flags.DEFINE_bool("profile", False, "Write a trace of a few early steps for TensorBoard.")


def main(arguments: Sequence[str]) -> None:
    """The command."""
    command_line.refuse_arguments(arguments)
    config = command_line.experiment(CONFIG)
    if config is None:
        raise ConfigError("name an experiment: --config configs/fcn8s.py")
    if COORDINATOR.value is not None:
        with Preemption():
            hosts.join(
                COORDINATOR.value,
                HOSTS.value,
                HOST.value,
                start_seconds=START_TIMEOUT.value,
                heartbeat_seconds=HEARTBEAT.value,
                stall_seconds=STALL_TIMEOUT.value,
            )
    elif HOSTS.value is not None or HOST.value is not None:
        raise ConfigError("--hosts and --host need --coordinator")
    workdir = Path(WORKDIR.value or f"runs/{config.name}").expanduser()
    training.train(config, workdir, profile=PROFILE.value)


if __name__ == "__main__":
    command_line.run(main)
