"""python -m fcn_jax.weights: what is in a file, where it would go, and the same as safetensors."""

import caffemodel_writer as writer
import jax
import numpy as np
import pytest
from cases import fill
from conftest import GOLDEN

from fcn_jax import models, state, weights
from fcn_jax.errors import ConfigError, WeightFileError
from fcn_jax.weights import __main__ as command


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.caffemodel"
    params = fill(state.abstract_params(models.create("fcn32s", 3, width=1 / 32, fc_width=8)))
    path.write_bytes(writer.net(writer.blobs_of(params)))
    return str(path)


def test_inspect(file, capsys):
    assert command.inspect(file, None) == 0
    printed = capsys.readouterr().out
    assert "net.caffemodel: caffemodel, 32 arrays" in printed and "arrays" in printed and "conv1_1.0" in printed
    assert "BGR minus (104.007, 116.669, 122.679)" in printed
    assert "→" not in printed


def test_inspect_with_a_model(file, capsys):
    assert command.inspect(file, "fcn32s") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert lines["conv1_1.0"].endswith("→ conv1_1/kernel 3×3×3×2")
    assert lines["score_fr.1"].endswith("→ score_fr/bias 3")


def test_inspect_says_what_does_not_fit(file, capsys):
    assert command.inspect(file, "fcn8s") == 1
    printed = capsys.readouterr().out
    assert "conv1_1.0" in printed
    assert printed.splitlines()[-1].startswith("does not load as fcn8s: ")


@pytest.mark.parametrize(
    ("name", "model", "line", "last"),
    [
        ("fcn_resnet50", "fcn_resnet50", "backbone.bn1.running_mean", "parameters from"),
        ("vgg11_bn", "vgg11", "features.1.running_mean", "does not load as vgg11: "),
    ],
)
def test_inspect_a_torch_file_with_batch_norm(name, model, line, last, capsys):
    """Its counters of batches are listed, and go nowhere."""
    path = str(GOLDEN / "torch_nets" / f"{name}.pth")
    command.inspect(path, model)
    printed = capsys.readouterr().out.splitlines()
    assert any(text.split()[0] == line and "→" in text for text in printed)
    counters = [text for text in printed if "num_batches_tracked" in text.split()[0]]
    assert counters and not any("→" in text for text in counters)
    assert last in printed[-1]


def test_inspect_as_a_start(tmp_path, capsys):
    """A classifier's file, of which the new net takes the first layer."""
    path = tmp_path / "first.caffemodel"
    rng = np.random.RandomState(0)
    blobs = {"conv1_1.0": rng.normal(size=(64, 3, 3, 3)), "conv1_1.1": rng.normal(size=64), "fc8.0": np.ones((5, 4))}
    path.write_bytes(writer.net({name: blob.astype(np.float32) for name, blob in blobs.items()}))
    assert command.inspect(str(path), "voc-fcn8s", ["conv1_2", "conv[2-5]*", "fc*", "score_*"]) == 0
    printed = capsys.readouterr().out
    assert "→ conv1_1/kernel 3×3×3×64" in printed and "→ not read" in printed
    assert "starts voc-fcn8s with 21 classes: 1,792 of 134," in printed
    assert command.inspect(str(path), "voc-fcn8s", ["fc8"]) == 1


def test_convert(file, tmp_path, capsys):
    target = str(tmp_path / "net.safetensors")
    assert command.convert(file, target, overwrite=True) == 0
    assert "arrays" in capsys.readouterr().out
    before, after = weights.read(file), weights.read(target)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    with pytest.raises(WeightFileError, match="exists: choose another name"):
        command.convert(file, target, overwrite=False)
    with pytest.raises(ConfigError, match=r"let its name end in \.safetensors"):
        command.convert(file, str(tmp_path / "net.npz"), overwrite=False)
    variables = weights.load_model(target, "fcn32s")[1]
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, weights.load_model(file, "fcn32s")[1]))
