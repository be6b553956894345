import caffemodel_writer as writer
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import models, state, weights
from fcn_jax.errors import ConfigError, WeightFileError
from fcn_jax.labels import by_head, class_counts
from fcn_jax.ops.bilinear import bilinear_kernel
from fcn_jax.weights import layout

CLASSES = 3
WIDTHS = {"width": 1 / 64, "fc_width": 5}
KERNEL_SIZES = {"upscore": 64, "upscore2": 4, "upscore16": 32, "upscore_pool4": 4, "upscore8": 16}
UPSAMPLING = {
    "fcn32s": ("upscore",),
    "fcn16s": ("upscore2", "upscore16"),
    "fcn8s": ("upscore2", "upscore_pool4", "upscore8"),
    "fcn8s_atonce": ("upscore2", "upscore_pool4", "upscore8"),
}
SCALES = {"scale_pool4.0": np.full(8, 0.01, np.float32), "scale_pool3.0": np.full(4, 0.0001, np.float32)}


def bilinear(layer: str, classes: int = CLASSES) -> np.ndarray:
    """A released net's deconvolution blob `[c c k k]`, zero off the diagonal."""
    taps = bilinear_kernel(KERNEL_SIZES[layer])
    return np.einsum("ij,k,l->ijkl", np.eye(classes), taps, taps).astype(np.float32)


def new_variables(model: str, **arguments) -> dict:
    """Variables of a narrow net, all values different."""
    module = models.create(model, **{"num_classes": CLASSES, **WIDTHS, **arguments})
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    shapes = jax.eval_shape(lambda image: module.init(jax.random.key(0), image), image)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


def file_of(variables: dict, model: str) -> dict[str, np.ndarray]:
    """The blobs that Caffe would write for a net's variables, bilinear up-sampling and scales with them."""
    blobs = {}
    for layer, leaves in variables["params"].items():
        if "bias" in leaves:
            blobs[f"{layer}.0"] = leaves["kernel"].transpose(3, 2, 0, 1)
            blobs[f"{layer}.1"] = leaves["bias"]
    blobs |= {f"{layer}.0": bilinear(layer) for layer in UPSAMPLING[model]}
    return blobs | (SCALES if model == "fcn8s_atonce" else {})


def zeros(variables: dict) -> dict:
    return jax.tree.map(np.zeros_like, variables)


def assert_equal(found, wanted) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), jax.device_get(found), wanted)


@pytest.fixture
def write(tmp_path):
    def write(blobs, **options):
        path = tmp_path / "net.caffemodel"
        path.write_bytes(writer.net(blobs, **options))
        return path

    return write


@pytest.fixture(scope="module")
def fcn8s() -> tuple[dict, dict[str, np.ndarray]]:
    variables = new_variables("fcn8s")
    return variables, file_of(variables, "fcn8s")


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("model", UPSAMPLING)
def test_everything_loads(write, model, v1):
    variables = new_variables(model)
    path = write(file_of(variables, model), v1=v1)
    assert_equal(weights.load(path, zeros(variables), model=model), variables)


def test_oihw_becomes_hwio():
    blob = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    kernel = layout.convolution(blob, (5, 7, 3, 2))
    assert kernel is not None and kernel[4, 1, 2, 0] == blob[0, 2, 4, 1]
    assert layout.convolution(blob, (7, 5, 3, 2)) is None


@pytest.mark.parametrize("legacy", [False, True])
def test_inner_product_becomes_convolution(legacy):
    blob = np.arange(2 * 3 * 2 * 2).reshape(2, 12)
    kernel = layout.convolution(blob[None, None] if legacy else blob, (2, 2, 3, 2))
    # Row 1, channel 2, place (0, 1): channels vary slowest among the 12.
    assert kernel is not None and kernel[0, 1, 2, 1] == blob[1, 2 * 4 + 0 * 2 + 1]
    assert layout.convolution(blob[:, :11], (2, 2, 3, 2)) is None


@pytest.mark.parametrize("shape", [(6,), (1, 1, 1, 6), (1, 6, 1, 1)])
def test_bias_of_any_legacy_shape(shape):
    np.testing.assert_array_equal(layout.vector(np.arange(6).reshape(shape), (6,)), np.arange(6))


