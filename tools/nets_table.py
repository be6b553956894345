"""The family side by side: nets on the embedded data set, each trained for a minute and a half, over three seeds.

    python tools/nets_table.py [--runs runs/nets] [--seeds 3] [--only FCN-8s SegNet …]

Trains what is not yet trained (a run that was killed begins anew: its seconds are part of the result), and prints the
table in Markdown: mean IU, seconds of the whole command, parameters, and for one image of the data set the FLOPs (the
compiler's count), the time of a prediction, and the memory that the compiled program takes beside its parameters.

Some nets begin with the layers of another one's run of the same seed, as those of the papers begin with a VGG-16 that
learned from ImageNet; the other's time is not in theirs.
"""

import argparse
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from fcn_jax import config as experiment
from fcn_jax import evaluation, report, state, visualize
from fcn_jax.data import open_split
from fcn_jax.labels import class_counts
from fcn_jax.predict import Predictor


@dataclasses.dataclass(frozen=True)
class Run:
    """A config file and what is set besides: widths and steps at which a net ends in 90 seconds on two cores.

    With `start` it begins with the layers of that net, all but those that `init.skip` names.
    """

    config: str
    fields: dict[str, Any]
    start: str = ""


# Two pixels in three are background, and a net without skips is slow to say anything else. Weights help, and so does
# Dice's loss, which asks for the share of each class that is found.
WEIGHTED = {"loss.class_weight_values": (0.2, 1, 1, 1, 1, 1, 1, 1), "loss.count_weights": True}
POLY = {"optim.schedule": "poly"}
BASIC = POLY | WEIGHTED | {"model.width": 0.1875, "optim.lr": 2e-2}
FROZEN = ("conv1_*", "conv2_*", "conv3_*")
# Scored at every pixel, as the other nets: so it learns faster than at the eighth that its recipe is trained at.
DEEPLAB = POLY | {"model.width": 0.25, "model.fc_width": 128, "optim.lr": 3e-3, "loss.at_scores": False}
NETS = {
    "FCN-8s": Run("configs/fcn8s.py", POLY | {"train.steps": 600, "optim.lr": 4e-3, "optim.warmup_steps": 50}),
    "FCN-16s": Run(
        "configs/fcn16s.py",
        POLY | {"train.steps": 930, "optim.lr": 4e-3, "optim.frozen": FROZEN, "init.skip": ("score_*",)},
        start="FCN-8s",
    ),
    # Eight images a step: with four its batch norm sees too few images, and twice as many steps end lower.
    "SegNet": Run(
        "configs/segnet.py",
        POLY
        | {
            "data.batch_size": 8,
            "train.steps": 640,
            "model.trunk": "vgg11",
            "model.width": 0.125,
            "optim.lr": 3e-2,
            "loss.name": "dice",
        },
    ),
    "FCN-Basic": Run(
        "configs/segnet_basic.py",
        BASIC
        | {
            "model.name": "segnet_basic_fcn",
            "train.steps": 1060,
            "optim.lr": 1e-2,
            "loss.class_weight_values": (0.4, 1, 1, 1, 1, 1, 1, 1),
        },
    ),
    "SegNet-Basic-EncoderAddition": Run(
        "configs/segnet_basic.py",
        BASIC
        | {
            "model.name": "segnet_basic_encoder_addition",
            "train.steps": 600,
            "init.skip": ("score_*", "upsample*", "conv_classifier"),
        },
        start="FCN-Basic",
    ),
    "DeepLab-MSc": Run(
        "configs/deeplab_largefov.py",
        DEEPLAB
        | {
            "model.name": "deeplab_msc",
            "train.steps": 540,
            "optim.frozen": ("conv1_*", "conv2_*"),
            "init.skip": ("fc*",),
        },
        start="FCN-8s",
    ),
    "DeepLab-LargeFOV": Run(
        "configs/deeplab_largefov.py",
        # FCN-8s learns by its skips, and in its narrow conv5_3 hardly a channel is ever above zero: conv5 starts anew.
        DEEPLAB | {"train.steps": 860, "optim.lr": 2e-3, "optim.frozen": FROZEN, "init.skip": ("conv5_*", "fc*")},
        start="FCN-8s",
    ),
    "FCN-ResNet50": Run("configs/fcn_resnet.py", POLY | {"train.steps": 570, "model.width": 0.125, "optim.lr": 2e-2}),
}
COMMON = {"train.pictures": 0, "train.eval_every": 0, "train.checkpoint_every": 10_000, "data.shapes.val_images": 200}


