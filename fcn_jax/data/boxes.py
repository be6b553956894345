"""Boxes of object proposals, from the text files that hold them: one file an image, one line a box."""

from pathlib import Path

from fcn_jax.errors import DataError

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive


def read_boxes(path: Path) -> list[Box]:
    """The boxes of a text file, a line each: left, top, right, bottom, in pixels; what follows, a score, is not read.

    The right and bottom edges are the first pixels outside. A box may leave its image. Raises DataError for a file that
    holds something else.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no boxes can be read ({getattr(error, 'strerror', None) or 'no text'})") from None
    boxes: list[Box] = []
    for number, line in enumerate(lines, start=1):
        values = line.replace(",", " ").split()
        if not values:
            continue
        try:
            left, top, right, bottom = (round(float(value)) for value in values[:4])
        except (ValueError, OverflowError):
            raise DataError(f"{path}, line {number}: {line!r} is no box: left top right bottom") from None
        if not (left < right and top < bottom):
            raise DataError(f"{path}, line {number}: {line!r} is an empty box: left top right bottom, in pixels")
        boxes.append((left, top, right, bottom))
    return boxes
