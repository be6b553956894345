"""Data sets of fixed layout, prepared once: checked, packed into ArrayRecord by TFDS, then read by random access.

A prepared copy lies in `<cache>/<data set>/<split>-<fingerprint>`. The fingerprint covers names, sizes and times of the
source files, so changed files are prepared anew. The copy is made in a folder of its own and renamed when whole: what
has its final name is complete, whoever was killed, and two processes at once cannot mix their files. TensorFlow is not
needed: pictures are stored as the files they are, label maps as PNG, and decoded by `images`.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fcn_jax.data import images, pairs
from fcn_jax.data.pairs import Group, Pair
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.labels import DatasetInfo, Info, by_head, only_head


@dataclasses.dataclass(frozen=True)
class Picture:
    """How a kind of picture is stored, and decoded from its file's bytes (errors call it by the name) to `[h w k]`."""

    decode: Callable[[bytes, str | Path], np.ndarray] = images.decode_image
    stored_channels: int = 3
    stored_dtype: type = np.uint8


class PairBuilder(tfds.core.GeneratorBasedBuilder):
    """One split of a data set of image and mask files: a data set gives `classes` and, if need be, `read_labels`.

    Where an example has several images, `pictures` says which: their channels follow each other, and `channels` names
    them. Where it has several label maps, `classes` are given by head.
    """

    VERSION = tfds.core.Version("1.0.0")
    classes: Info = DatasetInfo("pairs", (), ())
    pictures: Mapping[str, Picture] = {"image": Picture()}
    channels = "RGB"
    # Where TFDS would look for the checksums of downloads. There are none, and the search itself needs a package,
    # importlib_resources, that TFDS 4.9.10 uses without depending on it.
    code_path = None

    def __init__(self, *, split: str, groups: Sequence[Group], threads: int = 2, **arguments):
        self._split = split
        self._groups = groups
        self._threads = threads
        super().__init__(file_format="array_record", **arguments)

    @classmethod
    def read_labels(cls, path: Path) -> np.ndarray:
        """The labels `u8[h w]` of a mask file, 255 for void. Whatever else it reads is among the group's `others`."""
        return images.read_mask(path)

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {
            kind: tfds.features.Image(
                shape=(None, None, picture.stored_channels), dtype=picture.stored_dtype, encoding_format="png"
            )
            for kind, picture in self.pictures.items()
        }
        for head, info in by_head(self.classes).items():
            features[_label_feature(head)] = tfds.features.LabeledImage(
                labels=list(info.class_names), shape=(None, None, 1), encoding_format="png"
            )
        features["id"] = tfds.features.Text()
        # Records keep the order of the list, so that index i means the same image for everybody.
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager) -> dict:
        return {self._split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        yield from pairs.in_order(self._read, self._groups, self._threads)

    def _read(self, group: Group) -> tuple[str, dict]:
        record: dict[str, Any] = {"id": group.id}
        sizes = {}
        for kind, picture in self.pictures.items():
            path = group.images[kind]
            record[kind] = images.read_bytes(path)
            # Decoded only to be sure that it can be: a damaged file is found now, not in the middle of a training.
            sizes[path] = picture.decode(record[kind], path).shape[:2]
        image, size = next(iter(sizes.items()))
        for kind, path in group.images.items():
            pairs.require_same_size(image, size, path, sizes[path], f"{kind} map")
        for head, info in by_head(self.classes).items():
            path = group.masks[head]
            mask = self.read_labels(path)
            pairs.require_labels(path, mask, info.num_classes)
            pairs.require_same_size(image, size, path, mask.shape)
            # Masks are stored as grey PNG: some readers turn palette files into colours.
            record[_label_feature(head)] = images.encode_mask(mask)
        return group.id, record


class PreparedSplit:
    """A prepared copy as a data source: random access, picklable, safe to read from several threads."""

    def __init__(self, builder: type[PairBuilder], directory: Path, split: str):
        self.info = builder.classes
        self.channels = builder.channels
        self._pictures = builder.pictures
        self._directory = directory
        self._labels = {head: _label_feature(head) for head in by_head(self.info)}
        raw = dict.fromkeys((*self._pictures, *self._labels.values()), tfds.decode.SkipDecoding())
        stored: Any = tfds.builder_from_directory(builder_dir=str(directory))
        self._records = stored.as_data_source(split, decoders=raw)

    def __len__(self) -> int:
        return len(self._records)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, without decoding it."""
        record = self._records[index]
        return images.size_in(record[next(iter(self._pictures))], f"{self._directory} ({record['id'].decode()})")

    def __getitem__(self, index: int) -> dict:
        record = self._records[index]
        name = record["id"].decode()
        where = f"{self._directory} ({name})"
        parts = [picture.decode(record[kind], where) for kind, picture in self._pictures.items()]
        maps = {head: images.decode_mask(record[feature], where) for head, feature in self._labels.items()}
        return {
            # Bytes and float32 make float32.
            "image": parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1),
            "label": only_head(maps),
            "id": name,
        }


def open_prepared(
    builder: type[PairBuilder], split: str, split_pairs: Sequence[Pair | Group], *, cache: str, threads: int
) -> PreparedSplit:
    """The split as a data source, prepared first unless an up-to-date copy lies in `cache`."""
    groups = [Group(p.id, {"image": p.image}, {"": p.mask}) if isinstance(p, Pair) else p for p in split_pairs]
    name = next(iter(by_head(builder.classes).values())).name
    if not groups:
        raise DataError(f"{name}: the split {split!r} lists no images; check its folder or list")
    if not cache:
        raise ConfigError("data.cache is empty; give a folder for prepared copies, as ~/.cache/fcn_jax")
    folder = Path(cache).expanduser() / name
    directory = folder / f"{split}-{_fingerprint(builder, groups)}"
    if not directory.is_dir():
        print(f"preparing {name} {split} ({len(groups)} images) …", file=sys.stderr, flush=True)
        _prepare(builder, split, groups, directory, threads)
    return PreparedSplit(builder, directory, split)


def _label_feature(head: str) -> str:
    """What a head's label maps are called in a record."""
    return f"label_{head}" if head else "label"


def _fingerprint(builder: type[PairBuilder], groups: Sequence[Group]) -> str:
    """Changes with the builder's version, the list of examples, and any file's name, size or time."""
    digest = hashlib.sha256(f"{builder.__name__} {builder.VERSION}\n".encode())
    for group in groups:
        names = " ".join(path.name for path in group.files)
        digest.update(f"{group.id} {names} {pairs.stamp(group.files)}\n".encode())
    return digest.hexdigest()[:16]


def _prepare(builder: type[PairBuilder], split: str, groups: Sequence[Group], directory: Path, threads: int) -> None:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _sweep(directory.parent)
        workshop = Path(tempfile.mkdtemp(prefix=f"unfinished-{split}-", dir=directory.parent))
    except OSError as error:
        raise DataError(f"{directory.parent}: cannot be written ({error.strerror}); set data.cache elsewhere") from None
    try:
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces itself at length
            made = builder(split=split, groups=groups, threads=threads, data_dir=str(workshop))
            made.download_and_prepare()
        try:
            os.rename(made.data_dir, directory)
        except OSError:
            # Another process was faster: its copy is as good as ours.
            if not directory.is_dir():
                raise
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Removes what killed preparations left. One that still runs is younger than a day."""
    for leftover in folder.glob("unfinished-*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 24 * 3600:
                shutil.rmtree(leftover, ignore_errors=True)
