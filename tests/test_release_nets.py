"""The published nets of which no output of Caffe is stored: every blob against the interpreter of `caffe_nets`.

A caffemodel of random weights, named as the release names them, is loaded by the release's name and run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import caffe_nets
import caffemodel_writer as writer
import jax
import numpy as np
import pytest
from caffe_nets import Blobs, Net

from fcn_jax import weights
from fcn_jax.labels import by_head

pytestmark = pytest.mark.usefixtures("fast_compilation")

TOLERANCE = 1e-5  # of a blob's largest magnitude
# Channels by how many are published; counts that are not here stay.
NARROW = {64: 4, 96: 6, 128: 6, 256: 8, 384: 10, 512: 10, 1024: 12, 4096: 12, 1000: 9, 21: 5, 33: 6, 40: 4, 60: 7}
SIFT_FLOW = {"_sem": 33, "_geo": 3}
# Caffe's blob → ours, where that is another; None: none of ours. Scores before their last crop never exist here.
UNCROPPED = dict.fromkeys(f"upscore{stride}{head}" for stride in ("", "16", "8") for head in ("", *SIFT_FLOW))
FCN8S_2015 = {
    "score": "score_fr",
    **{"score-pool4": "score_pool4", "score-pool4c": "score_pool4c", "score-fused": "fuse_pool4"},
    **{"score-pool3": "score_pool3", "score-pool3c": "score_pool3c", "score-final": "fuse_pool3"},
    **{"bigscore": None, "upscore": "score"},
}


class Case(NamedTuple):
    """A net by its release's or its model's name, and as its prototxt has it, for images of a size."""

    name: str
    net: Net
    size: tuple[int, int]
    batch: int = 1
    v1: bool = False  # the generation of the released file
    renamed: Mapping[str, str | None] = UNCROPPED

    def draw(self) -> tuple[np.ndarray, Blobs, Blobs]:
        """An image `[b h w 3]`, weights of the net, and the blobs that the interpreter makes of both."""
        image = np.random.default_rng(1).uniform(-20, 20, (self.batch, *self.size, 3)).astype(np.float32)
        return image, *caffe_nets.draw(self.net, {"data": np.moveaxis(image, -1, 1)}, NARROW)


def check(tmp_path: Path, case: Case, image: np.ndarray, drawn: Blobs, blobs: Blobs) -> None:
    """The net that a file of these weights tells must have the same blobs as the interpreter, and no others."""
    path = tmp_path / "net.caffemodel"
    path.write_bytes(writer.net(drawn, v1=case.v1))
    module, variables = weights.load_model(path, case.name, precision=jax.lax.Precision.HIGHEST)
    logits, taps = jax.jit(lambda variables, image: module.apply(variables, image, return_taps=True))(variables, image)
    wanted = {ours: blob for name, blob in blobs.items() if (ours := case.renamed.get(name, name))}
    del wanted["data"]
    assert taps.keys() == wanted.keys()
    last = [name for name in wanted if name != "prob"][-1]
    for head, scores in by_head(logits).items():
        np.testing.assert_array_equal(scores, taps[f"score_{head}" if head else last])
    differences = {}
    for name, blob in wanted.items():
        # A classifier's inner products are convolutions that leave a single cell.
        blob = np.moveaxis(blob if blob.ndim == 4 else blob[:, :, None, None], 1, -1)
        assert taps[name].shape == blob.shape, name
        difference = differences[name] = largest_difference(taps[name], blob)
        allowed = 0 if name.endswith("_mask") else TOLERANCE
        assert difference <= allowed, f"{name} differs by {difference:.1e} of its largest value"
    worst = max(differences, key=lambda name: differences[name])
    print(f"{case.name}: {len(differences)} blobs, {differences[worst]:.1e} in {worst}")


def largest_difference(found: jax.Array, wanted: np.ndarray) -> float:
    """As a part of the largest value, which must be one to speak of."""
    largest = np.abs(wanted).max()
    assert largest > 0.01
    return float(np.abs(np.asarray(found, np.float64) - wanted).max() / largest)


CASES = (
    Case("nyud-fcn32s-hha", caffe_nets.fcn(32, {"": 40}), (37, 53)),
    Case("siftflow-fcn32s", caffe_nets.fcn(32, SIFT_FLOW), (45, 31), batch=2),
    Case("siftflow-fcn8s", caffe_nets.fcn(8, SIFT_FLOW), (33, 51)),
    Case("pascalcontext-fcn32s", caffe_nets.fcn(32, {"": 60}), (1, 35)),
    Case("pascalcontext-fcn16s", caffe_nets.fcn(16, {"": 60}), (29, 47), batch=2),
    Case(
        "fcn-8s-pascal",
        caffe_nets.fcn8s_2015(21, "score-fr", "score2", "score4", bias_term=True),
        (39, 27),
        batch=2,
        v1=True,
        renamed=FCN8S_2015 | {"score2": "upscore2", "score4": "upscore_pool4"},
    ),
    Case(
        "fcn-8s-pascalcontext",
        caffe_nets.fcn8s_2015(60, "score59", "upscore2", "upsample-fused-16", bias_term=False),
        (25, 43),
        v1=True,
        renamed=FCN8S_2015 | {"upsample-fused-16": "upscore_pool4"},
    ),
    # Of classifiers the smallest image that gives a cell, and larger ones.
    Case("bvlc-alexnet", caffe_nets.alexnet(), (199, 227), batch=2),
    Case("bvlc-reference-caffenet", caffe_nets.caffenet(), (213, 199)),
    Case("vgg11", caffe_nets.vgg("A"), (193, 224), v1=True),
    Case("vgg11_lrn", caffe_nets.vgg("A-LRN"), (195, 193), v1=True),
    Case("vgg13", caffe_nets.vgg("B"), (193, 193), batch=2, v1=True),
    Case("vgg16_1x1", caffe_nets.vgg("C"), (193, 207), v1=True),
    Case("vgg19-ilsvrc", caffe_nets.vgg("E"), (201, 193), v1=True),
    # Published for 360×480, where two maps are odd; every size from the last pooling up, for 37×51 pixels.
    Case(
        "bayesian-segnet",
        caffe_nets.segnet(11, sizes=((3, 4), (5, 7), (10, 13), (19, 26), (37, 51))),
        (37, 51),
        batch=2,
    ),
    Case("bayesian-segnet-camvid", caffe_nets.segnet(11, sizes=((2, 2), (3, 4)), further="camvid"), (24, 32), batch=2),
    Case("bayesian-segnet-pascal", caffe_nets.segnet(21), (32, 96)),
)


# Kin of others that are quick.
SLOW = (
    *("siftflow-fcn32s", "pascalcontext-fcn32s", "pascalcontext-fcn16s", "bvlc-reference-caffenet"),
    *("vgg11", "vgg13", "vgg16_1x1", "bayesian-segnet", "bayesian-segnet-camvid"),
)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.name in SLOW else []) for case in CASES],
)
def test_every_blob_of_a_release(tmp_path, case):
    check(tmp_path, case, *case.draw())


@pytest.mark.parametrize("group", [1, 5], ids=["dense", "grouped"])
def test_learned_upsampling_of_a_batch_one_pixel_high(tmp_path, group):
    """Kernels that are no bilinear ones, in all three places."""
    case = Case("voc-fcn8s", caffe_nets.fcn(8, {"": 5}, lr_mult=1, group=group), (1, 33), batch=2)
    check(tmp_path, case, *case.draw())


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ("bilinear", {"up": "bilinear"}),
        ("encoder_addition", {"up": "unpool", "addition": True}),
        ("single_channel", {"up": "unpool", "groups": NARROW[64]}),
        ("fcn", {"up": "learned", "addition": True, "scored": True}),
        ("fcn_no_addition", {"up": "learned", "scored": True}),
        ("fcn_no_dim_reduction", {"up": "learned", "addition": True}),
        ("fcn_no_addition_no_dim_reduction", {"up": "learned"}),
    ],
)
def test_every_blob_of_the_decoders_that_segnets_paper_compares(tmp_path, row, options):
    case = Case(f"segnet_basic_{row}", caffe_nets.segnet_basic(**options), (32, 48), batch=2, renamed={})
    image, drawn, _ = case.draw()
    for name in drawn:
        if name.startswith(("conv_classifier", "score")):  # else a rounding of large scores is seen in their softmax
            drawn[name] *= np.float32(0.1)
    blobs = caffe_nets.run(case.net, {"data": np.moveaxis(image, -1, 1)}, drawn)
    if row == "bilinear":  # its kernels are none of our parameters
        drawn = {name: blob for name, blob in drawn.items() if not name.startswith("upsample")}
    check(tmp_path, case, image, drawn, blobs)


def test_every_blob_of_deeplab_msc(tmp_path):
    # Of 8n + 1 pixels, for which the release's branches are as large as fc7; fc6's holes of 12 need 13 cells.
    case = Case("deeplab_msc", caffe_nets.deeplab(multi_scale=True), (113, 105), batch=2, v1=True)
    check(tmp_path, case, *case.draw())
