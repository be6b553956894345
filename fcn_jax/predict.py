"""A trained net on images of any size: python -m fcn_jax.predict --workdir runs/fcn8s IMAGE_OR_FOLDER…

Each image gives `<stem>.png`, an indexed PNG whose values are the labels, and `<stem>_overlay.png`; `legend.png` and
`classes.json` say which colour is which class. Every image is run at its own size; a new size is compiled once.

    --heatmap CLASS    paints that class's probability over each image instead, into <stem>_heatmap.png
    --samples N        of a net with dropout in testing (Bayesian SegNet) takes the mean of N samples, and paints, in
                       place of overlays, their uncertainty: <stem>_entropy.png and <stem>_mutual_information.png
    --boxes FOLDER     scores crops, not whole images: the boxes of <stem>.txt there (DeconvNet; see proposals.py)
    --ensemble NET     … together with another net's scores for the whole image (EDeconvNet takes an FCN-8s): a run's
                       workdir, or voc-fcn8s=FILE

A classifier's map is coarse and laid over the picture where its cells look (Long, Shelhamer and Darrell, 2015, figure
2: the "tabby cat"). Without --heatmap a classifier names the classes that it finds most probable.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from fcn_jax import (
    command_line,
    compilations,
    evaluation,
    picture_files,
    proposals,
    state,
    uncertainty,
    weights,
)
from fcn_jax import config as experiment
from fcn_jax.checkpoints import Checkpoints
from fcn_jax.data.boxes import read_boxes
from fcn_jax.errors import CheckpointError, ConfigError, DataError, did_you_mean
from fcn_jax.inputs import InputSpec
from fcn_jax.labels import Info, best_labels, by_head, class_counts
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
        samples: int = 0,
    ):
        if samples and not (getattr(model, "dropout_after", ()) and getattr(model, "dropout", 0) > 0):
            raise ConfigError(f"{origin} has no dropout in testing: there is nothing to sample")
        self.info, self.input_spec, self.origin, self.samples = info, input_spec, origin, samples
        # Classifiers have nothing that brings their map to pixels.
        self.is_classifier = not hasattr(model, "score_grid")
        self._model, self._variables = model, variables
        self._logits = jax.jit(model.apply)
        self._predict = evaluation.predicted_labels(model)
        self._probabilities = evaluation.probabilities(model)
        self._sample = evaluation.sampled_probabilities(model, samples) if samples else None

    @classmethod
    def from_workdir(cls, workdir: str | Path, checkpoint: str = "best", samples: int = 0) -> "Predictor":
        """The net of a run, rebuilt from its workdir alone.

        `checkpoint` is `best` (by val mean IU, else the latest), `latest` or a step. With `samples` the mean of so many
        Monte Carlo samples is predicted.

        Raises CheckpointError where there is no run, or no such checkpoint.
        """
        workdir = Path(workdir).expanduser()
        config = experiment.load(workdir / experiment.CONFIG_FILE)
        info = experiment.load_classes(workdir / experiment.CLASSES_FILE)
        model = experiment.make_model(config, class_counts(info))
        with Checkpoints(workdir, read_only=True) as checkpoints:
            step, variables = checkpoints.restore_variables(checkpoint, state.abstract_variables(model))
        return cls(model, variables, experiment.input_spec(config), info, f"step {step} of {workdir}", samples)

    @classmethod
    def from_weights(cls, path: str | Path, model: str, samples: int = 0) -> "Predictor":
        """The net that a weight file holds; `model` is the name of a release, or of a model with ImageNet's classes.

        What the net expects to see is told by where the file comes from; see `weights.expected_input`.
        """
        net = weights.load_net(Path(path).expanduser(), model)
        info = weights.classes_of(net.module, model)
        return cls(net.module, net.variables, net.input_spec, info, f"{model} from {path}", samples)

    def __call__(self, image: np.ndarray) -> Any:
        """Labels `[h w]` of an RGB image uint8 `[h w 3]`, any h and w ≥ 1; with several heads a dict of them.

        They are uint8, and uint16 where there are more than 255 classes.
        """
        if self._sample is not None:
            return best_labels(self.probabilities(image))
        labels = jax.tree.map(lambda x: np.asarray(x[0]), self._run(self._predict, image))
        return labels

    def probabilities(self, image: np.ndarray) -> Any:
        """The probability f32 `[h w c]` of each class at each pixel, the mean of the samples if there are any."""
        if self._sample is not None:
            return np.asarray(jnp.mean(self._run(self._sample, image), axis=0)[0])
        return jax.tree.map(lambda x: np.asarray(x[0]), self._run(self._probabilities, image))

    def uncertainty(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Labels, and the samples' `entropy` and `mutual_information`, each `[h w]`; see `fcn_jax.uncertainty`."""
        if self._sample is None:
            raise ConfigError("uncertainty is told by samples: say --samples 8")
        samples = self._run(self._sample, image)[:, 0]
        mean = jnp.mean(samples, axis=0)
        return {
            "label": np.asarray(best_labels(mean)),
            "entropy": np.asarray(uncertainty.entropy(mean)),
            "mutual_information": np.asarray(uncertainty.mutual_information(samples)),
        }

    def scores(self, image: np.ndarray) -> np.ndarray:
        """The scores f32 `[h w c]` before the softmax, of a net with one head."""
        return np.asarray(self._run(self._logits, image)[0])

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
        return np.asarray(by_head(self._run(self._probabilities, image))[head][0])

    def _run(self, function: Any, image: np.ndarray) -> Any:
        blob = self._blob(image)
        with compilations.of(f"{self.origin}, for images", image.shape[:2]):
            return function(self._variables, blob)

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
    return picture_files.write_labels(lambda image, _: predictor(image), predictor.info, paths, output, overwrite)


