"""What a net wants to see: the arithmetic between a picture's bytes and the net's input blob.

The nets hide nothing: a Caffe net is fed BGR minus a mean, others RGB scaled. Which of them holds is a property of the
weights, so it travels as data beside the net; the loader and the predictor apply it, and kernels are never flipped.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """Channel order, per-channel mean (in that order, on the 0…255 scale) and the factor applied after it."""

    order: str = "BGR"
    mean: tuple[float, ...] = (104.00698793, 116.66876762, 122.67891434)
    scale: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self):
        if sorted(self.order) != ["B", "G", "R"]:
            raise ValueError(f"order must be 'RGB' or 'BGR', not {self.order!r}")
        if len(self.mean) != 3 or len(self.scale) != 3:
            raise ValueError("mean and scale need three values each")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """RGB image `[h w 3]`, uint8 or float on 0…255, to the float32 input blob `[h w 3]`."""
        channels = ["RGB".index(letter) for letter in self.order]
        blob = image[..., channels].astype(np.float32)
        blob -= np.asarray(self.mean, np.float32)
        blob *= np.asarray(self.scale, np.float32)
        return blob


# Mean of the ILSVRC mean image, subtracted by every net of the FCN release.
FCN_INPUT = InputSpec()
# The means published with VGG-16 and VGG-19, used by the Caffe classifiers.
VGG_INPUT = InputSpec(mean=(103.939, 116.779, 123.68))
