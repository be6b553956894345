"""A net, or a folder of predictions, over a split: one confusion matrix, every pixel of every image at its own size."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fcn_jax import metrics, parallel, report, visualize
from fcn_jax.data import images, loader
from fcn_jax.errors import DataError
from fcn_jax.inputs import InputSpec
from fcn_jax.labels import DatasetInfo, is_class


@dataclasses.dataclass
class Evaluation:
    """What an evaluation counted: the matrix int64 `[c c]`, rows truth, and how much of the split it has seen."""

    info: DatasetInfo
    expected_images: int
    matrix: np.ndarray
    images: int = 0
    labelled_pixels: int = 0

    @property
    def scores(self) -> metrics.Scores:
        """The four scores and the classes'."""
        return metrics.scores(self.matrix)

    def counted_line(self) -> str:
        """What was counted against what was expected, as one line."""
        return (
            f"{self.images} of {self.expected_images} images, "
            f"{int(self.matrix.sum())} of {self.labelled_pixels} labelled pixels counted"
        )

    def one_sided(self) -> str | None:
        """A warning in plain words when nearly all predictions are one class."""
        shares = self.matrix.sum(0) / max(self.matrix.sum(), 1)
        name, share = self.info.class_names[int(shares.argmax())], shares.max()
        if share < 0.99:
            return None
        return (
            f"warning: {100 * share:.1f} % of the predictions are {name!r}. At the start that is usual; later look "
            "at the learning rate, at the masks' values, and whether the net started from weights: from scratch it "
            "needs far longer"
        )

    def table(self) -> str:
        """The classes' scores, the four scores and what was counted, as text."""
        return f"{report.score_table(self.scores, self.info.class_names)}\n{self.counted_line()}"

    def write(self, folder: Path, name: str) -> None:
        """Writes `<name>.json` and the table `<name>.txt`; see `check_outputs`."""
        folder.mkdir(parents=True, exist_ok=True)
        entries = report.score_entries(self.scores, self.info.class_names, prefix=name)
        result = {
            "images": self.images,
            "pixels": int(self.matrix.sum()),
            **{key: report.json_number(value) for key, value in entries.items()},
            "confusion": self.matrix.tolist(),
        }
        (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        (folder / f"{name}.txt").write_text(self.table() + "\n")


def check_outputs(folder: Path, name: str, save_predictions: bool, overwrite: bool) -> None:
    """Raises DataError where `Evaluation.write`, or saved predictions, would replace what is not an earlier result."""
    result, predictions = folder / f"{name}.json", prediction_folder(folder, name)
    if overwrite:
        return
    if (result.exists() and '"confusion"' not in result.read_text(errors="replace")) or (
        (folder / f"{name}.txt").exists() and not result.exists()
    ):
        raise DataError(f"{result.with_suffix('')}.* is no earlier result: choose another --output, or say --overwrite")
    if save_predictions and predictions.exists() and any(predictions.iterdir()):
        raise DataError(f"{predictions} holds files: choose another --output, or say --overwrite")


def prediction_folder(folder: Path, name: str) -> Path:
    """Where the predictions of a split are saved."""
    return folder / f"{name}_predictions"


def predicted_labels(model: nn.Module) -> Callable[[Any, jax.Array], jax.Array]:
    """Gives the jitted `predict(params, image f32 [b h w 3]) -> label u8 [b h w]`."""

    def predict(params: Any, image: jax.Array) -> jax.Array:
        logits = cast(jax.Array, model.apply({"params": params}, image, train=False))
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

    return jax.jit(predict)


def evaluate_net(
    eval_step: Callable,
    params: Any,
    source: Any,
    spec: InputSpec,
    mesh: Mesh,
    mode: str,
    *,
    batch_size: int,
    threads: int,
) -> Evaluation:
    """Scores a net on every image of the source. `eval_step` is `steps.make_eval_step`'s, wrapped for `mesh`."""
    result = _nothing_yet(source)
    batch_size = -(-batch_size // mesh.size) * mesh.size
    for batch in loader.eval_batches(source, spec, batch_size=batch_size, threads=threads):
        result.images += len(batch["ids"])
        result.labelled_pixels += _labelled(batch["label"], source.info)
        placed = parallel.put_batch({name: batch[name] for name in ("image", "label")}, mesh, mode)
        result.matrix += np.asarray(eval_step(params, placed), np.int64)
    return result


def evaluate_predictor(source: Any, predict: Callable[[np.ndarray], np.ndarray], folder: Path | None) -> Evaluation:
    """Scores `predict(image u8 [h w 3]) -> label u8 [h w]`, and saves palette PNGs in `folder` if there is one."""
    result = _nothing_yet(source)
    for example in (source[index] for index in range(len(source))):
        prediction = predict(example["image"])
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            visualize.write_palette_png(folder / f"{example['id']}.png", prediction, source.info.palette)
        _count(result, example["label"], prediction)
    return result


def evaluate_files(source: Any, folder: Path) -> Evaluation:
    """Scores a folder of label PNGs, named by the images' ids. Raises DataError for a missing or misshapen one."""
    result = _nothing_yet(source)
    for example in (source[index] for index in range(len(source))):
        path = folder / f"{example['id']}.png"
        prediction = images.read_mask(path)
        if prediction.shape != example["label"].shape:
            sizes = [" × ".join(map(str, array.shape)) for array in (prediction, example["label"])]
            raise DataError(
                f"{path} is {sizes[0]}, its label {sizes[1]}: "
                "predictions are label maps (indexed or grey PNG) of the image's size"
            )
        if prediction.max() >= source.info.num_classes:
            raise DataError(
                f"{path} predicts {int(prediction.max())}, the classes are 0 … {source.info.num_classes - 1}: "
                "a prediction names a class for every pixel"
            )
        _count(result, example["label"], prediction)
    return result


def pictures(source: Any, predict: Callable[[np.ndarray], np.ndarray], count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Strips of input, truth and prediction for `count` images spread over the split, with the images' ids."""
    palette = source.info.palette
    for index in np.linspace(0, len(source) - 1, min(count, len(source))).astype(int):
        example = source[int(index)]
        panels = [
            example["image"],
            visualize.colorize(example["label"], palette),
            visualize.colorize(predict(example["image"]), palette),
        ]
        yield example["id"], visualize.strip(panels, ["input", "truth", "prediction"])


def _nothing_yet(source: Any) -> Evaluation:
    classes = source.info.num_classes
    return Evaluation(source.info, len(source), np.zeros((classes, classes), np.int64))


def _count(result: Evaluation, label: np.ndarray, prediction: np.ndarray) -> None:
    result.images += 1
    result.labelled_pixels += _labelled(label, result.info)
    result.matrix += np.asarray(metrics.confusion(jnp.asarray(label), jnp.asarray(prediction), result.info.num_classes))


def _labelled(label: np.ndarray, info: DatasetInfo) -> int:
    return int(np.count_nonzero(is_class(label, info.num_classes)))