def name_classes(predictor: Predictor, paths: Sequence[Path]) -> int:
    """Says what a classifier sees in each image; gives how many could not be read."""
    names = by_head(predictor.info)[""].class_names
    failures = 0
    for number, path, _, shares in picture_files.each_result(
        paths, lambda image, path: predictor.class_probabilities(image)
    ):
        if shares is None:
            failures += 1
            continue
        best = np.argsort(-shares, kind="stable")[:MOST_PROBABLE]
        said = "; ".join(f"{100 * shares[label]:.1f} % {names[label]}" for label in best)
        print(f"{number}/{len(paths)} {path}: {said}", flush=True)
    return failures


def from_flags(
    workdir: str | None, checkpoint: str, weight_file: str | None, release: str | None, samples: int = 0
) -> Predictor:
    """The predictor that a command's flags name. Raises ConfigError unless they name exactly one."""
    if (workdir is None) == (weight_file is None):
        raise ConfigError("name a run by --workdir, or a released file by --weights FILE --model NAME")
    if workdir is not None:
        if not Path(workdir).expanduser().is_dir():
            raise CheckpointError(f"--workdir {workdir} is no folder")
        return Predictor.from_workdir(workdir, checkpoint, samples)
    if release is None:
        raise ConfigError(f"--weights needs --model, one of {', '.join(weights.RELEASES)}")
    return Predictor.from_weights(weight_file, release, samples)  # pyright: ignore[reportArgumentType]


def _ensemble_member(text: str, first: Predictor) -> Predictor:
    """The net that `--ensemble` names, of a run its best, which must know the same classes as the first."""
    release, equals, file = text.partition("=")
    if Path(text).expanduser().is_dir():
        other = Predictor.from_workdir(text)
    elif equals:
        other = Predictor.from_weights(file, release)
    else:
        raise ConfigError(f"--ensemble {text} is neither the folder of a run nor RELEASE=FILE")
    known, wanted = ({head: info.class_names for head, info in by_head(net.info).items()} for net in (other, first))
    if known != wanted or other.is_classifier:
        raise ConfigError(f"--ensemble: {other.origin} does not label with the classes of {first.origin}")
    print(f"with {other.origin}")
    return other


def define_flags() -> None:
    """The flags by which `predict` and `evaluate` are told which net to run."""
    flags.DEFINE_string("workdir", None, "The run whose net it is.")
    flags.DEFINE_string("checkpoint", "best", "Which checkpoint: best (by val mean IU), latest, or a step.")
    flags.DEFINE_string("weights", None, "A released weight file, instead of a run.")
    flags.DEFINE_string("model", None, "What that file is, for example voc-fcn8s.")
    flags.DEFINE_integer("samples", 0, "Monte Carlo samples of a net with dropout in testing.", lower_bound=0)
    flags.DEFINE_bool("overwrite", False, "Replace results that are there already.")


def main(arguments: Sequence[str]) -> int:
    """The command."""
    values = flags.FLAGS
    if not arguments:
        raise ConfigError("name images, folders or globs: python -m fcn_jax.predict --workdir runs/fcn8s photo.jpg")
    chosen = [flag for flag in ("heatmap", "samples", "boxes") if getattr(values, flag)]
    if len(chosen) > 1:
        raise ConfigError(f"--{' and --'.join(chosen)} contradict each other: each is a way to look at an image")
    if values.ensemble is not None and values.boxes is None:
        raise ConfigError("--ensemble adds a net to the one that --boxes shows crops to")
    paths = picture_files.find_images(arguments)
    predictor = from_flags(values.workdir, values.checkpoint, values.weights, values.model, values.samples)
    counts = " and ".join(f"{info.num_classes} {head}".strip() for head, info in by_head(predictor.info).items())
    print(f"{predictor.origin}: {counts} classes")
    output = Path(values.output).expanduser()
    if values.heatmap is not None:
        head, label, name = predictor.find_class(values.heatmap)
        failures = picture_files.write_heatmaps(
            lambda image: predictor.heatmap(image, label, head), name, paths, output, values.overwrite
        )
    elif values.samples:
        info = by_head(predictor.info)[""]
        failures = picture_files.write_uncertainty(predictor.uncertainty, info, paths, output, values.overwrite)
    elif values.boxes is not None:
        if len(by_head(predictor.info)) > 1 or predictor.is_classifier:
            raise ConfigError(f"--boxes are for nets with one head that label pixels; {predictor.origin} is none")
        other = None if values.ensemble is None else _ensemble_member(values.ensemble, predictor)
        folder = Path(values.boxes).expanduser()
        boxes = {path: read_boxes(folder / f"{path.stem}.txt") for path in paths}
        failures = picture_files.write_labels(
            lambda image, path: proposals.label(predictor, image, boxes[path], other),
            predictor.info,
            paths,
            output,
            values.overwrite,
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
    flags.DEFINE_string("boxes", None, "Score the boxes that <stem>.txt in this folder lists, not whole images.")
    flags.DEFINE_string("ensemble", None, "Another net beside the boxes: a run's workdir (its best), or RELEASE=FILE.")
    command_line.run(main)
