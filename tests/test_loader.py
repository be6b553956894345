"""The stream of batches: a pure function of (seed, position), whatever hosts and threads there are."""

import dataclasses
import itertools
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fcn_jax.data import loader
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.inputs import (
    FCN_INPUT,
    NYUD_COLOR_DEPTH_INPUT,
    NYUD_COLOR_HHA_INPUT,
    NYUD_COLOR_INPUT,
    NYUD_HHA_INPUT,
    InputSpec,
)
from fcn_jax.labels import DatasetInfo

PLAIN = SimpleNamespace(flip=False, scale=(1.0, 1.0), short_side=(0, 0), crop=(0, 0), color=0.0)
BUSY = SimpleNamespace(flip=True, scale=(0.5, 2.0), short_side=(0, 0), crop=(10, 12), color=0.3)
RAW = InputSpec(order="RGB", mean=(0.0, 0.0, 0.0))


@dataclasses.dataclass
class Numbered:
    """Images whose every pixel is their index; shapes one after the other."""

    length: int
    shapes: tuple = ((4, 5),)
    broken: int = -1
    info: DatasetInfo = DatasetInfo("numbered", ("a",), ((0, 0, 0),))  # noqa: RUF009, it is frozen

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index == self.broken:
            raise DataError(f"{index}.png: damaged")
        shape = self.shapes[index % len(self.shapes)]
        return {
            "image": np.full((*shape, 3), index, np.uint8),
            "label": np.full(shape, index, np.uint8),
            "id": f"image{index}",
        }


@dataclasses.dataclass
class Rooms(Numbered):
    """Images of colours and whatever else, and of two label maps: the index, and the index plus 100."""

    channels: str = "RGBHHA"

    def __post_init__(self):
        heads = {"sem": ("a",), "geo": ("b",)}
        self.info = {head: DatasetInfo("rooms", names, ((0, 0, 0),)) for head, names in heads.items()}  # pyright: ignore

    def __getitem__(self, index):
        one = super().__getitem__(index)
        image = np.repeat(one["image"][..., :1], len(self.channels), axis=2)
        if "D" in self.channels:
            image = image.astype(np.float32)
        return one | {"image": image, "label": {"sem": one["label"], "geo": one["label"] + np.uint8(100)}}


def train(source, count, *, augment=PLAIN, spec=RAW, **arguments):
    arguments = {"batch_size": 4, "seed": 0, "start_step": 0, "threads": 2} | arguments
    return list(itertools.islice(loader.train_batches(source, augment, spec, **arguments), count))


def order(batches):
    return [int(label[0, 0]) for batch in batches for label in batch["label"]]


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def test_batches_have_the_agreed_form():
    (batch,) = train(Numbered(10), 1, spec=FCN_INPUT)
    assert batch["image"].shape == (4, 4, 5, 3) and batch["image"].dtype == np.float32
    assert batch["label"].shape == (4, 4, 5) and batch["label"].dtype == np.uint8
    assert batch["index"].tolist() == [0, 1, 2, 3] and batch["index"].dtype == np.int32
    first = float(batch["label"][0, 0, 0])
    assert batch["image"][0, 0, 0] == pytest.approx([first - mean for mean in FCN_INPUT.mean])  # B, G, R minus the mean


@pytest.mark.parametrize("length", [1, 2, 7, 10])
def test_every_epoch_is_a_permutation(length):
    numbers = order(train(Numbered(length), 3 * length))  # 12 epochs
    for epoch in range(12):
        assert sorted(numbers[epoch * length : (epoch + 1) * length]) == list(range(length))


def test_epochs_and_seeds_differ():
    epochs = np.reshape(order(train(Numbered(40), 40)), (4, 40))
    others = np.reshape(order(train(Numbered(40), 40, seed=1)), (4, 40))
    assert len({tuple(epoch) for epoch in [*epochs, *others]}) == 8  # not even shifted by an epoch


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_same_whatever_the_threads(threads):
    for first, second in zip(
        train(Numbered(7), 5, augment=BUSY), train(Numbered(7), 5, augment=BUSY, threads=threads), strict=True
    ):
        assert equal(first, second)


def test_starting_later_is_being_there():
    all_along = train(Numbered(7), 9, augment=BUSY)
    for first, second in zip(all_along[6:], train(Numbered(7), 3, augment=BUSY, start_step=6), strict=True):
        assert equal(first, second)
    assert train(Numbered(7), 1, start_step=10**9)[0]["label"].shape == (4, 4, 5)  # at once, not step by step


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_slice_the_global_batch(hosts):
    whole = train(Numbered(7), 4, augment=BUSY)
    parts = [train(Numbered(7), 4, augment=BUSY, process_index=host, process_count=hosts) for host in range(hosts)]
    for step in range(4):
        for key in ("image", "label", "index"):
            joined = np.concatenate([part[step][key] for part in parts])
            assert np.array_equal(joined, whole[step][key])


