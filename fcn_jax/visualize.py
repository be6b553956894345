"""Pictures of labels: indexed PNG files as PASCAL VOC stores them, overlays, legends, and panels side by side.

Label maps are uint8 `[h w]`, pictures uint8 RGB `[h w 3]`. A palette holds an RGB colour a class; IGNORE has the colour
that VOC gives to void.
"""

import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fcn_jax.labels import IGNORE

Palette = Sequence[tuple[int, int, int]]

VOID_COLOR = (224, 224, 192)
PAPER, INK, FRAME = (255, 255, 255), (32, 32, 32), (160, 160, 160)
_HEAT = ((64, 0, 0), (176, 16, 8), (240, 110, 16), (255, 190, 48), (255, 250, 190))  # cold to hot
MARGIN = 8  # pixels, as are all sizes here
TITLE_SIZE = 14
ROW_HEIGHT = 22
ROWS_PER_COLUMN = 16
SMALLEST_PANEL = 160


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes a uint8 picture, RGB `[h w 3]` or grey `[h w]`; makes the folders above it."""
    _save(Image.fromarray(np.ascontiguousarray(image)), path)


def write_palette_png(path: str | os.PathLike, label: np.ndarray, palette: Palette) -> None:
    """Writes labels `[h w]` as an indexed PNG: its index plane is the labels themselves, its palette their colours."""
    picture = Image.fromarray(np.ascontiguousarray(label))
    picture.putpalette(_color_table(label, palette).tobytes(), "RGB")  # turns the grey picture into an indexed one
    _save(picture, path)


def colorize(label: np.ndarray, palette: Palette) -> np.ndarray:
    """Labels `[h w]` to their colours `[h w 3]`."""
    return _color_table(label, palette)[label]


def overlay(image: np.ndarray, label: np.ndarray, palette: Palette, alpha: float = 0.5) -> np.ndarray:
    """A picture `[h w 3]` tinted by its labels `[h w]`: `alpha` of their colour; void pixels stay as they are."""
    if image.shape != (*label.shape, 3):
        raise ValueError(f"an image {image.shape} and labels {label.shape} do not belong together")
    mixed = (1 - alpha) * image.astype(np.float32) + alpha * colorize(label, palette)
    return np.where((label == IGNORE)[..., None], image, np.rint(mixed).astype(np.uint8))


def heatmap(image: np.ndarray, heat: np.ndarray, alpha: float = 0.6) -> np.ndarray:
    """A picture `[h w 3]` in grey under heat `[h w]` of 0 to 1: from nothing over dark red to pale yellow."""
    grey = np.repeat(image.astype(np.float32).mean(axis=-1, keepdims=True), 3, axis=-1)
    heat = np.clip(heat.astype(np.float32), 0, 1)[..., None]
    stops = np.linspace(0, 1, len(_HEAT))
    color = np.concatenate([np.interp(heat, stops, channel) for channel in np.transpose(_HEAT)], axis=-1)
    # Where there is little heat the picture stays to be seen.
    cover = alpha * np.minimum(1, 2 * heat)
    return np.rint((1 - cover) * grey + cover * color).astype(np.uint8)


def legend(class_names: Sequence[str], palette: Palette, present: Collection[int] | None = None) -> np.ndarray:
    """Which colour is which class: a picture with a row a class, in columns; `present` lists only these labels.

    IGNORE among them gets a row "void".
    """
    named = {index: (name, palette[index]) for index, name in enumerate(class_names)} | {IGNORE: ("void", VOID_COLOR)}
    shown = range(len(class_names)) if present is None else sorted(int(label) for label in present)
    rows = [(f"{label}  {named[label][0]}", named[label][1]) for label in shown]
    font = _font(TITLE_SIZE)
    column_width = math.ceil(max((font.getlength(text) for text, _ in rows), default=0)) + ROW_HEIGHT + 3 * MARGIN
    columns = max(1, math.ceil(len(rows) / ROWS_PER_COLUMN))
    per_column = max(1, math.ceil(len(rows) / columns))
    sheet = Image.new("RGB", (columns * column_width, per_column * ROW_HEIGHT + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (text, color) in enumerate(rows):
        left = MARGIN + place // per_column * column_width
        top = MARGIN + place % per_column * ROW_HEIGHT
        draw.rectangle((left, top + 3, left + ROW_HEIGHT, top + ROW_HEIGHT - 3), fill=tuple(color), outline=FRAME)
        draw.text((left + ROW_HEIGHT + MARGIN, top + ROW_HEIGHT / 2), text, INK, font, anchor="lm")
    return np.asarray(sheet)


def strip(panels: Sequence[np.ndarray], titles: Sequence[str], scale: int | None = None) -> np.ndarray:
    """Pictures `[h w 3]` of one size side by side, a title above each: input, truth, prediction.

    Each is enlarged by the whole number `scale`, pixels staying squares; by default just so far that none is narrower
    than 160 pixels. A title wider than its panel is cut.
    """
    sizes = {panel.shape for panel in panels}
    if len(sizes) != 1 or len(panels) != len(titles):
        raise ValueError(f"a strip needs panels of one size and a title for each: {len(titles)} titles, sizes {sizes}")
    height, width = panels[0].shape[:2]
    scale = scale or max(1, math.ceil(SMALLEST_PANEL / width))
    height, width = height * scale, width * scale
    title_height = TITLE_SIZE + MARGIN
    sheet = Image.new("RGB", (len(panels) * (width + MARGIN) + MARGIN, height + title_height + 2 * MARGIN), PAPER)
    draw, font = ImageDraw.Draw(sheet), _font(TITLE_SIZE)
    for place, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left, top = MARGIN + place * (width + MARGIN), MARGIN + title_height
        draw.text((left + width / 2, MARGIN + title_height / 2 - 2), _cut(title, width, font), INK, font, anchor="mm")
        picture = Image.fromarray(np.ascontiguousarray(panel)).resize((width, height), Image.Resampling.NEAREST)
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline=FRAME)
        sheet.paste(picture, (left, top))
    return np.asarray(sheet)


def _color_table(label: np.ndarray, palette: Palette) -> np.ndarray:
    """256 colours, uint8 `[256 3]`; raises ValueError for a label that has none."""
    without = sorted({int(value) for value in np.unique(label)} - {*range(len(palette)), IGNORE})
    if label.dtype != np.uint8 or without:
        raise ValueError(f"labels must be uint8 below {len(palette)}, or {IGNORE}: {label.dtype} with {without[:5]}")
    table = np.zeros((256, 3), np.uint8)
    table[IGNORE] = VOID_COLOR
    table[: len(palette)] = np.asarray(palette, np.uint8)
    return table


def _save(picture: Image.Image, path: str | os.PathLike) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "PNG")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that pictures are the same on every machine."""
    return ImageFont.load_default(size)


def _cut(title: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(title) <= width:
        return title
    while title and font.getlength(title + "…") > width:
        title = title[:-1]
    return title + "…"
