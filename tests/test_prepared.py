"""Prepared copies: made once, made anew when files change, never half made."""

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data import images, pairs, prepared
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.labels import DatasetInfo, Info


class Tiny(prepared.PairBuilder):
    classes = DatasetInfo("tiny", ("ground", "tree"), ((0, 0, 0), (1, 1, 1)))


def decode_grey(data, name):
    """One channel of float32 out of a grey picture of 16 bits."""
    return images.decode_depth(data, name).astype(np.float32)[..., None]


class Several(prepared.PairBuilder):
    classes: Info = dict.fromkeys(("sem", "geo"), DatasetInfo("several", ("ground", "tree"), ((0, 0, 0), (1, 1, 1))))
    pictures = {  # noqa: RUF012
        "image": prepared.Picture(),
        "depth": prepared.Picture(decode_grey, stored_channels=1, stored_dtype=np.uint16),
        "hha": prepared.Picture(),
    }
    channels = "RGBDHHA"


@dataclasses.dataclass
class Set:
    """Pairs on disk and a cache for them."""

    folder: Path
    cache: str

    def write(self, stem, label, *, size=(2, 3)):
        for name, pixels in (("image", np.full((2, 3, 3), 9, np.uint8)), ("mask", np.full(size, label, np.uint8))):
            Image.fromarray(pixels).save(self.folder / f"{stem}.{name}.png")

    def pairs(self, *stems):
        return [pairs.Pair(s, self.folder / f"{s}.image.png", self.folder / f"{s}.mask.png") for s in stems]

    def open(self, *stems):
        return prepared.open_prepared(Tiny, "train", self.pairs(*stems), cache=self.cache, threads=2)

    def copies(self):
        return sorted(os.listdir(os.path.join(self.cache, "tiny")))


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "source").mkdir()
    made = Set(tmp_path / "source", str(tmp_path / "cache"))
    for label, stem in enumerate("ab"):
        made.write(stem, label)
    return made


def test_the_copy_gives_the_files_contents_in_the_lists_order(tiny):
    source = tiny.open("b", "a")
    assert len(source) == 2 and [source[i]["id"] for i in range(2)] == ["b", "a"]
    assert (source[0]["label"] == 1).all() and (source[1]["label"] == 0).all()
    assert source[0]["image"].shape == (2, 3, 3) and (source[0]["image"] == 9).all()
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again[1]["label"], source[1]["label"]) and again.info == Tiny.classes


def test_prepared_once_and_anew_when_a_file_changes(tiny, capfd):
    tiny.open("a", "b")
    tiny.open("a", "b")
    assert capfd.readouterr().err == "preparing tiny train (2 images) …\n" and len(tiny.copies()) == 1
    tiny.write("a", 255)
    os.utime(tiny.folder / "a.mask.png", ns=(1, 1))
    assert (tiny.open("a", "b")[0]["label"] == 255).all()
    assert len(tiny.copies()) == 2
    assert len(tiny.open("a")) == 1 and len(tiny.copies()) == 3  # another list is another copy


def test_the_source_may_be_read_only_and_the_cache_may_not(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    tiny.cache = str(tmp_path / "file")
    with pytest.raises(DataError, match=r"cannot be written .*; set data.cache elsewhere"):
        tiny.open("a")
    tiny.cache = ""
    with pytest.raises(ConfigError, match=r"data.cache is empty"):
        tiny.open("a")


def test_what_a_killed_preparation_leaves_is_not_taken_for_a_copy(tiny, monkeypatch):
    def killed(self):
        yield "a", self._read(self._groups[0])[1]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tiny, "_generate_examples", killed)
        patch.setattr(prepared.shutil, "rmtree", lambda *args, **kwargs: None)  # killed: nothing tidies up
        with pytest.raises(KeyboardInterrupt):
            tiny.open("a", "b")
    (leftover,) = tiny.copies()
    assert leftover.startswith("unfinished-")
    assert len(tiny.open("a", "b")) == 2 and leftover in tiny.copies()  # it might be another process at work …
    os.utime(os.path.join(tiny.cache, "tiny", leftover), (1, 1))
    assert len(tiny.open("b")) == 1 and leftover not in tiny.copies()  # … but not since 1970


def test_when_another_process_was_faster_its_copy_is_used(tiny, monkeypatch):
    real = prepared._prepare

    def twice(*arguments):
        real(*arguments)
        real(*arguments)

    monkeypatch.setattr(prepared, "_prepare", twice)
    assert len(tiny.open("a", "b")) == 2
    assert len(tiny.copies()) == 1


