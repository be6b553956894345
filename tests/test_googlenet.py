"""GoogLeNet against its paper, and against the interpreter of `caffe_nets`, which knows nothing of the library."""

import math

import caffe_nets
import caffemodel_writer as writer
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fcn_jax import models, state, weights
from fcn_jax.models import googlenet
from fcn_jax.models.layers import Conv
from fcn_jax.ops.grid import IMAGE

pytestmark = pytest.mark.usefixtures("fast_compilation")
# Table 1 of the paper: height of the output for 224 pixels, and channels.
PUBLISHED = {
    "conv1/7x7_s2": (112, 64), "pool1/3x3_s2": (56, 64), "pool1/norm1": (56, 64),
    "conv2/3x3_reduce": (56, 64), "conv2/3x3": (56, 192), "conv2/norm2": (56, 192), "pool2/3x3_s2": (28, 192),
    "inception_3a/output": (28, 256), "inception_3b/output": (28, 480), "pool3/3x3_s2": (14, 480),
    "inception_4a/output": (14, 512), "inception_4b/output": (14, 512), "inception_4c/output": (14, 512),
    "inception_4d/output": (14, 528), "inception_4e/output": (14, 832), "pool4/3x3_s2": (7, 832),
    "inception_5a/output": (7, 832), "inception_5b/output": (7, 1024), "pool5/7x7_s1": (1, 1024),
    "loss3/classifier": (1, 1000), "prob": (1, 1000),
}  # fmt: skip
INSIDE = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool", "pool_proj", "output")


def field(grid) -> int:
    first, last = grid.receptive_field(9)
    return last - first + 1


def test_published_parameters():
    params = state.abstract_params(models.create("googlenet", 1000))
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert total == 6_998_552
    assert total - sum(math.prod(leaf.shape) for leaf in params["loss3_classifier"].values()) == 5_973_552
    assert list(params) == sorted([*googlenet.layer_names(), "loss3_classifier"])
    assert len(params) == 3 + 9 * 6 + 1
    assert params["inception_4d_5x5"]["kernel"].shape == (5, 5, 32, 64)
    assert params["conv1_7x7_s2"]["kernel"].shape == (7, 7, 3, 64)


def test_published_blobs():
    module = models.create("googlenet", 1000)
    names = []

    def apply(variables, image):
        _, taps = module.apply(variables, image, return_taps=True)
        names.extend(taps)
        return taps

    taps = jax.eval_shape(apply, {"params": state.abstract_params(module)}, jnp.zeros((1, 224, 224, 3)))
    assert {name: (taps[name].shape[1], taps[name].shape[3]) for name in PUBLISHED} == PUBLISHED
    inside = {f"inception_{module}/{branch}" for module in googlenet.MODULES for branch in INSIDE}
    assert set(names) == set(PUBLISHED) | inside
    assert [name for name in names if name in PUBLISHED] == list(PUBLISHED)


def test_published_receptive_field():
    """Table 1 of the FCN paper: 907 pixels and a stride of 32, with the average; without it, 715."""
    found = models.create("googlenet", 2, width=1 / 32).grids()
    assert (field(found["loss3/classifier"]), found["loss3/classifier"].step) == (907, 32)
    assert {blob: field(found[blob]) for blob in ("pool2/3x3_s2", "inception_3b/output", "inception_5b/output")} == {
        "pool2/3x3_s2": 27, "inception_3b/output": 91, "inception_5b/output": 715,
    }  # fmt: skip
    for module in googlenet.MODULES:
        branches = [found[f"inception_{module}/{branch}"] for branch in ("1x1", "3x3", "5x5", "pool_proj", "output")]
        assert len({(grid.start, grid.step) for grid in branches}) == 1
        ranges = [grid.receptive_field(4) for grid in branches]
        assert ranges[-1] == (min(first for first, _ in ranges), max(last for _, last in ranges))


def test_trunk_with_padding_and_suffix():
    def conv(name, features, kernel_size, padding, stride=1):
        return Conv(1, kernel_size, padding, stride, name=name)

    class Trunk(nn.Module):
        @nn.compact
        def __call__(self, image):
            blobs = googlenet.trunk(conv, image, IMAGE, first_padding=100, suffix="_x")
            assert next(reversed(blobs)) == "inception_5b/output_x"
            return {name: x for name, (x, _) in blobs.items()}

    taps, variables = jax.eval_shape(lambda x: Trunk().init_with_output(jax.random.key(0), x), jnp.zeros((1, 9, 8, 3)))
    assert set(variables["params"]) == {f"{layer}_x" for layer in googlenet.layer_names()}
    assert taps["conv1/7x7_s2_x"].shape[1:3] == (102, 101)
    assert all(blob.endswith("_x") for blob in taps)


# The whole net


def test_every_blob_and_dropout(tmp_path):
    """In training, so that one compilation shows both: dropout of 0.4 lies between the average and the classifier."""
    widths = {channels: channels // 8 for row in caffe_nets.INCEPTIONS.values() for channels in row}
    image = np.random.default_rng(0).uniform(-20, 20, (1, 223, 224, 3)).astype(np.float32)
    drawn, wanted = caffe_nets.draw(caffe_nets.googlenet(), {"data": np.moveaxis(image, -1, 1)}, widths | {1000: 5})
    path = tmp_path / "net.caffemodel"
    path.write_bytes(writer.net(drawn))
    module, variables = weights.load_model(path, "bvlc-googlenet", precision=jax.lax.Precision.HIGHEST)

    @jax.jit
    def train(variables, image):
        rngs = {"dropout": jax.random.key(0)}
        return module.apply(variables, image, train=True, rngs=rngs, return_taps=True)

    scores, taps = train(variables, image)
    assert taps.keys() == wanted.keys() - {"data"}
    wanted = {name: np.moveaxis(blob, 1, -1) for name, blob in wanted.items() if blob.ndim == 4 and name != "data"}
    average = wanted.pop("pool5/7x7_s1")
    for name, blob in wanted.items():
        assert taps[name].shape == blob.shape, name
        np.testing.assert_allclose(taps[name], blob, rtol=0, atol=1e-5 * np.abs(blob).max(), err_msg=name)
        assert np.mean(blob > 0) > 0.1, name
    found = np.asarray(taps["pool5/7x7_s1"], np.float64)
    kept = found != 0
    assert np.mean(kept[average > 0]) == pytest.approx(0.6, abs=0.12)
    np.testing.assert_allclose(found, np.where(kept, average / 0.6, 0), rtol=0, atol=1e-5 * average.max())
    kernel, bias = (np.asarray(drawn[f"loss3/classifier.{index}"], np.float64) for index in range(2))
    logits = found[0, 0, 0] @ kernel.T + bias
    np.testing.assert_allclose(scores[0, 0, 0], logits, rtol=0, atol=1e-5 * np.abs(logits).max())