def test_hosts_agree_on_the_largest_size():
    source = Numbered(5, shapes=((4, 5), (6, 3), (2, 9)))
    whole = train(source, 3)
    parts = [train(source, 3, process_index=host, process_count=2) for host in range(2)]
    for step in range(3):
        assert parts[0][step]["label"].shape[1:] == parts[1][step]["label"].shape[1:]
        for key in ("image", "label", "index"):
            assert np.array_equal(np.concatenate([part[step][key] for part in parts]), whole[step][key])


@dataclasses.dataclass
class Sized(Numbered):
    """Tells sizes without being read, and notes what is."""

    read: list = dataclasses.field(default_factory=list)

    def size(self, index):
        return self.shapes[index % len(self.shapes)]

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


SHAPES = ((4, 5), (6, 3), (2, 9))
WHOLE = SimpleNamespace(flip=True, scale=(0.5, 3.0), short_side=(0, 0), crop=(0, 0), color=0.0)
BY_SHORT_SIDE = SimpleNamespace(flip=True, scale=(1.0, 1.0), short_side=(3, 11), crop=(0, 0), color=0.0)


@pytest.mark.parametrize("augment", [WHOLE, BY_SHORT_SIDE])
def test_hosts_read_their_own_images_alone(augment):
    """Of the others' they ask the sizes, and know what augmentation makes of them."""
    whole = train(Numbered(40, shapes=SHAPES), 3, augment=augment)
    sources = [Sized(40, shapes=SHAPES) for _ in range(2)]
    parts = [
        train(source, 3, augment=augment, process_index=host, process_count=2, threads=0)
        for host, source in enumerate(sources)
    ]
    for step in range(3):
        for key in ("image", "label", "index"):
            assert np.array_equal(np.concatenate([part[step][key] for part in parts]), whole[step][key])
    for part, source in zip(parts, sources, strict=True):
        assert source.read == [np.min(label) for batch in part for label in batch["label"]]


def test_augmentation_follows_the_position_not_the_batch_size():
    by_four, by_two = train(Numbered(7), 2, augment=BUSY), train(Numbered(7), 4, augment=BUSY, batch_size=2)
    for key in ("image", "label"):
        first, second = (np.concatenate([batch[key] for batch in batches]) for batches in (by_four, by_two))
        assert np.array_equal(first, second)


def test_the_same_image_is_augmented_anew_each_time():
    batches = train(
        Numbered(1), 3, augment=SimpleNamespace(flip=False, scale=(1.0, 1.0), short_side=(0, 0), crop=(8, 9), color=0.0)
    )
    places = {label.tobytes() for batch in batches for label in batch["label"]}
    assert len(places) > 6


def test_sizes_in_one_batch_are_padded_to_the_largest():
    (batch,) = train(Numbered(2, shapes=((4, 5), (6, 3))), 1, batch_size=2, spec=FCN_INPUT)
    assert batch["label"].shape == (2, 6, 5)
    for image, label in zip(batch["image"], batch["label"], strict=True):
        height, width = (4, 5) if label[0, 0] == 0 else (6, 3)
        assert (label[:height, :width] == label[0, 0]).all() and (image[:height, :width] != 0).all()
        assert (label != 255).sum() == height * width
        assert not image[height:].any() and not image[:, width:].any()


def test_padding_around_a_small_crop_is_zero_in_the_blob():
    augment = SimpleNamespace(flip=True, scale=(1.0, 1.0), short_side=(0, 0), crop=(9, 9), color=0.5)
    for batch in train(Numbered(3), 3, augment=augment, spec=FCN_INPUT):
        outside = batch["label"] == 255
        assert outside.sum(axis=(1, 2)).tolist() == [81 - 20] * 4
        assert not batch["image"][outside].any() and batch["image"][~outside].all()


def evaluate(source, **arguments):
    arguments = {"batch_size": 4, "threads": 2} | arguments
    return list(loader.eval_batches(source, RAW, **arguments))


