"""Counts a data set's classes: python -m fcn_jax.data stats --config configs/segnet.py:camvid --output balance.json

The file holds pixels and images by class, and the weights that balance the classes in the loss by each formula of
`data/balance.py`. A config names it: --config.loss.class_weights=balance.json --config.loss.balancing=median_frequency.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fcn_jax import command_line, data
from fcn_jax.data import balance
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.labels import by_head

USAGE = "python -m fcn_jax.data stats --config FILE.py:VARIANT [--split SPLIT] [--head HEAD] [--output FILE.json]"


def stats(config, split: str, head: str, output: str, overwrite: bool) -> None:
    """Prints the table of a split's classes, and writes it with the weights."""
    target = Path(output).expanduser()
    if target.exists() and not overwrite:
        raise DataError(f"{target} exists: choose another --output, or say --overwrite")
    source = data.open_split(config.data, split)
    heads = by_head(source.info)
    if head not in heads:
        raise ConfigError(f"--head {head!r}: the labels are of {', '.join(map(repr, heads))}")
    counts = balance.count(source, head)
    weights = {name: formula(counts) for name, formula in balance.FORMULAS.items()}
    width = max(map(len, counts.class_names))
    print(f"{config.data.name} {split}: {counts.images} images")
    print(f"{'class':<{width}} {'pixels':>14} {'images':>7} " + " ".join(f"{name:>16}" for name in weights))
    for place, name in enumerate(counts.class_names):
        numbers = " ".join(f"{values[place]:>16.4f}" for values in weights.values())
        print(f"{name:<{width}} {counts.pixels[place]:>14,} {counts.images_with[place]:>7,} {numbers}")
    target.write_text(balance.to_json(counts, config.data.name, split))
    print(f"weights in {target}")


def main(arguments: Sequence[str]) -> None:
    """The command."""
    values = flags.FLAGS
    config = command_line.experiment(CONFIG)
    if list(arguments) != ["stats"] or config is None:
        raise ConfigError(f"usage: {USAGE}")
    stats(config, values.split or config.data.train_split, values.head, values.output, values.overwrite)


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file("config", None, "Whose `data` to count.")
    flags.DEFINE_string("split", "", "The split to count; data.train_split by default.")
    flags.DEFINE_string("head", "", "The head whose labels are counted, where there are several.")
    flags.DEFINE_string("output", "balance.json", "The file to write.")
    flags.DEFINE_bool("overwrite", False, "Replace it if it is there already.")
    command_line.run(main)
