"""The FCN paper's table 2 in miniature: nets with ever finer skips on the embedded data set, over three seeds.

    python tools/skips_table.py [--runs runs/skips] [--seeds 3]

Trains what is not yet trained (a killed run is resumed), prints the table in Markdown, and writes a strip of 32s, 16s,
8s and truth side by side for a few images, as in the paper's figure 4.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from fcn_jax import config as experiment
from fcn_jax import data, report, visualize
from fcn_jax.predict import Predictor

NETS = {
    "FCN-32s-fixed": "configs/fcn32s.py:fixed",
    "FCN-32s": "configs/fcn32s.py",
    "FCN-16s": "configs/fcn16s.py",
    "FCN-8s": "configs/fcn8s.py",
}


def main() -> None:
    """Runs the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/skips"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=3, help="rows of the picture")
    options = parser.parse_args()
    root = Path(__file__).parents[1]
    for seed in range(options.seeds):
        for net, config in NETS.items():
            workdir = options.runs.absolute() / f"{net.lower()}-{seed}"
            command = [sys.executable, "train.py", "--config", config, "--workdir", str(workdir)]
            # Longer, and at a lower rate, than the example: FCN-32s is slow to learn from nothing.
            fields = {"seed": seed, "data.shapes.seed": seed}
            fields |= {"train.steps": 2400, "optim.lr": 1.5e-3, "optim.warmup_steps": 50}
            overrides = [f"--config.{field}={value}" for field, value in fields.items()]
            subprocess.run([*command, *overrides], cwd=root, check=True)
    print(table(options.runs, options.seeds))
    path = options.runs / "skips.png"
    visualize.write_png(path, picture(options.runs, options.images))
    print(f"picture: {path}")


def table(runs: Path, seeds: int) -> str:
    """Markdown: the four scores of each net, mean over the seeds, and the mean IU of each seed."""
    columns = [*report.OVERALL.values(), *(f"mean IU, seed {seed}" for seed in range(seeds))]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for net in NETS:
        rows = [last_scores(runs / f"{net.lower()}-{seed}") for seed in range(seeds)]
        means = [np.mean([row[f"val/{key}"] for row in rows]) for key in report.OVERALL]
        each = [row["val/mean_iou"] for row in rows]
        lines.append(f"| {net} | {' | '.join(f'{100 * value:.1f}' for value in (*means, *each))} |")
    return "\n".join(lines)


def last_scores(workdir: Path) -> dict:
    """The entries of the last evaluation of a run."""
    lines = (workdir / report.METRICS_FILE).read_text().splitlines()
    return next(entry for entry in map(json.loads, reversed(lines)) if "val/mean_iou" in entry)


def picture(runs: Path, count: int) -> np.ndarray:
    """Rows of input, 32s, 16s, 8s and truth, of the first seed."""
    nets = {net: Predictor.from_workdir(runs / f"{net.lower()}-0", "latest") for net in NETS if net != "FCN-32s-fixed"}
    config = experiment.load(runs / "fcn-8s-0" / "config.json")
    source = data.open_split(config.data, "val")
    rows = []
    for index in range(count):
        example = source[index]
        panels = [example["image"]]
        panels += [visualize.colorize(predict(example["image"]), source.info.palette) for predict in nets.values()]
        panels.append(visualize.colorize(example["label"], source.info.palette))
        rows.append(visualize.strip(panels, ["input", *nets, "truth"]))
    return np.concatenate(rows)


if __name__ == "__main__":
    main()
