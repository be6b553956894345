"""From a data source to the batches that a step takes.

The example at global position p = step · batch_size + i of the training stream depends on (seed, p) alone: on the p-th
entry of the permuted epochs and on a random stream of its own. So there is no state to save: a resumed run starts at
its step, and any number of hosts or threads sees the same global batches.
"""

import collections
import concurrent.futures
import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from fcn_jax.data import transforms
from fcn_jax.errors import ConfigError, DataError, UserError
from fcn_jax.inputs import InputSpec
from fcn_jax.labels import IGNORE, by_head


def train_batches(
    source: Any,
    augment: Any,
    input_spec: InputSpec,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    threads: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict]:
    """Endless batches from step `start_step` on: this host's rows of each global batch.

    A batch is `{"image": f32[b H W k], "label": u8[b H W], "index": i32[b]}`: input blobs, labels (by head where the
    source has several), and each example's place in the global batch. Every epoch is a fresh permutation of the source.
    Images of different sizes are padded at the bottom and right to the global batch's largest, with zeros and label
    255. Of those that other hosts read, only the sizes are asked.
    """
    transforms.check(augment)
    _check(source, input_spec)
    rows = _local_rows(batch_size, process_index, process_count)
    order_key, augment_key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    colored = input_spec.channels.startswith("RGB")

    @functools.lru_cache(maxsize=4)  # Grain's own shuffle takes milliseconds an example on sets of a few images
    def permutation(epoch: int) -> np.ndarray:
        return _stream_at(order_key, epoch).permutation(len(source))

    def index_at(position: int) -> int:
        epoch, place = divmod(position, len(source))
        return int(permutation(epoch)[place])

    def size_at(position: int) -> tuple[int, int]:
        return transforms.augmented_size(_size(source, index_at(position)), augment, _stream_at(augment_key, position))

    def example_at(local: int) -> dict:
        step, row = divmod(local, len(rows))
        first = step * batch_size
        stream = _stream_at(augment_key, first + rows[row])
        example = transforms.augment(source[index_at(first + rows[row])], augment, stream, input_spec.fill, colored)
        blob = input_spec(example["image"])
        # Crops have one size. On the largest of whole images hosts must agree: each example knows those that stand in
        # its place on the other hosts.
        peers = () if all(augment.crop) else range(row, batch_size, len(rows))
        sizes = [blob.shape[:2], *(size_at(first + peer) for peer in peers if peer != rows[row])]
        # `least`: the size that its batch has at least.
        return {"image": blob, "label": example["label"], "index": rows[row], "least": np.max(sizes, axis=0)}

    examples = grain.MapDataset.range(start_step * len(rows), sys.maxsize).map(example_at)
    return _elements(_in_threads(examples, threads, 2 * len(rows)).batch(len(rows), batch_fn=_collate))


def eval_batches(
    source: Any,
    input_spec: InputSpec,
    *,
    batch_size: int,
    threads: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict]:
    """All images once, in order, at their own sizes: this host's rows of each global batch.

    A batch is `{"image": f32[b h w k], "label": u8[b h w], "ids": list[str]}`, labels by head where the source has
    several. Consecutive images of equal size share a global batch, which is filled to `batch_size` with zero images
    whose labels are all 255; `ids` names the real ones among this host's rows. All hosts take the same number of steps
    of the same shapes: of several, each asks for the sizes of all images, and reads its own.
    """
    _check(source, input_spec)
    rows = _local_rows(batch_size, process_index, process_count)
    every = grain.MapDataset.range(len(source))

    def blob(index: int) -> dict:
        example = source[index]
        return example | {"image": input_spec(example["image"])}

    def alone() -> Iterator[dict]:
        examples = _elements(_in_threads(every.map(blob), threads, 2 * batch_size))
        for group in _groups(examples, lambda example: example["image"].shape, batch_size):
            yield _filled(group, batch_size, len(group))

    def beside_others() -> Iterator[dict]:
        sizes = _elements(_in_threads(every.map(functools.partial(_size, source)), threads, 4 * batch_size))
        groups = _groups(enumerate(sizes), lambda pair: pair[1], batch_size)
        begun = collections.deque[tuple[list[concurrent.futures.Future], int]]()
        with concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool:
            for group in itertools.chain(groups, [None]):
                if group is not None:
                    mine = group[rows.start : rows.stop]
                    # One of which nothing is ours still says of what channels and heads its empty images are.
                    begun.append(([pool.submit(blob, index) for index, _ in mine or group[:1]], len(mine)))
                # One group is read while the one before is worked on.
                while len(begun) > (group is not None):
                    reading, real = begun.popleft()
                    yield _filled([each.result() for each in reading], len(rows), real)

    return alone() if process_count == 1 else beside_others()


