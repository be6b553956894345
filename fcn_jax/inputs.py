"""What a net wants to see: the arithmetic between a picture's bytes and the net's input blob.

The nets hide nothing: a Caffe net is fed BGR minus a mean, others RGB scaled. Which of them holds is a property of the
weights, so it travels as data beside the net; the loader and the predictor apply it, and kernels are never flipped.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """The channels of the input blob, in order; the mean of each (on the image's own scale), and the factor after it.

    `order` is "RGB" or "BGR", what else the image holds after its colours ("BGRD": depth; "BGRHHA": three channels of
    geometry), or "HHA" alone. Only colours are ever swapped. A `scale` that is not given is 1 for every channel.
    """

    order: str = "BGR"
    mean: tuple[float, ...] = (104.00698793, 116.66876762, 122.67891434)
    scale: tuple[float, ...] = ()

    def __post_init__(self):
        colors, others = self.order[:3], self.order[3:]
        if self.order != "HHA" and (colors not in ("RGB", "BGR") or others not in ("", "D", "HHA")):
            raise ValueError(
                f"order must be RGB, BGR, one of them with D or HHA behind, or HHA alone; not {self.order!r}"
            )
        if not self.scale:
            object.__setattr__(self, "scale", (1.0,) * len(self.order))
        if len(self.mean) != len(self.order) or len(self.scale) != len(self.order):
            raise ValueError(f"mean and scale need {len(self.order)} values each, one a channel of {self.order}")

    @property
    def channels(self) -> str:
        """What the image holds, in its own order: "RGB", "RGBD", "RGBHHA" or "HHA"."""
        return self.order.replace("BGR", "RGB")

    @property
    def places(self) -> list[int]:
        """Where each channel of the blob lies in the image."""
        return [2, 1, 0, *range(3, len(self.order))] if self.order.startswith("BGR") else list(range(len(self.order)))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Image `[h w k]`, colours first and as RGB, uint8 or float on 0…255, to the float32 input blob `[h w k]`."""
        if image.shape[-1] != len(self.order):
            raise ValueError(f"an image of {image.shape[-1]} channels where {self.order} are wanted")
        blob = image[..., self.places].astype(np.float32)
        blob -= np.asarray(self.mean, np.float32)
        blob *= np.asarray(self.scale, np.float32)
        return blob

    @property
    def fill(self) -> tuple[float, ...]:
        """The image's pixel that becomes zero in the blob."""
        return tuple(self.mean[self.places.index(channel)] for channel in range(len(self.order)))


# Mean of the ILSVRC mean image, subtracted by the nets of the FCN release that saw ImageNet and VOC.
FCN_INPUT = InputSpec()
# The means published with VGG-16 and VGG-19, used by the Caffe classifiers.
VGG_INPUT = InputSpec(mean=(103.939, 116.779, 123.68))
# Of BVLC's GoogLeNet.
GOOGLENET_INPUT = InputSpec(mean=(104.0, 117.0, 123.0))
# What torchvision's nets were trained on: colours of 0 to 1, of mean 0 and deviation 1 over ImageNet.
IMAGENET_INPUT = InputSpec(
    "RGB",
    mean=tuple(255 * mean for mean in (0.485, 0.456, 0.406)),
    scale=tuple(1 / (255 * deviation) for deviation in (0.229, 0.224, 0.225)),
)
# Of the FCN release's other data sets (nyud_layers.py, siftflow_layers.py, pascalcontext_layers.py).
_NYUD_COLOR, _NYUD_HHA, _NYUD_DEPTH = (116.190, 97.203, 92.318), (132.431, 94.076, 118.477), 7.844
NYUD_COLOR_INPUT = InputSpec("BGR", _NYUD_COLOR)
NYUD_HHA_INPUT = InputSpec("HHA", _NYUD_HHA)
NYUD_COLOR_DEPTH_INPUT = InputSpec("BGRD", (*_NYUD_COLOR, _NYUD_DEPTH))
NYUD_COLOR_HHA_INPUT = InputSpec("BGRHHA", (*_NYUD_COLOR, *_NYUD_HHA))
SIFTFLOW_INPUT = InputSpec(mean=(114.578, 115.294, 108.353))
CONTEXT_INPUT = InputSpec(mean=(104.007, 116.669, 122.679))
# Nothing subtracted: SegNet's nets see bytes.
SEGNET_INPUT = InputSpec(mean=(0.0, 0.0, 0.0))
# Of DeepLab's release, and of DeconvNet's training.
DEEPLAB_INPUT = InputSpec(mean=(104.008, 116.669, 122.675))