@pytest.mark.parametrize("shape", [(2, 3), (7,)])
def test_bias_of_another_shape(shape):
    assert layout.vector(np.zeros(shape), (6,)) is None


def test_deconvolution_layouts():
    dense, grouped = np.arange(3 * 3 * 4 * 4).reshape(3, 3, 4, 4), np.arange(3 * 16).reshape(3, 1, 4, 4)
    to_dense = layout.transposed_convolution(dense, (4, 4, 3, 3))
    assert to_dense is not None and to_dense[1, 2, 0, 2] == dense[0, 2, 1, 2]
    to_grouped = layout.transposed_convolution(grouped, (4, 4, 1, 3))
    assert to_grouped is not None and to_grouped[1, 2, 0, 2] == grouped[2, 0, 1, 2]
    on_diagonal = layout.transposed_convolution(grouped, (4, 4, 3, 3))
    assert on_diagonal is not None and on_diagonal[1, 2, 2, 2] == grouped[2, 0, 1, 2]
    assert np.count_nonzero(on_diagonal[..., ~np.eye(3, dtype=bool)]) == 0
    back = layout.transposed_convolution(on_diagonal.transpose(2, 3, 0, 1), (4, 4, 1, 3))
    np.testing.assert_array_equal(back, to_grouped)
    assert layout.transposed_convolution(dense, (4, 4, 1, 3)) is None
    assert layout.transposed_convolution(dense, (2, 2, 3, 3)) is None


@pytest.mark.parametrize("size", [4, 16, 32, 64, 63])
def test_bilinear_is_told_exactly(size):
    taps = bilinear_kernel(size)
    square = np.outer(taps, taps).astype(np.float32)
    grouped = np.stack([square] * 3)[:, None]
    dense = np.eye(3, dtype=np.float32)[:, :, None, None] * square
    assert layout.is_bilinear(grouped, size) and layout.is_bilinear(dense, size)
    off = dense.copy()
    off[0, 1, 0, 0] = 1e-30
    near = grouped.copy()
    near[2, 0, 1, 1] = np.nextafter(near[2, 0, 1, 1], np.float32(2))
    assert not layout.is_bilinear(off, size) and not layout.is_bilinear(near, size)
    assert not layout.is_bilinear(dense, size + 1) and not layout.is_bilinear(dense[:, :2], size)


def test_missing_unused_and_misshapen_stand_in_one_line(write, fcn8s):
    variables, blobs = fcn8s
    blobs = dict(blobs)
    del blobs["conv3_2.1"], blobs["score_pool4.0"], blobs["score_pool4.1"]
    blobs |= {"fc8.0": np.zeros((10, 5), np.float32), "fc7.1": np.zeros(6, np.float32)}
    blobs["upscore2.0"] = np.zeros((3, 3, 6, 6), np.float32)
    with pytest.raises(WeightFileError) as error:
        weights.load(write(blobs), variables, model="fcn8s")
    text = str(error.value)
    assert "\n" not in text and "net.caffemodel does not fit fcn8s" in text
    assert "missing in the file: conv3_2.1 (4), score_pool4.0 (1×1×8×3), score_pool4.1 (3);" in text
    assert "in the file only: fc8.0 (10×5);" in text
    assert "fc7.1 (file 6, net 5), upscore2.0 (file 3×3×6×6, net 3×3×4×4);" in text


def test_skipped_layers_keep_their_values(write, fcn8s):
    variables, blobs = fcn8s
    trunk = {name: 2 * blob for name, blob in blobs.items() if name.startswith("conv")}
    path = write(trunk | {"fc8.0": np.zeros((10, 5), np.float32)})
    found = weights.load(path, variables, model="fcn8s", skip=("fc*", "score_*"))
    for layer, leaves in variables["params"].items():
        factor = 2 if layer.startswith("conv") else 1
        assert_equal(found["params"][layer], {leaf: factor * array for leaf, array in leaves.items()})