def _size(source: Any, index: int) -> tuple[int, int]:
    """Height and width of a source's image; it is read for that where the source has no `size`."""
    return source.size(index) if hasattr(source, "size") else source[index]["image"].shape[:2]


def _groups(items: Iterable[Any], size_of: Callable[[Any], Any], most: int) -> Iterator[list[Any]]:
    """Items of one size that follow each other, at most so many at a time."""
    for _, alike in itertools.groupby(items, size_of):
        while group := list(itertools.islice(alike, most)):
            yield group


def _check(source: Any, input_spec: InputSpec) -> None:
    """DataError on a source without images, ConfigError where the net wants to see others than it says it has."""
    if len(source) == 0:
        raise DataError(f"{_name(source)}: the split holds no images; check its folder or list")
    channels = getattr(source, "channels", input_spec.channels)
    if channels != input_spec.channels:
        fitting = channels.replace("RGB", "BGR")
        raise ConfigError(
            f"input.order is {input_spec.order!r}, but the images of {_name(source)} hold {channels}; set it to "
            f"{fitting!r}, and input.mean and input.scale with it"
        )


def _name(source: Any) -> str:
    return next(iter(by_head(source.info).values())).name


def _local_rows(batch_size: int, process_index: int, process_count: int) -> range:
    """The rows of a global batch that belong to this host."""
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(f"data.batch_size is {batch_size}; it must be a multiple of the {process_count} hosts")
    share = batch_size // process_count
    return range(process_index * share, (process_index + 1) * share)


def _stream_at(key: np.uint64, place: int) -> np.random.Generator:
    """The random stream number `place` of a key: Philox counts, so every place is reached at once."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, place]))


def _in_threads(examples: grain.MapDataset, threads: int, buffer: int) -> grain.IterDataset:
    # Threads, not processes: decoding and resizing release the interpreter's lock, and no process opens a device.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(buffer, threads))
    return examples.to_iter_dataset(options)


def _elements(examples: grain.IterDataset) -> Iterator[Any]:
    """The elements; the threads end with the generator, and errors arrive as the one plain line they are."""
    iterator = iter(examples)
    try:
        yield from iterator
    except Exception as error:
        # Not `except UserError`: when the interpreter ends under an open generator, module names are gone already.
        if isinstance(error, UserError):
            error.__notes__ = []  # Grain's, about its tracebacks
        raise
    finally:
        iterator.close()


def _collate(examples: Sequence[dict]) -> dict:
    """The examples as a batch, padded at the bottom and right to the largest size that one asks for."""
    height, width = np.max([example["least"] for example in examples], axis=0)
    batch = _empty_batch(len(examples), height, width, examples[0])
    for row, example in enumerate(examples):
        _put(batch, row, example)
    return batch | {"index": np.array([example["index"] for example in examples], np.int32)}


def _filled(examples: Sequence[dict], size: int, real: int) -> dict:
    """A batch that starts with the first `real` examples and ends in empty images, all of one shape."""
    height, width = examples[0]["image"].shape[:2]
    batch = _empty_batch(size, height, width, examples[0])
    for row, example in enumerate(examples[:real]):
        _put(batch, row, example)
    return batch | {"ids": [example["id"] for example in examples[:real]]}


def _empty_batch(size: int, height: int, width: int, like: dict) -> dict:
    """A batch of zero images whose labels are all 255, of as many channels and heads as the example `like`."""

    def nothing() -> np.ndarray:
        return np.full((size, height, width), IGNORE, np.uint8)

    label = {head: nothing() for head in like["label"]} if isinstance(like["label"], Mapping) else nothing()
    return {"image": np.zeros((size, height, width, like["image"].shape[2]), np.float32), "label": label}


def _put(batch: dict, row: int, example: dict) -> None:
    """Lays an example into a row of the batch, at its top left."""
    height, width = example["image"].shape[:2]
    batch["image"][row, :height, :width] = example["image"]
    for head, label in by_head(batch["label"]).items():
        label[row, :height, :width] = by_head(example["label"])[head]
