"""Data sets of fixed layout, prepared once: checked, packed into ArrayRecord by TFDS, then read by random access.

A prepared copy lies in `<cache>/<data set>/<split>-<fingerprint>`. The fingerprint covers names, sizes and times of the
source files, so changed files are prepared anew. The copy is made in a folder of its own and renamed when whole: what
has its final name is complete, whoever was killed, and two processes at once cannot mix their files. TensorFlow is not
needed: files are stored as they are and decoded by `images`.
"""

import contextlib
import hashlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fcn_jax import labels
from fcn_jax.data import images, pairs
from fcn_jax.data.pairs import Pair
from fcn_jax.errors import ConfigError, DataError


class PairBuilder(tfds.core.GeneratorBasedBuilder):
    """One split of a data set of image and mask files: a data set gives `classes` and, if need be, `read_labels`."""

    VERSION = tfds.core.Version("1.0.0")
    classes: labels.DatasetInfo = labels.DatasetInfo("pairs", (), ())
    # Where TFDS would look for the checksums of downloads. There are none, and the search itself needs a package,
    # importlib_resources, that TFDS 4.9.10 uses without depending on it.
    code_path = None

    def __init__(self, *, split: str, split_pairs: Sequence[Pair], threads: int = 2, **arguments):
        self._split = split
        self._pairs = split_pairs
        self._threads = threads
        super().__init__(file_format="array_record", **arguments)

    @classmethod
    def read_labels(cls, path: Path) -> np.ndarray:
        """The labels `u8[h w]` of a mask file, 255 for void."""
        return images.read_mask(path)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.LabeledImage(
                labels=list(self.classes.class_names), shape=(None, None, 1), encoding_format="png"
            ),
            "id": tfds.features.Text(),
        }
        # Records keep the order of the list, so that index i means the same image for everybody.
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager) -> dict:
        return {self._split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        yield from pairs.in_order(self._read, self._pairs, self._threads)

    def _read(self, pair: Pair) -> tuple[str, dict]:
        data = images.read_bytes(pair.image)
        # Decoded only to be sure that it can be: a damaged file is found now, not in the middle of a training.
        height, width, _ = images.decode_image(data, pair.image).shape
        mask = self.read_labels(pair.mask)
        pairs.require_labels(pair.mask, mask, self.classes.num_classes)
        pairs.require_same_size(pair, (height, width), mask.shape)
        # Masks are stored as grey PNG: some readers turn palette files into colours.
        return pair.id, {"image": data, "label": images.encode_mask(mask), "id": pair.id}


class PreparedSplit:
    """A prepared copy as a data source: random access, picklable, safe to read from several threads."""

    def __init__(self, info: labels.DatasetInfo, directory: Path, split: str):
        self.info = info
        self._directory = directory
        raw = tfds.decode.SkipDecoding()
        builder: Any = tfds.builder_from_directory(builder_dir=str(directory))
        self._records = builder.as_data_source(split, decoders={"image": raw, "label": raw})

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        record = self._records[index]
        name = record["id"].decode()
        where = f"{self._directory} ({name})"
        return {
            "image": images.decode_image(record["image"], where),
            "label": images.decode_mask(record["label"], where),
            "id": name,
        }


def open_prepared(
    builder: type[PairBuilder], split: str, split_pairs: Sequence[Pair], *, cache: str, threads: int
) -> PreparedSplit:
    """The split as a data source, prepared first unless an up-to-date copy lies in `cache`."""
    info = builder.classes
    if not split_pairs:
        raise DataError(f"{info.name}: the split {split!r} lists no images; check its folder or list")
    if not cache:
        raise ConfigError("data.cache is empty; give a folder for prepared copies, as ~/.cache/fcn_jax")
    folder = Path(cache).expanduser() / info.name
    directory = folder / f"{split}-{_fingerprint(builder, split_pairs)}"
    if not directory.is_dir():
        print(f"preparing {info.name} {split} ({len(split_pairs)} images) …", file=sys.stderr, flush=True)
        _prepare(builder, split, split_pairs, directory, threads)
    return PreparedSplit(info, directory, split)


def _fingerprint(builder: type[PairBuilder], split_pairs: Sequence[Pair]) -> str:
    """Changes with the builder's version, the list of examples, and any file's name, size or time."""
    digest = hashlib.sha256(f"{builder.__name__} {builder.VERSION}\n".encode())
    for pair in split_pairs:
        digest.update(f"{pair.id} {pair.image.name} {pair.mask.name} {pairs.stamp(pair)}\n".encode())
    return digest.hexdigest()[:16]


def _prepare(
    builder: type[PairBuilder], split: str, split_pairs: Sequence[Pair], directory: Path, threads: int
) -> None:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _sweep(directory.parent)
        workshop = Path(tempfile.mkdtemp(prefix=f"unfinished-{split}-", dir=directory.parent))
    except OSError as error:
        raise DataError(f"{directory.parent}: cannot be written ({error.strerror}); set data.cache elsewhere") from None
    try:
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces itself at length
            made = builder(split=split, split_pairs=split_pairs, threads=threads, data_dir=str(workshop))
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
