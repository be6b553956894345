"""What is planned for data that is not at hand."""

import pytest

from fcn_jax import config as experiment
from fcn_jax.errors import ConfigError
from fcn_jax.labels import class_counts
from fcn_jax.plan import presumptions


def fields(name, **changes):
    config = experiment.default()
    config.data.name = name
    config.data.update(changes)
    return config.data


@pytest.mark.parametrize(
    ("name", "classes"),
    [("voc2012", 21), ("camvid", 11), ("shapes", 8), ("nyud", 40), ("siftflow", {"sem": 33, "geo": 3})],
)
def test_published_classes_need_no_files(name, classes):
    assert class_counts(presumptions.classes(fields(name))) == classes


def test_of_a_folder_its_classes_are_read_or_their_number_is_given(tmp_path):
    with pytest.raises(ConfigError, match=r"classes.txt is not there.*--classes=21"):
        presumptions.classes(fields("folder", root=str(tmp_path)))
    assert class_counts(presumptions.classes(fields("folder"), asked=5)) == 5
    (tmp_path / "classes.txt").write_text("ground\nroof\n")
    assert class_counts(presumptions.classes(fields("folder", root=str(tmp_path)))) == 2


def test_sizes_are_asked_cropped_drawn_or_assumed():
    voc = fields("voc2012")
    assert presumptions.image_size(voc, "321x400") == ((321, 400), "--size")
    size, origin = presumptions.image_size(voc)
    assert size == (500, 500) and origin.startswith("assumed")
    voc.voc.crops = "objects"
    assert presumptions.image_size(voc) == ((250, 250), "data.voc.crops")
    voc.augment.crop = (320, 240)
    assert presumptions.image_size(voc) == ((320, 240), "data.augment.crop")
    assert presumptions.image_size(fields("shapes"))[0] == (96, 96)
    for wrong in ("500", "x", "0x5", "5x5x5"):
        with pytest.raises(ConfigError, match="--size=500x500"):
            presumptions.image_size(voc, wrong)
    with pytest.raises(ConfigError, match="--size=HxW"):
        presumptions.image_size(fields("folder"))
