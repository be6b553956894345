"""Plans a run: python -m fcn_jax.plan --config configs/fcn8s.py:voc2012 --topology v5e:4x4.

The training step of the config is compiled for chips that need not be here: memory of each device and what limits it,
operations and traffic by kind, what devices send each other, the least time of a step, the largest batch, other sizes
of the slice, and what the whole run takes. Nothing is computed and no data is read.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from fcn_jax import command_line
from fcn_jax.errors import ConfigError
from fcn_jax.plan import capacity, planning, slices, tables
from fcn_jax.plan.program import REMEMBERED

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: FILE.py or FILE.py:VARIANT.")
TOPOLOGY = flags.DEFINE_string("topology", slices.LOCAL, "A slice, as v5e:4x4; or local, the devices of this machine.")
SIZE = flags.DEFINE_string("size", "", "HxW of training images, where neither crops nor the data set say it.")
CLASSES = flags.DEFINE_integer("classes", None, "How many classes, where the data is not here.", lower_bound=1)
LARGEST = flags.DEFINE_bool(
    "largest", True, "Look for the largest batch: two compilations more or several, as --seconds allows."
)
SEARCH = flags.DEFINE_bool("search", False, "Compile until it is known that not one image more fits.")
SWEEP = flags.DEFINE_bool("sweep", False, "Compile 1, 2, 4 … images a device, and set them side by side.")
COMPARE = flags.DEFINE_multi_string("compare", [], "FIELD=VALUE,VALUE…: compile each, and set them side by side.")
LAYOUT = flags.DEFINE_bool("layout", False, "List the largest layout copies and paddings.")
LATENCY = flags.DEFINE_bool("latency", False, "Not training: the labels of one image on one device.")
JSON = flags.DEFINE_string("json", None, "Write the figures into this file, too.")
SECONDS = flags.DEFINE_float(
    "seconds", capacity.SECONDS, "No compilation is begun that would end later.", lower_bound=0
)


def main(arguments: Sequence[str]) -> None:
    """The command."""
    command_line.refuse_arguments(arguments)
    config = command_line.experiment(CONFIG)
    if config is None:
        raise ConfigError("name an experiment: --config configs/fcn8s.py")
    # What is compiled for other machines JAX keeps and cannot read back; we remember what it told.
    jax.config.update("jax_enable_compilation_cache", False)
    part = slices.parse(TOPOLOGY.value)
    if COMPARE.value:
        labels, steps = [], []
        for label, step in planning.compare(config, part, COMPARE.value, SIZE.value, CLASSES.value, REMEMBERED):
            print(f"compiled {label}", file=sys.stderr, flush=True)
            labels.append(label)
            steps.append(step)
        print("\n".join(tables.comparison_lines(steps, labels)))
        _write({"topology": str(part), "compared": dict(zip(labels, steps, strict=True))})
        return
    question = planning.ask(config, part, SIZE.value, CLASSES.value, REMEMBERED)
    if LATENCY.value:
        figures = planning.latency(question)
        print("\n".join(tables.latency_lines(question.size, figures)))
        _write({"topology": str(part), "latency": figures})
        return
    if SWEEP.value:
        steps = []
        for step in planning.sweep(question):
            print(f"compiled {step['images_a_device']} images a device", file=sys.stderr, flush=True)
            steps.append(step)
        print("\n".join(tables.comparison_lines(steps, [str(step["images_a_device"]) for step in steps])))
        _write({"topology": str(part), "sweep": steps})
        return
    print(f"compiling for {part} …", file=sys.stderr, flush=True)
    plan = planning.answer(question, largest=LARGEST.value, search=SEARCH.value, seconds=SECONDS.value)
    print("\n".join(tables.plan_lines(plan, layout=LAYOUT.value)))
    _write(plan)


def _write(plan: dict) -> None:
    if JSON.value:
        Path(JSON.value).expanduser().write_text(json.dumps(plan, indent=1) + "\n")


if __name__ == "__main__":
    command_line.run(main)
