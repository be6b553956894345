"""A trained net on images of any size: python -m fcn_jax.predict --workdir runs/fcn8s IMAGE_OR_FOLDER…

Each image gives `<stem>.png`, an indexed PNG whose values are the labels, and `<stem>_overlay.png`; `legend.png` and
`classes.json` say which colour is which class. Every image is run at its own size; a new size is compiled once.
"""

import dataclasses
import glob
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import flags

from fcn_jax import command_line, evaluation, state, visualize, weights
from fcn_jax import config as experiment
from fcn_jax.checkpoints import Checkpoints
from fcn_jax.data import images
from fcn_jax.errors import CheckpointError, ConfigError, DataError
from fcn_jax.inputs import InputSpec
from fcn_jax.labels import DatasetInfo


class Predictor:
    """A net with its parameters, what it wants to see, and what its classes are called."""

    def __init__(self, model: nn.Module, params: Any, input_spec: InputSpec, info: DatasetInfo, origin: str):
        self.info, self.input_spec, self.origin = info, input_spec, origin
        self._params = params
        self._predict = evaluation.predicted_labels(model)

    @classmethod
    def from_workdir(cls, workdir: str | Path, checkpoint: str = "best") -> "Predictor":
        """The net of a run, rebuilt from its workdir alone.

        `checkpoint` is `best` (by val mean IU, else the latest), `latest` or a step.

        Raises CheckpointError where there is no run, or no such checkpoint.
        """
        workdir = Path(workdir).expanduser()
        config = experiment.load(workdir / experiment.CONFIG_FILE)
        info = experiment.load_classes(workdir / experiment.CLASSES_FILE)
        model = experiment.make_model(config, info.num_classes)
        with Checkpoints(workdir, read_only=True) as checkpoints:
            step, params = checkpoints.restore_params(checkpoint, state.abstract_params(model))
        return cls(model, params, experiment.input_spec(config), info, f"step {step} of {workdir}")

    @classmethod
    def from_weights(cls, path: str | Path, release: str) -> "Predictor":
        """The net that a released weight file holds; `release` is a name in `weights.RELEASES`."""
        if release not in weights.RELEASES:
            raise ConfigError(f"no release named {release!r}; there are {', '.join(weights.RELEASES)}")
        row = weights.RELEASES[release]
        model, variables = weights.load_model(Path(path).expanduser(), release)
        return cls(model, variables["params"], row.input_spec, row.info, f"{release} from {path}")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Labels uint8 `[h w]` of an RGB image uint8 `[h w 3]`, any h and w ≥ 1."""
        blob = jax.device_put(self.input_spec(image)[None])
        return np.asarray(self._predict(self._params, blob)[0])


def find_images(patterns: Sequence[str]) -> list[Path]:
    """The images that files, folders and globs name, in order. DataError where one names none, or two would clash."""
    paths: list[Path] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            visible = (file for file in path.iterdir() if not file.name.startswith("."))
            found = sorted(file for file in visible if file.suffix.lower() in images.SUFFIXES)
        elif path.exists():
            found = [path]
        else:
            found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        if not found:
            raise DataError(f"no image at {pattern}: name image files, folders of them or globs")
        paths.extend(found)
    by_stem: dict[str, Path] = {}
    for path in paths:
        other = by_stem.setdefault(path.stem, path)
        if other.resolve() != path.resolve():
            raise DataError(f"{other} and {path} would give the same output: predict them into two folders")
    return list(by_stem.values())


def predict_files(predictor: Predictor, paths: Sequence[Path], output: Path, overwrite: bool = False) -> int:
    """Labels the images into `output`; gives how many could not be read, each named on the error stream.

    Raises DataError before anything is written where a file is in the way.
    """
    targets = [(path, output / f"{path.stem}.png", output / f"{path.stem}_overlay.png") for path in paths]
    legend, classes = output / "legend.png", output / "classes.json"
    inputs = {path.resolve() for path in paths}
    written = [legend, *(target for row in targets for target in row[1:])]
    description = json.dumps(dataclasses.asdict(predictor.info), indent=1) + "\n"
    # Earlier predictions of the same classes have the same legend.
    same_classes = classes.is_file() and classes.read_bytes() == description.encode()
    for target, other in itertools.pairwise(sorted(written)):
        if target == other:
            raise DataError(f"two of the outputs would be {target}: rename an image, or predict them into two folders")
    for target in [*written, classes]:
        if target.resolve() in inputs:
            raise DataError(f"{target} is an input and would be overwritten: choose another --output")
        if target.exists() and not overwrite and not (same_classes and target in (legend, classes)):
            raise DataError(f"{target} exists: choose another --output, or say --overwrite")
    output.mkdir(parents=True, exist_ok=True)
    palette = predictor.info.palette
    visualize.write_png(legend, visualize.legend(predictor.info.class_names, palette))
    classes.write_text(description)
    failures = 0
    for number, (path, label_path, overlay_path) in enumerate(targets, start=1):
        try:
            image = images.read_image(path)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            failures += 1
            continue
        label = predictor(image)
        visualize.write_palette_png(label_path, label, palette)
        visualize.write_png(overlay_path, visualize.overlay(image, label, palette))
        shares = np.bincount(label.ravel(), minlength=predictor.info.num_classes) / label.size
        largest = np.argsort(-shares, kind="stable")[:3]
        said = ", ".join(f"{predictor.info.class_names[i]} {100 * shares[i]:.0f} %" for i in largest if shares[i] > 0)
        print(f"{number}/{len(targets)} {path} → {label_path} ({said})", flush=True)
    return failures


def from_flags(workdir: str | None, checkpoint: str, weight_file: str | None, release: str | None) -> Predictor:
    """The predictor that a command's flags name. Raises ConfigError unless they name exactly one."""
    if (workdir is None) == (weight_file is None):
        raise ConfigError("name a run by --workdir, or a released file by --weights FILE --model NAME")
    if workdir is not None:
        if not Path(workdir).expanduser().is_dir():
            raise CheckpointError(f"--workdir {workdir} is no folder")
        return Predictor.from_workdir(workdir, checkpoint)
    if release is None:
        raise ConfigError(f"--weights needs --model, one of {', '.join(weights.RELEASES)}")
    return Predictor.from_weights(weight_file, release)  # pyright: ignore[reportArgumentType]


def define_flags() -> None:
    """The flags by which `predict` and `evaluate` are told which net to run."""
    flags.DEFINE_string("workdir", None, "The run whose net it is.")
    flags.DEFINE_string("checkpoint", "best", "Which checkpoint: best (by val mean IU), latest, or a step.")
    flags.DEFINE_string("weights", None, "A released weight file, instead of a run.")
    flags.DEFINE_string("model", None, "What that file is, for example voc-fcn8s.")
    flags.DEFINE_bool("overwrite", False, "Replace results that are there already.")


def main(arguments: Sequence[str]) -> int:
    """The command."""
    values = flags.FLAGS
    if not arguments:
        raise ConfigError("name images, folders or globs: python -m fcn_jax.predict --workdir runs/fcn8s photo.jpg")
    paths = find_images(arguments)
    predictor = from_flags(values.workdir, values.checkpoint, values.weights, values.model)
    print(f"{predictor.origin}: {predictor.info.num_classes} classes")
    failures = predict_files(predictor, paths, Path(values.output).expanduser(), values.overwrite)
    return 1 if failures else 0


if __name__ == "__main__":
    define_flags()
    flags.DEFINE_string("output", "predictions", "The folder to write into.")
    command_line.run(main)
