"""Prepared copies: made once, made anew when files change, never half made."""

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data import pairs, prepared
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.labels import DatasetInfo


class Tiny(prepared.PairBuilder):
    classes = DatasetInfo("tiny", ("ground", "tree"), ((0, 0, 0), (1, 1, 1)))


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
        yield "a", self._read(self._pairs[0])[1]
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
        (1, (3, 2), r"^[^\n]*a\.mask\.png: the mask is 2×3, its image a\.image\.png is 3×2; [^\n]*$"),
        (1, (2, 3, 3), r"^[^\n]*a\.mask\.png: holds colours, not labels; [^\n]*$"),
    ],
)
def test_a_bad_pair_is_one_plain_line_and_leaves_nothing(tiny, label, size, message):
    tiny.write("a", label, size=size)
    with pytest.raises(DataError, match=message) as caught:
        tiny.open("b", "a")
    assert type(caught.value) is DataError and "\n" not in str(caught.value)
    assert tiny.copies() == []


def test_missing_files_and_empty_lists(tiny):
    with pytest.raises(DataError, match=r"c\.image\.png: cannot be read \(No such file"):
        tiny.open("a", "c")
    with pytest.raises(DataError, match=r"tiny: the split 'train' lists no images"):
        tiny.open()