def test_skip_leaves_layers_of_the_file_unread(fcn8s):
    variables, blobs = fcn8s
    blobs = blobs | {"fc8.0": np.zeros((10, 5), np.float32), "fc6.0": np.zeros(1, np.float32)}
    found, report = weights.transfer(blobs, variables, model="fcn8s", skip=("fc8", "fc6"), source="net")
    assert found["params"]["fc6"] is not None and report.unread == {"fc8.0": 50}
    assert set(report.kept) == {"fc6.kernel", "fc6.bias"} and report.num_kept == 7 * 7 * 8 * 5 + 5
    assert report.confirmed == ("upscore2.0", "upscore_pool4.0", "upscore8.0")
    total = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert report.num_loaded == total - report.num_kept == sum(report.loaded.values())
    assert (
        str(report)
        == f"{report.num_loaded:,} of {total:,} parameters from net; fc6 start anew; fc8 of the file not used"
    )


def test_one_pattern_may_be_a_string(fcn8s):
    variables, blobs = fcn8s
    blobs = {name: blob for name, blob in blobs.items() if not name.startswith("fc6")}
    weights.transfer(blobs, variables, model="fcn8s", skip="fc6")


@pytest.mark.parametrize("pattern", ["fc9", "fc", "drop*", "fc[89]", "*_frs", ""])
def test_skip_must_name_something(fcn8s, pattern):
    variables, blobs = fcn8s
    with pytest.raises(WeightFileError, match=r"net: skip names .* no layer of file or net; they are conv1_1, "):
        weights.transfer(blobs, variables, model="fcn8s", skip=(pattern,), source="net")


def test_stage_by_stage(fcn8s):
    """32s into 16s into 8s: what the finer net has more is named, and so is the coarser net's last layer."""
    coarse = new_variables("fcn16s")
    finer, _ = fcn8s
    blobs = file_of(coarse, "fcn16s")
    with pytest.raises(WeightFileError, match=r"missing in the file: score_pool3\.0.*in the file only: upscore16\.0"):
        weights.transfer(blobs, finer, model="fcn8s")
    found, _ = weights.transfer(blobs, finer, model="fcn8s", skip=("score_pool3", "upscore16"))
    assert_equal(found["params"]["score_pool4"], coarse["params"]["score_pool4"])


@pytest.mark.parametrize(
    ("source", "target", "skip"),
    [
        ("fcn32s", "fcn16s", ("score_pool4", "upscore")),
        ("fcn16s", "fcn8s", ("score_pool3", "upscore16")),
        ("fcn8s", "fcn8s", ("score_*",)),
    ],
)
def test_rows_of_the_documentation(source, target, skip):
    """Also for another number of classes, if the scores are skipped: a bilinear kernel says the same for any number."""
    classes = CLASSES + 1 if "score_*" in skip else CLASSES
    weights.transfer(
        file_of(new_variables(source), source), new_variables(target, num_classes=classes), model=target, skip=skip
    )


def test_a_fixed_layer_takes_no_other_kernel(fcn8s):
    variables, blobs = fcn8s
    learned = blobs["upscore2.0"].copy()
    learned[0, 1] = 0.5
    with pytest.raises(WeightFileError, match=r"upscore2\.0 is not the bilinear kernel.*upsampling='dense'"):
        weights.transfer(blobs | {"upscore2.0": learned}, variables, model="fcn8s")
    grouped = np.ones((CLASSES, 1, 4, 4), np.float32)
    with pytest.raises(WeightFileError, match=r"upscore2\.0 is not the bilinear kernel.*upsampling='grouped'"):
        weights.transfer(blobs | {"upscore2.0": grouped}, variables, model="fcn8s")
    weights.transfer(blobs | {"upscore2.0": learned}, variables, model="fcn8s", skip=("upscore2",))


def test_a_kernel_that_is_a_parameter_takes_any(fcn8s):
    _, blobs = fcn8s
    variables = new_variables("fcn8s", upsampling={"upscore2": "dense", "upscore8": "grouped"})
    blobs = blobs | {"upscore2.0": np.random.default_rng(1).standard_normal((3, 3, 4, 4), np.float32)}
    found, _ = weights.transfer(blobs, variables, model="fcn8s")
    kernel = np.asarray(found["params"]["upscore2"]["kernel"])
    np.testing.assert_array_equal(kernel, blobs["upscore2.0"].transpose(2, 3, 0, 1))
    last = np.asarray(found["params"]["upscore8"]["kernel"])
    np.testing.assert_array_equal(last[:, :, 0, 1], blobs["upscore8.0"][1, 1])


