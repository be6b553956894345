"""A trained net on images of any size: python -m fcn_jax.predict --workdir runs/fcn8s IMAGE_OR_FOLDER…

Each image gives `<stem>.png`, an indexed PNG whose values are the labels, and `<stem>_overlay.png`; `legend.png` and
`classes.json` say which colour is which class. Every image is run at its own size; a new size is compiled once.

    --heatmap CLASS    paints that class's probability over each image instead, into <stem>_heatmap.png

A classifier's map is coarse and laid over the picture where its cells look (Long, Shelhamer and Darrell, 2015, figure
2: the "tabby cat"). Without --heatmap a classifier names the classes that it finds most probable.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import flags

from fcn_jax import command_line, evaluation, picture_files, state, weights
from fcn_jax import config as experiment
from fcn_jax.checkpoints import Checkpoints
from fcn_jax.errors import CheckpointError, ConfigError, DataError, did_you_mean
from fcn_jax.inputs import InputSpec
from fcn_jax.labels import Info, by_head, class_counts
from fcn_jax.ops.grid import spread

MOST_PROBABLE = 5


class Predictor:
    """A net with its variables, what it wants to see, and what its classes are called."""

    def __init__(
        self,
        model: nn.Module,
        variables: Any,
        input_spec: InputSpec,
        info: Info,
        origin: str,
    ):
        self.info, self.input_spec, self.origin = info, input_spec, origin
        # Classifiers have nothing that brings their map to pixels.
        self.is_classifier = not hasattr(model, "upsampling_kernels")
        self._model, self._variables = model, variables
        self._predict = evaluation.predicted_labels(model)
        self._probabilities = evaluation.probabilities(model)

    @classmethod
    def from_workdir(cls, workdir: str | Path, checkpoint: str = "best") -> "Predictor":
        """The net of a run, rebuilt from its workdir alone.

        `checkpoint` is `best` (by val mean IU, else the latest), `latest` or a step.

        Raises CheckpointError where there is no run, or no such checkpoint.
        """
        workdir = Path(workdir).expanduser()
        config = experiment.load(workdir / experiment.CONFIG_FILE)
        info = experiment.load_classes(workdir / experiment.CLASSES_FILE)
        model = experiment.make_model(config, class_counts(info))
        with Checkpoints(workdir, read_only=True) as checkpoints:
            step, params = checkpoints.restore_params(checkpoint, state.abstract_params(model))
        return cls(model, {"params": params}, experiment.input_spec(config), info, f"step {step} of {workdir}")

    @classmethod
    def from_weights(cls, path: str | Path, model: str) -> "Predictor":
        """The net that a weight file holds; `model` is the name of a release, or of a model with ImageNet's classes.

        What the net expects to see is told by where the file comes from; see `weights.expected_input`.
        """
        net = weights.load_net(Path(path).expanduser(), model)
        info = weights.classes_of(net.module, model)
        return cls(net.module, net.variables, net.input_spec, info, f"{model} from {path}")

    def __call__(self, image: np.ndarray) -> Any:
        """Labels uint8 `[h w]` of an RGB image uint8 `[h w 3]`, any h and w ≥ 1; with several heads a dict of them."""
        labels = jax.tree.map(lambda x: np.asarray(x[0]), self._predict(self._variables, self._blob(image)))
        return labels

    def class_probabilities(self, image: np.ndarray) -> np.ndarray:
        """A classifier's probability of each class, `[c]`: the mean over its map, as VGG's dense evaluation has it."""
        return self._map(image, "").mean(axis=(0, 1))

    def heatmap(self, image: np.ndarray, label: int, head: str = "") -> np.ndarray:
        """The probability f32 `[h w]` of one class at each pixel of an image `[h w 3]`.

        A classifier's few cells are interpolated between the pixels that they are centred on.
        """
        scores = self._map(image, head)[..., label]
        if not self.is_classifier:
            return scores
        grids: Any = self._model
        return spread(scores, grids.grids()["prob"], image.shape[:2])

    def find_class(self, text: str) -> tuple[str, int, str]:
        """Head, label and name of a class by its name, one of its names, or its number. ConfigError where none fits."""
        found = []
        for head, info in by_head(self.info).items():
            for label, name in enumerate(info.class_names):
                if text in (name, str(label), *(part.strip() for part in name.split(","))):
                    found.append((head, label, name))
        if not found:
            known = [
                part.strip()
                for info in by_head(self.info).values()
                for name in info.class_names
                for part in name.split(",")
            ]
            raise ConfigError(f"no class {text!r}{did_you_mean(text, known)}; name one, or give its number")
        if len(found) > 1:
            numbers = ", ".join(f"{label} ({name})" for _, label, name in found)
            raise ConfigError(f"{text!r} is more than one class: {numbers}; give its number")
        return found[0]

    def _map(self, image: np.ndarray, head: str) -> np.ndarray:
        return np.asarray(by_head(self._probabilities(self._variables, self._blob(image)))[head][0])

    def _blob(self, image: np.ndarray) -> jax.Array:
        channels = len(self.input_spec.order)
        if image.shape[-1] != channels:
            raise DataError(
                f"the net takes {channels} channels ({self.input_spec.order}), a picture has {image.shape[-1]}: "
                "score it on its data set by evaluate.py"
            )
        smallest = getattr(self._model, "smallest", 1)
        if min(image.shape[:2]) < smallest:
            height, width = image.shape[:2]
            raise DataError(
                f"a picture of {width}×{height} pixels is too small for {self.origin}: it takes {smallest}×{smallest} "
                "and more"
            )
        return jax.device_put(self.input_spec(image)[None])


def predict_files(predictor: Predictor, paths: Sequence[Path], output: Path, overwrite: bool = False) -> int:
    """Labels the images into `output`; see `picture_files.write_labels`."""
    return picture_files.write_labels(predictor, predictor.info, paths, output, overwrite)


def name_classes(predictor: Predictor, paths: Sequence[Path]) -> int:
    """Says what a classifier sees in each image; gives how many could not be read."""
    names = by_head(predictor.info)[""].class_names
    failures = 0
    for number, path, image in picture_files.read_each(paths):
        if image is None:
            failures += 1
            continue
        shares = predictor.class_probabilities(image)
        best = np.argsort(-shares, kind="stable")[:MOST_PROBABLE]
        said = "; ".join(f"{100 * shares[label]:.1f} % {names[label]}" for label in best)
        print(f"{number}/{len(paths)} {path}: {said}", flush=True)
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
    paths = picture_files.find_images(arguments)
    predictor = from_flags(values.workdir, values.checkpoint, values.weights, values.model)
    counts = " and ".join(f"{info.num_classes} {head}".strip() for head, info in by_head(predictor.info).items())
    print(f"{predictor.origin}: {counts} classes")
    output = Path(values.output).expanduser()
    if values.heatmap is not None:
        head, label, name = predictor.find_class(values.heatmap)
        failures = picture_files.write_heatmaps(
            lambda image: predictor.heatmap(image, label, head), name, paths, output, values.overwrite
        )
    elif predictor.is_classifier:
        failures = name_classes(predictor, paths)
    else:
        failures = predict_files(predictor, paths, output, values.overwrite)
    return 1 if failures else 0


if __name__ == "__main__":
    define_flags()
    flags.DEFINE_string("output", "predictions", "The folder to write into.")
    flags.DEFINE_string("heatmap", None, "Paint this class's probability: its name, one of its names, or its number.")
    command_line.run(main)
