"""Pictures in, pictures out: which files a command was given, and what it writes beside or instead of them.

Nothing is overwritten unasked, and everything that is in the way is found before the first file is written.
"""

import dataclasses
import glob
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax import visualize
from fcn_jax.data import images
from fcn_jax.errors import DataError
from fcn_jax.labels import DatasetInfo, Info, by_head, only_head


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


def write_labels(
    predict: Callable[[np.ndarray, Path], Any],
    info: Info,
    paths: Sequence[Path],
    output: Path,
    overwrite: bool = False,
) -> int:
    """Labels images by `predict(image, its path)`; gives how many could not be read, each named on the error stream.

    Each image gives `<stem>.png`, an indexed PNG, and `<stem>_overlay.png`; with several heads `<stem>_<head>.png` and
    so on. Raises DataError before anything is written where a file is in the way.
    """
    infos = by_head(info)
    targets = {path: {head: _label_files(output, path.stem, head) for head in infos} for path in paths}
    legends = {head: output / f"{_named('legend', head)}.png" for head in infos}
    classes = output / "classes.json"
    described = only_head({head: dataclasses.asdict(each) for head, each in infos.items()})
    description = json.dumps(described, indent=1) + "\n"
    written = [*legends.values(), *(file for heads in targets.values() for pair in heads.values() for file in pair)]
    # Earlier predictions of the same classes have the same legend.
    same_classes = classes.is_file() and classes.read_bytes() == description.encode()
    refuse_clashes([*written, classes], paths, overwrite, ours=[*legends.values(), classes] if same_classes else [])
    output.mkdir(parents=True, exist_ok=True)
    for head, each in infos.items():
        visualize.write_png(legends[head], visualize.legend(each.class_names, each.palette))
    classes.write_text(description)

    failures = 0
    for number, path, image, result in each_result(paths, predict):
        if result is None:
            failures += 1
            continue
        labels = by_head(result)
        for head, label in labels.items():
            label_path, overlay_path = targets[path][head]
            names, palette = infos[head].class_names, infos[head].palette
            visualize.write_palette_png(label_path, label, palette)
            visualize.write_png(overlay_path, visualize.overlay(image, label, palette))
            shares = np.bincount(label.ravel(), minlength=len(names)) / label.size
            largest = np.argsort(-shares, kind="stable")[:3]
            said = ", ".join(f"{names[i]} {100 * shares[i]:.0f} %" for i in largest if shares[i] > 0)
            print(f"{number}/{len(paths)} {path} → {label_path} ({said})", flush=True)
    return failures


def write_heatmaps(
    probability: Callable[[np.ndarray], np.ndarray],
    name: str,
    paths: Sequence[Path],
    output: Path,
    overwrite: bool = False,
) -> int:
    """Paints `probability(image) -> f32 [h w]` of the class `name` over each image, into `<stem>_heatmap.png`.

    Gives how many images could not be read. Raises DataError before anything is written where a file is in the way.
    """
    targets = {path: output / f"{path.stem}_heatmap.png" for path in paths}
    refuse_clashes(list(targets.values()), paths, overwrite)
    failures = 0
    for number, path, image, heat in each_result(paths, lambda image, path: probability(image)):
        if heat is None:
            failures += 1
            continue
        visualize.write_png(targets[path], visualize.heatmap(image, heat))
        row, column = np.unravel_index(int(heat.argmax()), heat.shape)
        print(
            f"{number}/{len(paths)} {path} → {targets[path]} ({name}: {100 * heat.max():.1f} % at row {row}, "
            f"column {column})",
            flush=True,
        )
    return failures


def write_uncertainty(
    measure: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    info: DatasetInfo,
    paths: Sequence[Path],
    output: Path,
    overwrite: bool = False,
) -> int:
    """Labels, entropy and mutual information of each image: `<stem>.png`, `<stem>_entropy.png` and so on.

    `measure(image)` gives them by name, the latter two f32 `[h w]` of 0 to 1; each picture's heat ends at its largest
    value, which is said. Gives how many images could not be read. Raises DataError before anything is written where a
    file is in the way.
    """
    kinds = ("entropy", "mutual_information")
    targets = {
        path: [output / f"{path.stem}{end}.png" for end in ("", *(f"_{kind}" for kind in kinds))] for path in paths
    }
    refuse_clashes([target for each in targets.values() for target in each], paths, overwrite)
    failures = 0
    for number, path, image, measured in each_result(paths, lambda image, path: measure(image)):
        if measured is None:
            failures += 1
            continue
        label_path, *heat_paths = targets[path]
        visualize.write_palette_png(label_path, measured["label"], info.palette)
        said = []
        for kind, target in zip(kinds, heat_paths, strict=True):
            heat = measured[kind]
            visualize.write_png(target, visualize.heatmap(image, heat / max(float(heat.max()), 1e-6)))
            said.append(f"{kind.replace('_', ' ')} {heat.mean():.3f}, at most {heat.max():.3f}")
        print(f"{number}/{len(paths)} {path} → {label_path} ({'; '.join(said)})", flush=True)
    return failures


def each_result(
    paths: Sequence[Path], compute: Callable[[np.ndarray, Path], Any]
) -> Iterator[tuple[int, Path, np.ndarray, Any]]:
    """Number (from 1), path, picture and `compute(picture, path)` of each image.

    The result is None where the image cannot be read, or is not for that net; why is said.
    """
    for number, path in enumerate(paths, start=1):
        image, result = np.zeros((0, 0, 3), np.uint8), None
        try:
            image = images.read_image(path)
            result = compute(image, path)
        except DataError as error:
            place = "" if str(path) in str(error) else f"{path}: "
            print(f"error: {place}{error}", file=sys.stderr)
        yield number, path, image, result


def refuse_clashes(targets: Sequence[Path], inputs: Sequence[Path], overwrite: bool, ours: Sequence[Path] = ()) -> None:
    """Raises DataError where two outputs are one, an output is an input, or one exists that is not of `ours`."""
    for target, other in itertools.pairwise(sorted(targets)):
        if target == other:
            raise DataError(f"two of the outputs would be {target}: rename an image, or predict them into two folders")
    given = {path.resolve() for path in inputs}
    for target in targets:
        if target.resolve() in given:
            raise DataError(f"{target} is an input and would be overwritten: choose another --output")
        if target.exists() and not overwrite and target not in ours:
            raise DataError(f"{target} exists: choose another --output, or say --overwrite")


def _label_files(output: Path, stem: str, head: str) -> tuple[Path, Path]:
    name = _named(stem, head)
    return output / f"{name}.png", output / f"{name}_overlay.png"


def _named(stem: str, head: str) -> str:
    return f"{stem}_{head}" if head else stem