def test_scales_must_agree():
    variables = new_variables("fcn8s_atonce")
    blobs = file_of(variables, "fcn8s_atonce")
    with pytest.raises(
        WeightFileError, match=r"scale_pool4\.0 \(0\.01 in the file, the net has pool_scales 1 for pool4"
    ):
        weights.transfer(blobs, variables, model="fcn8s")
    weights.transfer(blobs, variables, model="fcn8s", skip=("scale_*",))
    plain = {name: blob for name, blob in blobs.items() if not name.startswith("scale")}
    with pytest.raises(WeightFileError, match=r"scale_pool3\.0 \(none in the file, the net has pool_scales 0\.0001"):
        weights.transfer(plain, variables, model="fcn8s_atonce")
    uneven = blobs["scale_pool4.0"].copy()
    uneven[3] = 0
    with pytest.raises(WeightFileError, match="different values"):
        weights.transfer(blobs | {"scale_pool4.0": uneven}, variables, model="fcn8s_atonce")
    with pytest.raises(WeightFileError, match=r"scale_pool4\.0 \(file 7, net 8\)"):
        weights.transfer(blobs | {"scale_pool4.0": uneven[:7]}, variables, model="fcn8s_atonce")


def test_a_trunk_alone_states_no_scale():
    variables = new_variables("fcn8s_atonce")
    blobs = {name: blob for name, blob in file_of(variables, "fcn8s_atonce").items() if name.startswith("conv")}
    weights.transfer(blobs, variables, model="fcn8s_atonce", skip=("fc*", "score_*"))


def test_structure_and_dtype_are_those_of_the_variables(fcn8s):
    variables, blobs = fcn8s
    target = flax.core.freeze(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables))
    target = target.copy({"other": {"count": np.int32(7)}})
    found, _ = weights.transfer({n: b.astype(np.float64) for n, b in blobs.items()}, target, model="fcn8s")
    assert jax.tree.structure(found) == jax.tree.structure(target)
    assert {leaf.dtype for leaf in jax.tree.leaves(found["params"])} == {np.dtype(jnp.bfloat16)}
    assert found["other"]["count"] == 7


def test_parameters_alone_are_not_variables(fcn8s):
    variables, blobs = fcn8s
    with pytest.raises(ValueError, match="hold no 'params'"):
        weights.transfer(blobs, variables["params"], model="fcn8s")


@pytest.mark.parametrize("model", UPSAMPLING)
def test_the_file_tells_its_net(write, model):
    variables = new_variables(model, num_classes=CLASSES, channels={"conv4_2": 7, "fc7": 2})
    module, found = weights.load_model(write(file_of(variables, model)), model)
    assert_equal(found, variables)
    assert module.num_classes == CLASSES and module.padding == "caffe"
    assert set(module.upsampling.values()) == {"fixed"}
    assert hash(module) == hash(module.copy())
    atonce = (np.float32(0.01), np.float32(0.0001)) if model == "fcn8s_atonce" else (1, 1)
    assert module.pool_scales == atonce


def test_the_file_tells_scales_and_channels_whatever_the_model_is_called(write):
    variables = new_variables("fcn8s_atonce")
    blobs = file_of(variables, "fcn8s_atonce")
    blobs["scale_pool3.0"] = np.zeros(4, np.float32)
    blobs["conv1_1.0"] = np.zeros((1, 4, 3, 3), np.float32)
    module, found = weights.load_model(write(blobs), "voc-fcn8s", padding="same")
    assert module.pool_scales == (np.float32(0.01), 0) and module.in_channels == 4 and module.padding == "same"
    assert found["params"]["conv1_1"]["kernel"].shape == (3, 3, 4, 1)