@pytest.mark.parametrize(
    ("label", "size", "message"),
    [
        (2, (2, 3), r"^[^\n]*a\.mask\.png: holds the label 2, but the classes are 0…1 [^\n]*$"),
        (1, (3, 2), r"^[^\n]*a\.mask\.png: the mask is 2×3, its image a\.image.* is 3×2; [^\n]*$"),
        (1, (2, 3, 3), r"^[^\n]*a\.mask\.png: holds colours, not labels; [^\n]*$"),
    ],
)
def test_a_bad_pair_is_one_plain_line_and_leaves_nothing(tiny, label, size, message):
    tiny.write("a", label, size=size)
    with pytest.raises(DataError, match=message) as caught:
        tiny.open("b", "a")
    assert type(caught.value) is DataError and "\n" not in str(caught.value)
    assert tiny.copies() == []


def write_several(folder, stem, **changes):
    """A group of three pictures and two masks, 2 high and 3 wide."""
    contents = {
        "image": np.full((2, 3, 3), 9, np.uint8),
        "depth": np.array([[1, 700, 65535], [2, 3, 4]], np.uint16),
        "hha": np.arange(18, dtype=np.uint8).reshape(2, 3, 3),
        "sem": np.array([[0, 1, 255], [0, 0, 0]], np.uint8),
        "geo": np.array([[1, 1, 1], [255, 0, 1]], np.uint8),
    } | changes
    paths = {name: folder / f"{stem}.{name}.png" for name in contents}
    for name, pixels in contents.items():
        Image.fromarray(pixels).save(paths[name])
    (folder / "names.txt").write_text("ground\ntree\n")
    of = {part: {name: paths[name] for name in names} for part, names in PARTS.items()}
    return pairs.Group(stem, of["images"], of["masks"], others=(folder / "names.txt",))


PARTS = {"images": ("image", "depth", "hha"), "masks": ("sem", "geo")}


def test_several_pictures_and_label_maps_a_record(tmp_path):
    group = write_several(tmp_path, "a")

    def opened():
        return prepared.open_prepared(Several, "train", [group], cache=str(tmp_path / "cache"), threads=2)

    source = pickle.loads(pickle.dumps(opened()))
    example = source[0]
    assert source.channels == "RGBDHHA" and source.info == Several.classes and list(source.info) == ["sem", "geo"]
    assert example["image"].shape == (2, 3, 7) and example["image"].dtype == np.float32
    assert (example["image"][..., :3] == 9).all() and example["image"][0, :, 3].tolist() == [1, 700, 65535]
    assert np.array_equal(example["image"][..., 4:], np.arange(18).reshape(2, 3, 3))
    assert list(example["label"]) == ["sem", "geo"] and example["label"]["sem"][0].tolist() == [0, 1, 255]
    assert example["label"]["geo"][1].tolist() == [255, 0, 1] and example["id"] == "a"
    assert [path.name.split("-")[0] for path in (tmp_path / "cache" / "several").iterdir()] == ["train"]
    os.utime(tmp_path / "names.txt", ns=(1, 1))  # what the labels depend on makes a copy out of date, too
    opened()
    assert len(os.listdir(tmp_path / "cache" / "several")) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hha": np.zeros((3, 2, 3), np.uint8)},
            r"a\.hha\.png: the hha map is 2×3, its image a\.image.* is 3×2; one",
        ),
        (
            {"depth": np.zeros((4, 5), np.uint16)},
            r"a\.depth\.png: the depth map is 5×4, its image a\.image.* is 3×2",
        ),
        (
            {"depth": np.zeros((2, 3), np.uint8)},
            r"a\.depth\.png: a depth map is a grey PNG of 16 bits, this is of mode L",
        ),
        ({"geo": np.zeros((3, 2), np.uint8)}, r"a\.geo\.png: the mask is 2×3, its image a\.image.* is 3×2"),
        ({"geo": np.full((2, 3), 2, np.uint8)}, r"a\.geo\.png: holds the label 2, but the classes are 0…1"),
    ],
)
def test_a_group_that_does_not_fit_is_one_plain_line(tmp_path, changes, message):
    group = write_several(tmp_path, "a", **changes)
    with pytest.raises(DataError, match=message) as caught:
        prepared.open_prepared(Several, "train", [group], cache=str(tmp_path / "cache"), threads=1)
    assert "\n" not in str(caught.value)


def test_copies_of_earlier_versions_are_found_again(tmp_path):
    """The number was made when an example was always one image and one mask; CamVid's and VOC's copies bear such."""
    groups = []
    for stem, length in (("a", 3), ("b", 5)):
        image, mask = tmp_path / f"{stem}.image.png", tmp_path / f"{stem}.mask.png"
        for path, size in ((image, length), (mask, length + 1)):
            path.write_bytes(b"x" * size)
            os.utime(path, ns=(10**18, 10**18 + size))
        groups.append(pairs.Group(stem, {"image": image}, {"": mask}))
    assert prepared._fingerprint(Tiny, groups) == "d48bb5ac1a3a3a8f"


def test_missing_files_and_empty_lists(tiny):
    with pytest.raises(DataError, match=r"c\.image\.png: cannot be read \(No such file"):
        tiny.open("a", "c")
    with pytest.raises(DataError, match=r"tiny: the split 'train' lists no images"):
        tiny.open()
