"""Labels: which of them count, and the colours they are painted in."""

import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.labels import IGNORE, DatasetInfo, by_head, class_counts, is_class, only_head, voc_palette


@pytest.mark.parametrize("array", [np.array, jnp.array])
@pytest.mark.parametrize("dtype", [np.int32, np.int16])
def test_what_counts(array, dtype):
    labels = array(np.array([[-1, 0, 20], [21, 254, 255]], dtype))
    np.testing.assert_array_equal(is_class(labels, 21), [[False, True, True], [False, False, False]])


def test_bytes_count_by_value():
    labels = np.array([0, 127, 128, 200, 255], np.uint8)
    np.testing.assert_array_equal(is_class(labels, 201), [True, True, True, True, False])


def test_255_never_counts():
    assert IGNORE == 255
    np.testing.assert_array_equal(is_class(np.array([254, 255, 256]), 300), [True, False, True])


def test_palette_of_voc():
    palette = voc_palette(256)
    assert palette[:6] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128))
    assert palette[8] == (64, 0, 0)
    assert palette[15] == (192, 128, 128)  # person
    assert palette[20] == (0, 64, 128)  # tvmonitor
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256
    assert voc_palette(21) == palette[:21]


def test_dataset_info():
    info = DatasetInfo("pets", ("cat", "dog"), ((0, 0, 0), (1, 2, 3)))
    assert info.num_classes == 2
    with pytest.raises(ValueError, match="pets: 2 classes, 1 colours"):
        DatasetInfo("pets", ("cat", "dog"), ((0, 0, 0),))


def test_classes_that_the_test_images_lack():
    pets = DatasetInfo("pets", ("cat", "dog"), ((0, 0, 0), (1, 2, 3)), absent=("dog",))
    listed = DatasetInfo("pets", ("cat", "dog"), ((0, 0, 0), (1, 2, 3)), absent=["dog"])  # pyright: ignore[reportArgumentType]
    assert pets == listed and hash(pets) == hash(listed) and listed.absent == ("dog",)
    with pytest.raises(ValueError, match="pets: absent names no classes: bird, cow"):
        DatasetInfo("pets", ("cat", "dog"), ((0, 0, 0), (1, 2, 3)), absent=("cow", "dog", "bird"))


def test_one_head_and_several():
    info = DatasetInfo("pets", ("cat", "dog"), ((0, 0, 0), (1, 2, 3)))
    several = {"kind": info, "size": DatasetInfo("pets", ("small",), ((0, 0, 0),))}
    assert by_head(info) == {"": info} and by_head(several) == several
    assert list(by_head(several)) == ["kind", "size"] and by_head(several) is not several
    assert only_head(by_head(info)) is info and only_head(by_head(several)) == several
    assert class_counts(info) == 2 and class_counts(several) == {"kind": 2, "size": 1}
