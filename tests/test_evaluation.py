"""Every pixel of every image once: by batches on devices, one by one, and from files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fcn_jax import config as experiment
from fcn_jax import evaluation, labels, metrics, parallel, state, steps, visualize
from fcn_jax.errors import DataError
from fcn_jax.labels import DatasetInfo

INFO = DatasetInfo("blocks", ("ground", "tree", "sky"), ((0, 0, 0), (0, 128, 0), (0, 0, 255)))
SIZES = [(20, 30), (20, 30), (20, 30), (17, 9), (20, 30), (1, 40), (1, 40)]


class Blocks:
    """Images of several sizes, with void pixels, one of them void altogether."""

    info = INFO

    def __init__(self, sizes=SIZES):
        rng = np.random.default_rng(0)
        self.examples = []
        for number, size in enumerate(sizes):
            label = rng.integers(0, 3, size).astype(np.uint8)
            label[rng.random(size) < 0.3] = 255
            image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
            self.examples.append({"image": image, "label": label, "id": f"image_{number}"})
        self.examples[1]["label"][:] = 255

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def by_hand(source, predictions) -> np.ndarray:
    matrix = np.zeros((3, 3), np.int64)
    for example, prediction in zip(source.examples, predictions, strict=True):
        valid = example["label"] < 3
        np.add.at(matrix, (example["label"][valid], prediction[valid]), 1)
    return matrix


pytestmark = pytest.mark.usefixtures("fast_compilation")


@pytest.fixture(scope="module")
def source():
    return Blocks()


@pytest.fixture(scope="module")
def net():
    config = tiny.config(**{"model.name": "fcn8s"})
    model = experiment.make_model(config, 3)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, np.sqrt(2 / max(np.prod(x.shape[:-1]), 8)), x.shape), jnp.float32),
        state.abstract_params(model),
    )
    # Scores that differ from cell to cell, and no class that wins everywhere.
    params["score_pool3"] = jax.tree.map(lambda x: 30 * (x - jnp.mean(x, -1, keepdims=True)), params["score_pool3"])
    params["score_pool3"]["bias"] = jnp.zeros(3)
    return model, params, experiment.input_spec(config)


def only(evaluate):
    """The result of the only head."""
    return lambda *arguments, **options: labels.only_head(evaluate(*arguments, **options))


@pytest.fixture(scope="module")
def one_by_one(source, net):
    model, params, spec = net
    predict = evaluation.predicted_labels(model)
    return [np.asarray(predict({"params": params}, spec(example["image"])[None])[0]) for example in source.examples]


@pytest.mark.parametrize(("devices", "mode"), [(8, "pmap"), (2, "mesh"), (8, "shards")])
def test_batches_on_devices_count_what_single_images_do(source, net, one_by_one, devices, mode, monkeypatch):
    """Seven images of three sizes, in batches of four, which eight devices round up."""
    model, params, spec = net
    mesh = parallel.make_mesh(jax.local_devices()[:devices])
    monkeypatch.setattr(parallel, "_WORTH_SHARDING", 1)
    shard_state, mode = mode == "shards", mode.replace("shards", "mesh")
    eval_step = parallel.wrap_eval_step(steps.make_eval_step(model), mesh, mode, shard_state)
    result = only(evaluation.evaluate_net)(
        eval_step,
        parallel.put_state({"params": params}, mesh, shard_state),
        source,
        spec,
        mesh,
        mode,
        batch_size=4,
        threads=2,
    )
    wanted = by_hand(source, one_by_one)
    np.testing.assert_array_equal(result.matrix, wanted)
    assert result.matrix.dtype == np.int64
    assert len(np.unique(np.concatenate([prediction.ravel() for prediction in one_by_one]))) > 1
    labelled = int(sum((example["label"] != 255).sum() for example in source.examples))
    assert result.counted_line() == f"7 of 7 images, {labelled} of {labelled} labelled pixels counted"


def test_a_predictor_is_scored_and_its_predictions_saved(source, one_by_one, tmp_path):
    predictions = iter(one_by_one)
    result = only(evaluation.evaluate_predictor)(source, lambda image: next(predictions), tmp_path / "val")
    np.testing.assert_array_equal(result.matrix, by_hand(source, one_by_one))
    assert len(list((tmp_path / "val").iterdir())) == 7
    # What was saved is scored alike.
    again = only(evaluation.evaluate_files)(source, tmp_path / "val")
    np.testing.assert_array_equal(again.matrix, result.matrix)
    assert again.counted_line() == result.counted_line()


def test_only_earlier_results_are_replaced(source, one_by_one, tmp_path):
    predictions = iter(one_by_one)
    result = only(evaluation.evaluate_predictor)(source, lambda image: next(predictions), None)
    net = "step 9 of runs/a"
    for step in (9, 12):
        evaluation.check_outputs(tmp_path, "val", [""], f"step {step} of runs/a", True, False)
        result.write(tmp_path, "val", net)
    (tmp_path / "test.json").write_text('{"somebody": "else"}')
    for split, origin in (("test", net), ("val", "step 9 of runs/b"), ("val", "predictions in others")):
        with pytest.raises(DataError, match=rf"{split}\.\* is no earlier result of {origin}: .* or say --overwrite"):
            evaluation.check_outputs(tmp_path, split, [""], origin, False, False)
        evaluation.check_outputs(tmp_path, split, [""], origin, False, True)
    pictures = evaluation.prediction_folder(tmp_path, "val")
    pictures.mkdir()
    (pictures / "mine.png").write_text("")
    with pytest.raises(DataError, match=r"val_predictions holds files"):
        evaluation.check_outputs(tmp_path, "val", [""], net, True, False)


@pytest.fixture
def folder(source, one_by_one, tmp_path):
    for example, prediction in zip(source.examples, one_by_one, strict=True):
        visualize.write_png(tmp_path / f"{example['id']}.png", prediction)
    return tmp_path


def test_files_are_scored_exactly(source, one_by_one, folder):
    result = only(evaluation.evaluate_files)(source, folder)
    np.testing.assert_array_equal(result.matrix, by_hand(source, one_by_one))


def fault(source, folder) -> str:
    with pytest.raises(DataError) as caught:
        evaluation.evaluate_files(source, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_faulty_predictions_are_named(source, folder):
    path = folder / "image_3.png"
    visualize.write_png(path, np.zeros((9, 17), np.uint8))
    assert f"{path} is 9 × 17, its label 17 × 9: predictions are label maps" in fault(source, folder)
    visualize.write_png(path, np.zeros((17, 9, 3), np.uint8))
    assert f"{path} is 17 × 9 × 3, its label 17 × 9" in fault(source, folder)
    visualize.write_png(path, np.full((17, 9), 3, np.uint8))
    assert f"{path} predicts 3, the classes are 0 … 2: a prediction names a class for every pixel" in fault(
        source, folder
    )
    path.write_bytes(path.read_bytes()[:40])
    assert str(path) in fault(source, folder)
    path.unlink()
    assert f"{path}: no such file" in fault(source, folder)


def test_results_are_written_and_tabled(source, one_by_one, folder):
    result = only(evaluation.evaluate_files)(source, folder)
    result.write(folder / "new" / "evaluation", "val", "predictions")
    written = json.loads((folder / "new" / "evaluation" / "val.json").read_text())
    wanted = metrics.scores(by_hand(source, one_by_one))
    assert written["val/mean_iou"] == pytest.approx(wanted.mean_iou)
    assert written["val/iou/01_tree"] == pytest.approx(wanted.iou[1])
    assert (written["images"], written["pixels"]) == (7, int(result.matrix.sum()))
    assert written["confusion"] == result.matrix.tolist()
    table = (folder / "new" / "evaluation" / "val.txt").read_text()
    assert table == result.table() + "\n"
    assert " 1 tree" in table
    assert f"{wanted.mean_iou:.4f}" in table
    assert "7 of 7 images" in table


@pytest.mark.parametrize(("tree", "warned"), [(11, False), (9, True), (0, True)])
def test_one_sided_predictions(tree, warned):
    matrix = np.array([[500, 0, 0], [500 - tree, tree, 0], [0, 0, 0]])
    warning = evaluation.Evaluation(INFO, 1, matrix).one_sided()
    assert (warning is not None) == warned
    if warning:
        assert warning.startswith(f"warning: {100 - tree / 10:.1f} % of the predictions are 'ground'.")


def test_pictures_are_spread_over_the_split(source):
    shown = list(evaluation.pictures(source, lambda image: np.zeros(image.shape[:2], np.uint8), 3))
    assert [name for name, _ in shown] == ["image_0", "image_3", "image_6"]
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for _, picture in shown)
    assert len(list(evaluation.pictures(source, lambda image: np.zeros(image.shape[:2], np.uint8), 50))) == 7