def main() -> None:
    """Runs the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/nets"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(NETS), help="these nets alone")
    options = parser.parse_args()
    for seed in range(options.seeds):
        for name in options.only:
            train(name, seed, options.runs)
    columns = [
        "begins with",
        "mean IU",
        *(f"seed {seed}" for seed in range(options.seeds)),
        "training, s",
        "parameters",
    ]
    columns += ["GFLOP", "ms an image", "memory, MiB"]
    print(f"| | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|")
    for name in options.only:
        print(row(name, options.runs, options.seeds), flush=True)
    path = options.runs / "nets.png"
    visualize.write_png(path, picture(options.only, options.runs))
    print(f"picture: {path}")


def train(name: str, seed: int, runs: Path) -> None:
    """Trains one net, unless it is trained, and notes how long the command took."""
    run, workdir = NETS[name], workdir_of(name, seed, runs)
    fields = COMMON | run.fields | {"seed": seed, "data.shapes.seed": seed}
    if run.start:
        fields["init.workdir"] = workdir_of(run.start, seed, runs).absolute()
    command = [sys.executable, "train.py", "--config", run.config, "--workdir", str(workdir.absolute())]
    note = workdir / "seconds.txt"
    if note.exists():
        return
    if workdir.exists():
        shutil.rmtree(workdir)
    begun = time.perf_counter()
    subprocess.run(
        [*command, *(f"--config.{field}={value}" for field, value in fields.items())],
        cwd=Path(__file__).parents[1],
        check=True,
    )
    note.write_text(f"{time.perf_counter() - begun:.1f}\n")


def workdir_of(name: str, seed: int, runs: Path) -> Path:
    """Where a net's run lies."""
    return runs / f"{name.lower().replace(' ', '-')}-{seed}"


def row(name: str, runs: Path, seeds: int) -> str:
    """A net's line of the table."""
    scores = [last_score(workdir_of(name, seed, runs)) for seed in range(seeds)]
    seconds = [float((workdir_of(name, seed, runs) / "seconds.txt").read_text()) for seed in range(seeds)]
    config = experiment.load(workdir_of(name, 0, runs) / experiment.CONFIG_FILE)
    source = open_split(config.data, "val")
    model: Any = experiment.make_model(config, class_counts(source.info))
    variables = state.init_variables(model, 0)
    image = jax.device_put(experiment.input_spec(config)(source[0]["image"])[None])
    predict: Any = evaluation.predicted_labels(model)
    program = predict.lower(variables, image).compile()
    program(variables, image).block_until_ready()
    times = []
    for _ in range(15):
        begun = time.perf_counter()
        program(variables, image).block_until_ready()
        times.append(time.perf_counter() - begun)
    cost: Any = program.cost_analysis()
    memory: Any = program.memory_analysis()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    cells = [
        NETS[name].start or "nothing",
        f"**{100 * np.mean(scores):.1f}**",
        *(f"{100 * score:.1f}" for score in scores),
        f"{max(seconds):.0f}",
        f"{parameters:,}",
        f"{cost['flops'] / 1e9:.2f}",
        f"{1000 * statistics.median(times):.1f}",
        f"{(memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20:.1f}",
    ]
    return f"| {name} | {' | '.join(cells)} |"


def last_score(workdir: Path) -> float:
    """The mean IU of a run's last evaluation."""
    lines = (workdir / report.METRICS_FILE).read_text().splitlines()
    return next(entry for entry in map(json.loads, reversed(lines)) if "val/mean_iou" in entry)["val/mean_iou"]


def picture(names: list[str], runs: Path, count: int = 2) -> np.ndarray:
    """Rows of input, each net's labels, and truth, of the first seed."""
    nets = {name: Predictor.from_workdir(workdir_of(name, 0, runs), "latest") for name in names}
    config = experiment.load(workdir_of(names[0], 0, runs) / experiment.CONFIG_FILE)
    source = open_split(config.data, "val")
    rows = []
    for index in range(count):
        example = source[index]
        panels = [example["image"]]
        panels += [visualize.colorize(net(example["image"]), source.info.palette) for net in nets.values()]
        panels.append(visualize.colorize(example["label"], source.info.palette))
        rows.append(visualize.strip(panels, ["input", *names, "truth"], scale=1))
    return np.concatenate(rows)


if __name__ == "__main__":
    main()
