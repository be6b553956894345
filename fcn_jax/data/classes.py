"""The classes file of one's own data: names in the order of the mask's values, with colours where masks are coloured.

    # a text file: one class a line, optionally with its colour
    background   0   0   0
    leaf        34 139  34
    void       255 255 255

or JSON: `["background", "leaf"]` or `{"background": [0, 0, 0], "leaf": [34, 139, 34], "void": [255, 255, 255]}`.
Line k (from 0) says what the value k of a mask means. Lines named `void` are no class: their value or colour becomes
255, and the classes after them move up.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from fcn_jax.data import images, pairs
from fcn_jax.errors import DataError
from fcn_jax.labels import IGNORE, DatasetInfo, voc_palette

Color = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Classes:
    """What the values and colours of masks mean."""

    lines: tuple[str, ...]  # names as in the file, `void` included
    colors: tuple[Color, ...] | None  # one a line

    @property
    def labels(self) -> tuple[int, ...]:
        """The label of each line: 0, 1, 2 … over the classes, 255 for void."""
        label = iter(range(len(self.lines)))
        return tuple(IGNORE if is_void(name) else next(label) for name in self.lines)

    def info(self, name: str) -> DatasetInfo:
        """Names and colours of the classes alone; VOC's colours where the file gives none."""
        names = tuple(line for line in self.lines if not is_void(line))
        if self.colors is None:
            return DatasetInfo(name, names, voc_palette(len(names)))
        colors = (color for line, color in zip(self.lines, self.colors, strict=True) if not is_void(line))
        return DatasetInfo(name, names, tuple(colors))


def is_void(name: str) -> bool:
    """Whether a line of the classes file stands for "not there"."""
    return name.lower() == "void"


def read_classes(path: Path) -> Classes:
    """The classes of a text or JSON file. DataError where a line makes no sense or a name or colour comes twice."""
    try:
        text = images.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file in UTF-8; list one class a line, or use JSON") from None
    entries = _from_json(path, text) if path.suffix.lower() == ".json" else _from_lines(path, text)
    names = [name for name, _ in entries]
    colors = [color for _, color in entries if color is not None]
    if all(is_void(name) for name in names):
        raise DataError(f"{path}: names no class; list one class a line")
    if len(names) > IGNORE:
        raise DataError(f"{path}: {len(names)} lines, but labels are 0…254 because {IGNORE} means void; merge classes")
    seen = set()
    for value in [*(name for name in names if not is_void(name)), *colors]:
        if value in seen:
            raise DataError(f"{path}: {value} stands there twice; every class needs a name and colour of its own")
        seen.add(value)
    if colors and len(colors) != len(names):
        missing = [name for name, color in entries if color is None]
        raise DataError(f"{path}: {pairs.some(missing)} without a colour; give every line one, or none")
    return Classes(tuple(names), tuple(colors) if colors else None)


def read_colors(path: Path, classes: Classes) -> Classes:
    """The same classes with the colours of a file: `r g b` a line in the same order, or `name r g b` in any order."""
    entries = []
    for line in images.read_bytes(path).decode("utf-8-sig", errors="replace").splitlines():
        if words := line.split("#")[0].split():
            entries.append((" ".join(words[:-3]), _color(path, line, words[-3:])))
    if all(not name for name, _ in entries) and len(entries) == len(classes.lines):
        return Classes(classes.lines, tuple(color for _, color in entries))
    by_name = dict(entries)
    missing = [name for name in classes.lines if name not in by_name]
    if missing or len(entries) != len(classes.lines):
        what = f"no colour for {pairs.some(missing)}" if missing else f"{len(entries)} colours"
        raise DataError(f"{path}: {what}, and the classes file has {len(classes.lines)} lines; give each its colour")
    return Classes(classes.lines, tuple(by_name[name] for name in classes.lines))


def label_of_values(classes: Classes) -> np.ndarray:
    """`i16[256]`: the label of each value of an index mask; −1 where no line speaks of the value. 255 stays void."""
    table = np.full(256, -1, np.int16)
    table[: len(classes.lines)] = classes.labels
    table[IGNORE] = IGNORE
    return table


def _from_lines(path: Path, text: str) -> list[tuple[str, Color | None]]:
    entries = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if len(words) > 3 and all(word.isdecimal() for word in words[-3:]):
            entries.append((" ".join(words[:-3]), _color(path, line, words[-3:])))
        elif words:
            entries.append((" ".join(words), None))
    return entries


def _from_json(path: Path, text: str) -> list[tuple[str, Color | None]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON (line {error.lineno}: {error.msg}); correct it") from None
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return [(name, None) for name in content]
    if isinstance(content, dict) and all(isinstance(color, list) for color in content.values()):
        return [(name, _color(path, f"{name}: {color}", color)) for name, color in content.items()]
    raise DataError(f'{path}: must be a list of names, or {{"name": [red, green, blue], …}}')


def _color(path: Path, line: str, values: list) -> Color:
    try:
        red, green, blue = (int(value) for value in values)
    except (TypeError, ValueError):
        raise DataError(f"{path}: {line.strip()!r} is no colour; give red, green and blue") from None
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise DataError(f"{path}: {line.strip()!r}: red, green and blue are 0…255")
    return red, green, blue
