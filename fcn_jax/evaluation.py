"""A net, or a folder of predictions, over a split: one confusion matrix, every pixel of every image at its own size.

Results are given by head: the only one of most nets is called "".
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fcn_jax import compilations, hosts, metrics, parallel, report, steps, uncertainty, visualize
from fcn_jax.data import images, loader
from fcn_jax.errors import DataError
from fcn_jax.inputs import InputSpec
from fcn_jax.labels import DatasetInfo, best_labels, by_head, is_class, only_head
from fcn_jax.ops.resampling import map_rows


@dataclasses.dataclass
class Evaluation:
    """What an evaluation counted: the matrix int64 `[c c]`, rows truth, and how much of the split it has seen."""

    info: DatasetInfo
    expected_images: int
    matrix: np.ndarray
    images: int = 0
    labelled_pixels: int = 0
    reliability: np.ndarray | None = None  # see `uncertainty.reliability`, where probabilities were looked at

    @property
    def scores(self) -> metrics.Scores:
        """The four scores and the classes'."""
        return metrics.scores(self.matrix, [self.info.class_names.index(name) for name in self.info.absent])

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
        text = f"{report.score_table(self.scores, self.info.class_names)}\n{self.counted_line()}"
        if self.reliability is None:
            return text
        return f"{text}\nexpected calibration error {uncertainty.calibration_error(self.reliability):.4f}"

    def write(self, folder: Path, name: str, origin: str) -> None:
        """Writes `<name>.json` and the table `<name>.txt`; see `check_outputs`. `origin` says what was scored."""
        folder.mkdir(parents=True, exist_ok=True)
        entries = report.score_entries(self.scores, self.info.class_names, prefix=name)
        result = {
            "origin": origin,
            "images": self.images,
            "pixels": int(self.matrix.sum()),
            **{key: report.json_number(value) for key, value in entries.items()},
            "confusion": self.matrix.tolist(),
        }
        if self.reliability is not None:
            result["calibration_error"] = uncertainty.calibration_error(self.reliability)
            result["reliability"] = self.reliability.tolist()
        (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        (folder / f"{name}.txt").write_text(self.table() + "\n")


def check_outputs(
    folder: Path, split: str, heads: Iterable[str], origin: str, save_predictions: bool, overwrite: bool
) -> None:
    """Raises DataError where `Evaluation.write`, or saved predictions, would replace what is no result of that origin.

    Of one run, the steps may differ.
    """
    if overwrite:
        return
    for head in heads:
        result = folder / f"{result_name(split, head)}.json"
        if not result.exists() and not result.with_suffix(".txt").exists():
            continue
        if _of_any_step(_origin_of(result)) != _of_any_step(origin):
            raise DataError(
                f"{result.with_suffix('')}.* is no earlier result of {origin}: choose another --output, or say "
                "--overwrite"
            )
    predictions = prediction_folder(folder, split)
    if save_predictions and predictions.exists() and any(predictions.iterdir()):
        raise DataError(f"{predictions} holds files: choose another --output, or say --overwrite")


def _origin_of(result: Path) -> str | None:
    """What an earlier result scored; None where the file is missing or is no result."""
    try:
        return json.loads(result.read_text())["origin"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _of_any_step(origin: str | None) -> str | None:
    return origin and re.sub(r"^step \d+ of ", "", origin)


def result_name(split: str, head: str) -> str:
    """What the results of a head are called: the split, and the head's name where there are several."""
    return f"{split}_{head}" if head else split


def prediction_folder(folder: Path, split: str) -> Path:
    """Where the predictions of a split are saved."""
    return folder / f"{split}_predictions"


def predicted_labels(model: nn.Module) -> Callable[[Any, jax.Array], Any]:
    """Gives the jitted `predict(variables, image f32 [b h w c]) -> label [b h w]`, by head if there are several.

    Labels are those of `labels.best_labels`.
    """

    def predict(variables: Any, image: jax.Array) -> Any:
        scores, resampling = steps.scores_by_head(model, variables, image)
        labelled = best_labels if resampling is None else partial(map_rows, best_labels, resampling=resampling)
        return only_head({head: labelled(each) for head, each in scores.items()})

    return jax.jit(predict)


def probabilities(model: nn.Module) -> Callable[[Any, jax.Array], Any]:
    """Gives the jitted `probabilities(variables, image f32 [b h w c]) -> f32 [b h' w' classes]`, by head if several."""

    def softmax(variables: Any, image: jax.Array) -> Any:
        return jax.tree.map(nn.softmax, model.apply(variables, image, train=False))

    return jax.jit(softmax)


def sampled_probabilities(model: nn.Module, samples: int) -> Callable[[Any, jax.Array], Any]:
    """Gives the jitted `sample(variables, image f32 [b h w c]) -> f32 [samples b h w classes]` of a net with dropout.

    Each sample drops other features; all are run side by side, and are the same at each call.
    """
    apply: Any = model.apply

    def sample(variables: Any, image: jax.Array) -> Any:
        def one(key: jax.Array) -> jax.Array:
            return nn.softmax(apply(variables, image, stochastic=True, rngs={"dropout": key}))

        return jax.vmap(one)(jax.random.split(jax.random.key(0), samples))

    return jax.jit(sample)


def evaluate_net(
    eval_step: Callable,
    variables: Any,
    source: Any,
    spec: InputSpec,
    mesh: Mesh,
    mode: str,
    *,
    batch_size: int,
    threads: int,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Evaluation] | None:
    """Scores a net on every image of the source. `eval_step` is `steps.make_eval_step`'s, wrapped for `mesh`.

    None where `stop`, asked before each batch, breaks it off.
    """
    results = _nothing_yet(source)
    batch_size = -(-batch_size // mesh.size) * mesh.size
    place = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    for batch in loader.eval_batches(source, spec, batch_size=batch_size, threads=threads, **place):
        if stop():
            return None
        placed = parallel.put_batch({name: batch[name] for name in ("image", "label")}, mesh, mode)
        with compilations.of("the evaluation, for batches", batch["image"].shape):
            counted = eval_step(variables, placed)
        with hosts.waiting():
            matrices = by_head(jax.device_get(counted))
        for head, label in by_head(batch["label"]).items():
            results[head].images += len(batch["ids"])
            results[head].labelled_pixels += _labelled(label, results[head].info)
            results[head].matrix += matrices[head].astype(np.int64)
    for result in results.values():
        # The matrix is of all hosts' images already.
        result.images, result.labelled_pixels = map(int, hosts.total([result.images, result.labelled_pixels]))
    return results


def evaluate_predictor(
    source: Any,
    predict: Callable[[np.ndarray], Any],
    folder: Path | None,
    probabilities: Callable[[np.ndarray], Any] | None = None,
) -> dict[str, Evaluation]:
    """Scores `predict(image [h w c]) -> label [h w]`, and saves palette PNGs in `folder` if there is one.

    With `probabilities(image) -> f32 [h w classes]` these are asked instead, and their calibration is looked at.
    """
    results = _nothing_yet(source)
    for example in (source[index] for index in range(len(source))):
        labels = by_head(example["label"])
        if probabilities is None:
            predictions = by_head(predict(example["image"]))
        else:
            shares = by_head(probabilities(example["image"]))
            predictions = {head: best_labels(each) for head, each in shares.items()}
            for head, each in shares.items():
                table = uncertainty.reliability(each, labels[head])
                before = results[head].reliability
                results[head].reliability = table if before is None else before + table
        for head, prediction in predictions.items():
            if folder is not None:
                path = _prediction_file(folder, head, example["id"])
                visualize.write_palette_png(path, prediction, results[head].info.palette)
            _count(results[head], labels[head], prediction)
    return results


def evaluate_files(source: Any, folder: Path) -> dict[str, Evaluation]:
    """Scores label PNGs named by the images' ids: in a folder, or in a folder a head within it.

    Raises DataError for a missing or misshapen one.
    """
    results = _nothing_yet(source)
    for example in (source[index] for index in range(len(source))):
        for head, label in by_head(example["label"]).items():
            path = _prediction_file(folder, head, example["id"])
            _count(results[head], label, _read_prediction(path, label, results[head].info))
    return results


def _prediction_file(folder: Path, head: str, name: str) -> Path:
    return folder / head / f"{name}.png"


def _read_prediction(path: Path, label: np.ndarray, info: DatasetInfo) -> np.ndarray:
    prediction = images.read_mask(path)
    if prediction.shape != label.shape:
        sizes = [" × ".join(map(str, array.shape)) for array in (prediction, label)]
        raise DataError(
            f"{path} is {sizes[0]}, its label {sizes[1]}: "
            "predictions are label maps (indexed or grey PNG) of the image's size"
        )
    if prediction.max() >= info.num_classes:
        raise DataError(
            f"{path} predicts {int(prediction.max())}, the classes are 0 … {info.num_classes - 1}: "
            "a prediction names a class for every pixel"
        )
    return prediction


def spread(source: Any, count: int) -> list[int]:
    """The indices of so many images, evenly spread over a split from the first to the last; of all, if it has fewer."""
    return np.linspace(0, len(source) - 1, min(count, len(source))).astype(int).tolist()


def pictures(source: Any, predict: Callable[[np.ndarray], Any], count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Strips of input, truth and prediction for `count` images spread over the split, with the images' ids.

    Of an input with more than colours, the first three channels are shown.
    """
    infos = by_head(source.info)
    for index in spread(source, count):
        example = source[index]
        labels, predictions = by_head(example["label"]), by_head(predict(example["image"]))
        panels, titles = [example["image"][..., :3].astype(np.uint8)], ["input"]
        for head, info in infos.items():
            panels += [visualize.colorize(maps[head], info.palette) for maps in (labels, predictions)]
            titles += [f"{head} {what}".strip() for what in ("truth", "prediction")]
        yield example["id"], visualize.strip(panels, titles)


def _nothing_yet(source: Any) -> dict[str, Evaluation]:
    infos: Mapping[str, DatasetInfo] = by_head(source.info)
    return {
        head: Evaluation(info, len(source), np.zeros((info.num_classes, info.num_classes), np.int64))
        for head, info in infos.items()
    }


def _count(result: Evaluation, label: np.ndarray, prediction: np.ndarray) -> None:
    result.images += 1
    result.labelled_pixels += _labelled(label, result.info)
    result.matrix += np.asarray(metrics.confusion(jnp.asarray(label), jnp.asarray(prediction), result.info.num_classes))


def _labelled(label: np.ndarray, info: DatasetInfo) -> int:
    return int(np.count_nonzero(is_class(label, info.num_classes)))