def test_the_file_tells_the_form_of_each_upsampling(write, fcn8s):
    _, blobs = fcn8s
    rng = np.random.default_rng(2)
    dense = rng.standard_normal((CLASSES, CLASSES, 4, 4), np.float32)
    grouped = rng.standard_normal((CLASSES, 1, 4, 4), np.float32)
    each_bilinear = np.stack([bilinear("upscore8")[0, 0]] * CLASSES)[:, None]
    blobs = blobs | {"upscore2.0": dense, "upscore_pool4.0": grouped, "upscore8.0": each_bilinear}
    module, found = weights.load_model(write(blobs), "fcn8s")
    assert dict(module.upsampling) == {"upscore2": "dense", "upscore_pool4": "grouped", "upscore8": "fixed"}
    assert found["params"]["upscore2"]["kernel"].shape == (4, 4, CLASSES, CLASSES)
    assert found["params"]["upscore_pool4"]["kernel"].shape == (4, 4, 1, CLASSES)
    module, found = weights.load_model(write(blobs), "fcn8s", upsampling="dense")
    assert found["params"]["upscore8"]["kernel"].shape == (16, 16, CLASSES, CLASSES)


@pytest.mark.parametrize("fixed", [True, False])
def test_one_class_is_dense_and_grouped_alike(write, fixed):
    variables = new_variables("fcn32s", num_classes=1)
    kernel = bilinear("upscore", 1) if fixed else np.random.default_rng(3).standard_normal((1, 1, 64, 64), np.float32)
    module, found = weights.load_model(write(file_of(variables, "fcn32s") | {"upscore.0": kernel}), "fcn32s")
    assert module.num_classes == 1 and dict(module.upsampling) == {"upscore": "fixed" if fixed else "dense"}
    if not fixed:
        np.testing.assert_array_equal(found["params"]["upscore"]["kernel"][..., 0, 0], kernel[0, 0])


def test_the_file_tells_widths_of_inner_products(write, fcn8s):
    variables, blobs = fcn8s
    blobs = blobs | {name: blobs[name].reshape(1, 1, 5, -1) for name in ("fc6.0", "fc7.0")}
    _, found = weights.load_model(write(blobs, v1=True), "fcn8s")
    assert_equal(found, variables)


def test_a_classifier_alone_tells_no_net(write, fcn8s):
    _, blobs = fcn8s
    trunk = {name: blob for name, blob in blobs.items() if name.startswith("conv")}
    with pytest.raises(
        WeightFileError, match=r"net\.caffemodel: no score_fr\.1, whose length is the number of classes"
    ):
        weights.load_model(write(trunk), "fcn8s")


