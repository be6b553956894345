"""A PyTorch DataLoader doing what our loader does, with the same decoders: a process in the peers' environment.

    python -m benchmarks.peer_loader FOLDER BATCH_SIZE WORKERS CROP_HEIGHT CROP_WIDTH SCALE_LOW SCALE_HIGH

Answers `{"do": "run", "batches": n}` with the seconds from asking the loader for an iterator to its n-th batch. Its
workers stay alive in between.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from PIL import Image
from torch.utils.data import DataLoader, Dataset  # pyright: ignore[reportMissingImports]

from benchmarks import draws

_EPOCH = 100_000  # examples, more than any run takes


class Pairs(Dataset):
    """Pictures and masks of a folder, at random scales, cropped and flipped: blob f32 `[H W 3]`, labels u8 `[H W]`."""

    def __init__(self, folder: Path, crop: tuple[int, int], scale: tuple[float, float]):
        self._images = sorted((folder / "images").iterdir())
        self._masks = sorted((folder / "masks").iterdir())
        self._crop, self._scale = crop, scale
        self._mean = np.asarray(draws.MEAN, np.float32)

    def __len__(self) -> int:
        return _EPOCH

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(index)
        place = int(rng.integers(len(self._images)))
        image: Any = cv2.imread(str(self._images[place]), cv2.IMREAD_COLOR)
        # As ours, whose masks may be palettes, which OpenCV turns into colours.
        mask: Any = np.asarray(Image.open(self._masks[place]))
        factor = rng.uniform(*self._scale)
        size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
        image, mask = self._cut(image, mask, rng)
        if rng.integers(2):
            image, mask = image[:, ::-1], mask[:, ::-1]
        blob = image.astype(np.float32) - self._mean
        return torch.from_numpy(blob), torch.from_numpy(np.ascontiguousarray(mask))

    def _cut(self, image: Any, mask: Any, rng: np.random.Generator) -> tuple[Any, Any]:
        """A window of the crop's size at a random place; what the image does not fill is mean colour, and 255."""
        height, width = self._crop
        missing = [max(want - have, 0) for want, have in zip(self._crop, mask.shape, strict=True)]
        if any(missing):
            border = (0, missing[0], 0, missing[1], cv2.BORDER_CONSTANT)
            image = cv2.copyMakeBorder(image, *border, value=[round(mean) for mean in draws.MEAN])
            mask = cv2.copyMakeBorder(mask, *border, value=[255])
        top, left = (int(rng.integers(have - want + 1)) for have, want in zip(mask.shape, self._crop, strict=True))
        window = slice(top, top + height), slice(left, left + width)
        return image[window], mask[window]


def main() -> None:
    """Answers commands until there are no more."""
    cv2.setNumThreads(0)
    folder, *numbers = sys.argv[1:]
    batch_size, workers, height, width = map(int, numbers[:4])
    pairs = Pairs(Path(folder), (height, width), (float(numbers[4]), float(numbers[5])))
    loader = DataLoader(pairs, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    for line in sys.stdin:
        begun = time.perf_counter()
        batches = iter(loader)
        for _ in range(json.loads(line)["batches"]):
            next(batches)
        print(json.dumps({"seconds": time.perf_counter() - begun}), flush=True)
        # Workers end what they have begun, so that they do not disturb whoever is next.
        del batches
        time.sleep(0.3)


if __name__ == "__main__":
    main()