def test_evaluation_sees_every_image_once_in_order():
    batches = evaluate(Numbered(7))
    assert [batch["ids"] for batch in batches] == [[f"image{i}" for i in range(4)], [f"image{i}" for i in range(4, 7)]]
    last = batches[1]
    assert last["image"].shape == (4, 4, 5, 3) and last["label"][:, 0, 0].tolist() == [4, 5, 6, 255]
    assert (last["label"][3] == 255).all() and not last["image"][3].any()
    assert (last["image"][2] == 6).all()


def test_evaluation_groups_equal_sizes_only():
    batches = evaluate(Numbered(5, shapes=((4, 5), (4, 5), (6, 3))))
    assert [batch["image"].shape[1:3] for batch in batches] == [(4, 5), (6, 3), (4, 5)]
    assert [len(batch["ids"]) for batch in batches] == [2, 1, 2]
    assert all(len(batch["label"]) == 4 for batch in batches)


def test_evaluation_hosts_take_the_same_steps():
    source = Numbered(5, shapes=((4, 5), (4, 5), (6, 3)))
    whole = evaluate(source)
    parts = [evaluate(source, process_index=host, process_count=2) for host in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert np.array_equal(np.concatenate([first["label"], second["label"]]), batch["label"])
        assert np.array_equal(np.concatenate([first["image"], second["image"]]), batch["image"])
        assert first["ids"] + second["ids"] == batch["ids"]


def test_evaluation_hosts_read_their_own_images_alone():
    shapes = ((4, 5), (4, 5), (4, 5), (6, 3))
    sources = [Sized(12, shapes=shapes) for _ in range(2)]
    parts = [evaluate(source, process_index=host, process_count=2, threads=0) for host, source in enumerate(sources)]
    for batch, *shares in zip(evaluate(Numbered(12, shapes=shapes)), *parts, strict=True):
        assert np.array_equal(np.concatenate([share["image"] for share in shares]), batch["image"])
    # The second one's first row is empty at the single images, and made like them.
    assert [source.read for source in sources] == [[0, 1, 3, 4, 5, 7, 8, 9, 11], [2, 3, 6, 7, 10, 11]]


def test_one_image_on_many_hosts():
    parts = [evaluate(Numbered(1), batch_size=8, process_index=host, process_count=8) for host in range(8)]
    assert [len(part) for part in parts] == [1] * 8
    assert [part[0]["ids"] for part in parts] == [["image0"]] + [[]] * 7


def test_batches_of_many_channels_and_several_heads():
    (batch,) = train(Rooms(10), 1, spec=NYUD_COLOR_HHA_INPUT)
    assert batch["image"].shape == (4, 4, 5, 6) and batch["image"].dtype == np.float32
    assert list(batch["label"]) == ["sem", "geo"]
    assert all(label.shape == (4, 4, 5) and label.dtype == np.uint8 for label in batch["label"].values())
    assert np.array_equal(batch["label"]["geo"], batch["label"]["sem"] + np.uint8(100))
    first = float(batch["label"]["sem"][0, 0, 0])
    assert batch["image"][0, 0, 0] == pytest.approx([first - mean for mean in NYUD_COLOR_HHA_INPUT.mean], rel=1e-5)


def test_many_channels_and_heads_are_augmented_as_one():
    spec = NYUD_COLOR_DEPTH_INPUT
    for batch in train(Rooms(7, channels="RGBD"), 5, augment=BUSY, spec=spec):
        outside = batch["label"]["sem"] == 255
        assert np.array_equal(outside, batch["label"]["geo"] == 255) and outside.any()
        assert not batch["image"][outside].any()
        # Depth, the last channel, is the index: colours were jittered, it was not.
        depth = batch["image"][..., 3] + np.float32(spec.mean[3])
        np.testing.assert_allclose(depth[~outside], batch["label"]["sem"][~outside], atol=1e-4)
        assert np.array_equal(batch["label"]["geo"][~outside], batch["label"]["sem"][~outside] + np.uint8(100))


def test_hha_is_no_colour_to_jitter():
    jittered = SimpleNamespace(flip=False, scale=(1.0, 1.0), short_side=(0, 0), crop=(0, 0), color=0.9)
    source = Rooms(7, channels="HHA")
    for plain, batch in zip(
        train(source, 3, spec=NYUD_HHA_INPUT), train(source, 3, augment=jittered, spec=NYUD_HHA_INPUT), strict=True
    ):
        assert np.array_equal(batch["image"], plain["image"])
    colors = Rooms(7, channels="RGB")
    first, second = (train(colors, 1, augment=a, spec=NYUD_COLOR_INPUT)[0] for a in (PLAIN, jittered))
    assert not np.array_equal(first["image"], second["image"])


def test_sizes_of_several_heads_are_padded_with_255():
    (batch,) = train(Rooms(2, shapes=((4, 5), (6, 3))), 1, batch_size=2, spec=NYUD_COLOR_HHA_INPUT)
    for head in ("sem", "geo"):
        assert batch["label"][head].shape == (2, 6, 5)
        assert (batch["label"][head] != 255).sum() == 20 + 18
        assert not batch["image"][batch["label"][head] == 255].any()


def test_evaluation_fills_up_every_head():
    batches = list(loader.eval_batches(Rooms(5), NYUD_COLOR_HHA_INPUT, batch_size=4, threads=2))
    assert [batch["ids"] for batch in batches] == [[f"image{i}" for i in range(4)], ["image4"]]
    last = batches[1]
    assert last["image"].shape == (4, 4, 5, 6) and not last["image"][1:].any()
    assert last["label"]["sem"][:, 0, 0].tolist() == [4, 255, 255, 255]
    assert last["label"]["geo"][:, 0, 0].tolist() == [104, 255, 255, 255]


def test_hosts_slice_every_head():
    source = Rooms(5, shapes=((4, 5), (6, 3)))
    whole = train(source, 3, spec=NYUD_COLOR_HHA_INPUT)
    parts = [train(source, 3, spec=NYUD_COLOR_HHA_INPUT, process_index=host, process_count=2) for host in range(2)]
    for step in range(3):
        for head in ("sem", "geo"):
            joined = np.concatenate([part[step]["label"][head] for part in parts])
            assert np.array_equal(joined, whole[step]["label"][head])


@pytest.mark.parametrize(
    ("channels", "spec", "message"),
    [
        ("RGBHHA", FCN_INPUT, r"^input.order is 'BGR', but the images of rooms hold RGBHHA; set it to 'BGRHHA'"),
        ("HHA", NYUD_COLOR_INPUT, "set it to 'HHA'"),
        ("RGB", NYUD_HHA_INPUT, "the images of rooms hold RGB; set it to 'BGR'"),
        ("RGBD", NYUD_COLOR_HHA_INPUT, "set it to 'BGRD'"),
    ],
)
def test_a_net_that_wants_other_channels_is_refused(channels, spec, message):
    with pytest.raises(ConfigError, match=message):
        train(Rooms(5, channels=channels), 1, spec=spec)
    with pytest.raises(ConfigError, match=message):
        list(loader.eval_batches(Rooms(5, channels=channels), spec, batch_size=2, threads=1))


def test_what_goes_wrong_in_a_thread_arrives_as_it_is():
    with pytest.raises(DataError, match=r"^3\.png: damaged$"):
        train(Numbered(5, broken=3), 5)
    with pytest.raises(DataError, match=r"^3\.png: damaged$"):
        evaluate(Numbered(5, broken=3))


def test_contradictions_are_named_before_anything_is_read():
    with pytest.raises(DataError, match=r"numbered: the split holds no images"):
        train(Numbered(0), 1)
    with pytest.raises(DataError, match=r"numbered: the split holds no images"):
        evaluate(Numbered(0))
    with pytest.raises(DataError, match=r"rooms: the split holds no images"):
        train(Rooms(0), 1, spec=NYUD_COLOR_HHA_INPUT)
    with pytest.raises(ConfigError, match=r"data.batch_size is 4; it must be a multiple of the 3 hosts"):
        train(Numbered(5), 1, process_count=3)
    with pytest.raises(ConfigError, match=r"data.batch_size is 0"):
        evaluate(Numbered(5), batch_size=0)
    with pytest.raises(ConfigError, match=r"augment.scale"):
        train(
            Numbered(5),
            1,
            augment=SimpleNamespace(flip=False, scale=(0.0, 1.0), short_side=(0, 0), crop=(0, 0), color=0.0),
        )


def test_a_program_may_end_in_the_middle_of_a_stream():
    program = """
import numpy, types
from fcn_jax.data import loader
from fcn_jax.inputs import FCN_INPUT
source = [{"image": numpy.zeros((4, 5, 3), "u1"), "label": numpy.zeros((4, 5), "u1"), "id": "x"}] * 9
augment = types.SimpleNamespace(flip=True, scale=(1.0, 1.0), short_side=(0, 0), crop=(0, 0), color=0.0)
training = loader.train_batches(source, augment, FCN_INPUT, batch_size=2, seed=0, start_step=0, threads=3)
evaluation = loader.eval_batches(source, FCN_INPUT, batch_size=2, threads=3)
next(training), next(evaluation)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