def test_a_cut_file_is_named_at_every_length(write, fcn8s):
    """Within a layer the reader sees it; between two layers the strict transfer does."""
    variables, blobs = fcn8s
    path = write(blobs)
    data = path.read_bytes()
    for length in range(0, len(data), len(data) // 60):
        path.write_bytes(data[:length])
        with pytest.raises(WeightFileError, match=r"net\.caffemodel"):
            weights.load(path, variables, model="fcn8s")


def test_load_model_is_as_strict_as_load(write, fcn8s):
    _, blobs = fcn8s
    with pytest.raises(WeightFileError, match=r"missing in the file: score_pool3\.0"):
        weights.load_model(write({name: blob for name, blob in blobs.items() if "score_pool3" not in name}), "fcn8s")
    with pytest.raises(WeightFileError, match=r"in the file only: score_pool3\.0"):
        weights.load_model(write(blobs), "fcn16s")
    with pytest.raises(WeightFileError, match=r"scale_pool4\.0 holds different values"):
        weights.load_model(write(blobs | {"scale_pool4.0": np.arange(8, dtype=np.float32)}), "fcn8s")


def test_unknown_models_are_named(write, fcn8s):
    variables, blobs = fcn8s
    with pytest.raises(ConfigError, match=r"'fcn9s' is neither a model nor a release; they are fcn32s, .*voc-fcn8s"):
        weights.load(write(blobs), variables, model="fcn9s")


# What the data set of each release calls some of its classes, by head.
CLASS_NAMES = {
    "voc": {"": (21, "person", 15)},
    "nyud": {"": (40, "wall", 0)},
    "siftflow": {"sem": (33, "moon", 15), "geo": (3, "sky", 0)},
    "pascal_context": {"": (60, "wood", 59)},
    "camvid": {"": (11, "Pole", 2)},
    "imagenet": {"": (1000, "tabby, tabby cat", 281)},
}


@pytest.mark.parametrize("name", weights.RELEASES)
def test_releases_name_models_that_exist(name):
    release = weights.RELEASES[name]
    named = {
        h: (i.num_classes, i.class_names[CLASS_NAMES[release.dataset][h][2]]) for h, i in by_head(release.info).items()
    }
    assert named == {head: wanted[:2] for head, wanted in CLASS_NAMES[release.dataset].items()}
    channels = len(release.input_spec.order)
    module = models.create(release.model, class_counts(release.info), in_channels=channels, **release.arguments)
    assert set(state.abstract_params(module)) > set(module.class_layers().get("", ()))
    if isinstance(module, models.FCN):
        assert module.padding == "caffe"


def test_the_files_of_the_release_were_published_under_these_names():
    voc = {f"voc-fcn{net}" for net in ("32s", "16s", "8s", "8s-atonce", "-alexnet")}
    nyud = {f"nyud-fcn32s-{what}" for what in ("color", "hha", "color-d", "color-hha")}
    others = {f"{data}-fcn{net}s" for data in ("siftflow", "pascalcontext") for net in (32, 16, 8)}
    assert voc | nyud | others <= set(weights.RELEASES)


def test_the_fcn8s_of_2015(write, fcn8s):
    """Names with dashes; up-sampling by two is learned, once with a bias, and the last is bilinear."""
    variables, blobs = fcn8s
    rng = np.random.default_rng(1)
    old = {
        **{"score_fr": "score-fr", "score_pool4": "score-pool4", "score_pool3": "score-pool3"},
        **{"upscore2": "score2", "upscore_pool4": "score4", "upscore8": "upsample"},
    }
    learned = {
        "upscore2.0": rng.standard_normal((CLASSES, CLASSES, 4, 4), np.float32),
        "upscore2.1": rng.standard_normal(CLASSES, np.float32),
        "upscore_pool4.0": rng.standard_normal((CLASSES, CLASSES, 4, 4), np.float32),
    }
    renamed = {}
    for name, blob in {**blobs, **learned}.items():
        layer, _, index = name.rpartition(".")
        renamed[f"{old.get(layer, layer)}.{index}"] = blob
    module, found = weights.load_model(write(renamed), "fcn-8s-pascal")
    assert dict(module.upsampling) == {"upscore2": "dense_biased", "upscore_pool4": "dense", "upscore8": "fixed"}
    kernels = {
        "upscore2": {"kernel": learned["upscore2.0"].transpose(2, 3, 0, 1), "bias": learned["upscore2.1"]},
        "upscore_pool4": {"kernel": learned["upscore_pool4.0"].transpose(2, 3, 0, 1)},
    }
    assert_equal(found, {"params": variables["params"] | kernels})


def test_the_auxiliary_classifiers_of_googlenet_are_passed_over(write):
    variables = new_variables("googlenet", num_classes=7)
    blobs = {}
    for layer, leaves in variables["params"].items():
        name = layer.replace("inception_", "inception~").replace("_", "/", 1).replace("inception~", "inception_")
        blobs[f"{name}.0"] = leaves["kernel"].transpose(3, 2, 0, 1)
        blobs[f"{name}.1"] = leaves["bias"]
    assert {"conv1/7x7_s2.0", "inception_3a/3x3_reduce.0", "loss3/classifier.0"} < blobs.keys()
    auxiliary = {"loss1/fc.0": np.zeros((4, 4), np.float32), "loss2/classifier.1": np.zeros(7, np.float32)}
    module, found = weights.load_model(write(blobs | auxiliary), "bvlc-googlenet")
    assert_equal(found, variables)
    assert module.num_classes == 7
    weights.load_model(write(blobs), "bvlc-googlenet")
    with pytest.raises(WeightFileError, match=r"in the file only: loss1/fc\.0"):
        weights.load_model(write(blobs | auxiliary), "googlenet")
