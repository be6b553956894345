"""The weight files that were published: what each is, what it expects to see, and what its classes mean."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from fcn_jax.inputs import FCN_INPUT, InputSpec
from fcn_jax.labels import DatasetInfo


@dataclasses.dataclass(frozen=True)
class Release:
    """One published net: its model's name, its arguments beyond what the tensors tell, its input and its classes."""

    model: str
    arguments: Mapping[str, Any]
    input_spec: InputSpec
    dataset: str  # the module of `data` whose classes, in their order, are the net's outputs

    @property
    def info(self) -> DatasetInfo:
        """Names and colours of the classes. Imported on use: a data set's module brings its formats' packages along."""
        return importlib.import_module(f"fcn_jax.data.{self.dataset}").INFO


def _voc(model: str) -> Release:
    return Release(model, {"padding": "caffe"}, FCN_INPUT, "voc")


# The names are those of the folders in which the authors published their nets.
RELEASES = {
    "voc-fcn32s": _voc("fcn32s"),
    "voc-fcn16s": _voc("fcn16s"),
    "voc-fcn8s": _voc("fcn8s"),
    "voc-fcn8s-atonce": _voc("fcn8s_atonce"),
}
