"""SIFT Flow's layout on tiny files: two label maps an image, whose voids are told differently."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fcn_jax import data
from fcn_jax.data import loader, siftflow
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.inputs import SIFTFLOW_INPUT

SCENES = "spatial_envelope_256x256_static_8outdoorcategories"
SEMANTIC = np.array([[0, 1, 33], [28, 28, 0]], np.uint8)
GEOMETRIC = np.array([[-1, 3, 2], [1, 1, -1]], np.int16)


def write(root, name, *, semantic=SEMANTIC, geometric=GEOMETRIC):
    """One scene, in the folders of the data set."""
    for folder in ("Images", "SemanticLabels", "GeoLabels"):
        (root / folder / SCENES).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 3, 3), 80, np.uint8)).save(root / "Images" / SCENES / f"{name}.jpg")
    savemat(root / "SemanticLabels" / SCENES / f"{name}.mat", {"S": semantic, "names": ["awning"]})
    savemat(root / "GeoLabels" / SCENES / f"{name}.mat", {"S": geometric, "names": ["sky"]})


@pytest.fixture
def fields(tmp_path):
    root = tmp_path / "SiftFlowDataset"
    for name in ("coast_a1", "street_b2", "forest_c3"):
        write(root, name)
    (root / "trainval.txt").write_text("street_b2\ncoast_a1\n")
    (root / "test.txt").write_text("forest_c3\n")
    return SimpleNamespace(name="siftflow", root=str(root), cache=str(tmp_path / "cache"), threads=2)


def test_classes_by_head():
    semantic, geometric = siftflow.INFO["sem"], siftflow.INFO["geo"]
    assert list(siftflow.INFO) == ["sem", "geo"] and (semantic.num_classes, geometric.num_classes) == (33, 3)
    assert [semantic.class_names[label] for label in (0, 8, 10, 15, 27, 32)] == [
        *("awning", "cow", "desert", "moon", "sky", "window")
    ]
    assert geometric.class_names == ("sky", "horizontal", "vertical")
    assert semantic.absent == ("cow", "desert", "moon") and geometric.absent == ()
    assert len(set(semantic.palette)) == 33 and len(set(geometric.palette)) == 3


def test_two_label_maps_an_image(fields):
    source = data.open_split(fields, "trainval")
    assert [source[i]["id"] for i in range(2)] == ["street_b2", "coast_a1"]
    example = source[0]
    assert source.info is siftflow.INFO and list(example["label"]) == ["sem", "geo"]
    assert example["label"]["sem"].tolist() == [[255, 0, 32], [27, 27, 255]]
    assert example["label"]["geo"].tolist() == [[255, 2, 1], [0, 0, 255]]
    assert all(label.dtype == np.uint8 for label in example["label"].values())
    assert example["image"].shape == (2, 3, 3) and (example["image"] == 80).all() and source.channels == "RGB"


def test_from_files_to_batches(fields):
    source = data.open_split(fields, "test")
    (batch,) = loader.eval_batches(source, SIFTFLOW_INPUT, batch_size=2, threads=1)
    assert batch["image"].shape == (2, 2, 3, 3) and batch["ids"] == ["forest_c3"]
    assert {head: label[0, 0].tolist() for head, label in batch["label"].items()} == {
        "sem": [255, 0, 32],
        "geo": [255, 2, 1],
    }
    assert all((label[1] == 255).all() for label in batch["label"].values())


def test_other_lists_than_the_releases_are_announced(fields, capfd):
    data.open_split(fields, "test")
    assert "siftflow test: 1 images, the paper has 200; the lists are others\n" in capfd.readouterr().err
    assert siftflow.SPLITS == {"trainval": 2486, "test": 200}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"semantic": SEMANTIC + 1}, r"SemanticLabels/.*coast_a1\.mat: holds the label 33, but the classes are 0…32"),
        ({"geometric": GEOMETRIC + 1}, r"GeoLabels/.*coast_a1\.mat: holds the label 3, but the classes are 0…2"),
        ({"geometric": GEOMETRIC[:1]}, r"GeoLabels/.*coast_a1\.mat: the mask is 3×1, its image coast_a1\.jpg is 3×2"),
        ({"semantic": np.zeros((0, 0))}, r"SemanticLabels/.*coast_a1\.mat: S is no map of whole numbers"),
    ],
)
def test_a_bad_file_is_one_plain_line(fields, tmp_path, change, message):
    write(tmp_path / "SiftFlowDataset", "coast_a1", **change)
    with pytest.raises(DataError, match=message) as caught:
        data.open_split(fields, "trainval")
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(fields, tmp_path):
    root = tmp_path / "SiftFlowDataset"
    savemat(root / "GeoLabels" / SCENES / "coast_a1.mat", {"T": GEOMETRIC})
    with pytest.raises(DataError, match=r"coast_a1\.mat: no S in it, but T; is it another data set's file\?"):
        data.open_split(fields, "trainval")
    (root / "GeoLabels" / SCENES / "coast_a1.mat").write_bytes(b"MATLAB 7.3 MAT-file" + bytes(200))
    with pytest.raises(DataError, match=r"^[^\n]*coast_a1\.mat: not a readable MATLAB file [^\n]*; copy it again$"):
        data.open_split(fields, "trainval")
    (root / "trainval.txt").unlink()
    with pytest.raises(DataError, match=r"trainval\.txt: no such list; copy it from the FCN release's data/sift-flow"):
        data.open_split(fields, "trainval")
    (root / "GeoLabels").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"SIFT Flow's GeoLabels/spatial_.*/ is not there; check data.root"):
        data.open_split(fields, "test")
    with pytest.raises(ConfigError, match=r"siftflow has no split 'train'; it has trainval, test"):
        data.open_split(fields, "train")
    fields.root = ""
    with pytest.raises(ConfigError, match=r"data.root is empty; give the SIFT Flow folder"):
        data.open_split(fields, "test")
