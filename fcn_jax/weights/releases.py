"""The weight files that were published: what each is, what it expects to see, and what its classes mean."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from fcn_jax import inputs
from fcn_jax.inputs import InputSpec
from fcn_jax.labels import DatasetInfo

# The pads and crops of the FCN release; whatever else a net is, its tensors tell.
_CAFFE = {"padding": "caffe"}


@dataclasses.dataclass(frozen=True)
class Release:
    """One published net: its model's name, its arguments beyond what the tensors tell, its input and its classes."""

    model: str
    arguments: Mapping[str, Any]
    input_spec: InputSpec
    dataset: str  # the module of `data` whose classes, in their order, are the net's outputs
    heads: tuple[str, ...] = ()  # of a net with several outputs
    left_out: tuple[str, ...] = ()  # layers of the file that only its training used

    @property
    def info(self) -> DatasetInfo | Mapping[str, DatasetInfo]:
        """Names and colours of the classes, by head where there are several.

        Imported on use: a data set's module brings its formats' packages along.
        """
        return importlib.import_module(f"fcn_jax.data.{self.dataset}").INFO


def _voc(model: str) -> Release:
    return Release(model, _CAFFE, inputs.FCN_INPUT, "voc")


def _nyud(input_spec: InputSpec, **arguments: Any) -> Release:
    return Release("fcn32s", _CAFFE | arguments, input_spec, "nyud")


def _sift_flow(model: str) -> Release:
    return Release(model, _CAFFE, inputs.SIFTFLOW_INPUT, "siftflow", heads=("sem", "geo"))


def _context(model: str) -> Release:
    return Release(model, _CAFFE, inputs.CONTEXT_INPUT, "pascal_context")


def _ilsvrc(model: str, input_spec: InputSpec, left_out: tuple[str, ...] = ()) -> Release:
    return Release(model, {}, input_spec, "imagenet", left_out=left_out)


# The names are those of the folders, or files, in which the authors published their nets.
RELEASES = {
    "voc-fcn32s": _voc("fcn32s"),
    "voc-fcn16s": _voc("fcn16s"),
    "voc-fcn8s": _voc("fcn8s"),
    "voc-fcn8s-atonce": _voc("fcn8s_atonce"),
    "voc-fcn-alexnet": _voc("fcn_alexnet"),
    "nyud-fcn32s-color": _nyud(inputs.NYUD_COLOR_INPUT),
    "nyud-fcn32s-hha": _nyud(inputs.NYUD_HHA_INPUT),
    "nyud-fcn32s-color-d": _nyud(inputs.NYUD_COLOR_DEPTH_INPUT),
    "nyud-fcn32s-color-hha": _nyud(inputs.NYUD_COLOR_HHA_INPUT, streams=("color", "hha")),
    "siftflow-fcn32s": _sift_flow("fcn32s"),
    "siftflow-fcn16s": _sift_flow("fcn16s"),
    "siftflow-fcn8s": _sift_flow("fcn8s"),
    "pascalcontext-fcn32s": _context("fcn32s"),
    "pascalcontext-fcn16s": _context("fcn16s"),
    "pascalcontext-fcn8s": _context("fcn8s"),
    # The nets of 2015: names with dashes, up-sampling by two learned, on VOC once with a bias.
    "fcn-8s-pascal": _voc("fcn8s_2015"),
    "fcn-8s-pascalcontext": _context("fcn8s"),
    "segnet": Release("segnet", {}, inputs.SEGNET_INPUT, "camvid"),
    "segnet-basic": Release("segnet_basic", {}, inputs.SEGNET_INPUT, "camvid"),
    "bayesian-segnet": Release("bayesian_segnet", {}, inputs.SEGNET_INPUT, "camvid"),
    "bayesian-segnet-basic": Release("bayesian_segnet_basic", {}, inputs.SEGNET_INPUT, "camvid"),
    "bayesian-segnet-camvid": Release("bayesian_segnet", {"classifier": "camvid"}, inputs.SEGNET_INPUT, "camvid"),
    "bayesian-segnet-pascal": Release("bayesian_segnet_pascal", {}, inputs.SEGNET_INPUT, "voc"),
    "deconvnet": Release("deconvnet", {}, inputs.FCN_INPUT, "voc"),
    "deeplab-largefov": Release("deeplab_largefov", {}, inputs.DEEPLAB_INPUT, "voc"),
    "fcn_resnet50_coco": Release("fcn_resnet50", {}, inputs.IMAGENET_INPUT, "voc"),
    "fcn_resnet101_coco": Release("fcn_resnet101", {}, inputs.IMAGENET_INPUT, "voc"),
    "vgg16-ilsvrc": _ilsvrc("vgg16", inputs.VGG_INPUT),
    "vgg19-ilsvrc": _ilsvrc("vgg19", inputs.VGG_INPUT),
    "bvlc-alexnet": _ilsvrc("alexnet", inputs.FCN_INPUT),
    "bvlc-reference-caffenet": _ilsvrc("caffenet", inputs.FCN_INPUT),
    "bvlc-googlenet": _ilsvrc("googlenet", inputs.GOOGLENET_INPUT, left_out=("loss1_*", "loss2_*")),
}
