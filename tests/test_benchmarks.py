"""The benchmarks' own arithmetic: turns, records, counts of operations, drawn weights; and scripts on tiny cases."""

import itertools
import json
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    conv_shapes,
    draws,
    files,
    loader_rate,
    machine,
    memory,
    nets,
    peer_nets,
    peers,
    predict_latency,
    records,
    start_time,
    step_time,
    timing,
)
from fcn_jax.errors import DataError, UserError
from fcn_jax.losses import cross_entropy
from fcn_jax.ops.pooling import pooled_size

WHERE = records.Circumstances("2026-01-01 00:00", "abc", "a processor", 2, "1", "1", "", "", 100.0)


def test_runs_take_turns_and_warm_ups_do_not_count():
    calls = []
    seconds = itertools.count(1)

    def run(name):
        calls.append(name)
        return float(next(seconds))

    spent = timing.in_turn({name: lambda name=name: run(name) for name in ("ours", "peer")}, rounds=2, warm_up=1)
    assert calls == ["ours", "peer"] * 3
    assert spent == {"ours": [3.0, 5.0], "peer": [4.0, 6.0]}


def test_work_that_is_done_over_and_over_settles_in_every_turn():
    calls = []
    spent = timing.in_turn({"ours": lambda: calls.append(1) or float(len(calls))}, rounds=2, warm_up=0, settle=2)
    assert spent == {"ours": [3.0, 6.0]}


def test_a_summary_is_the_median_with_its_range():
    assert timing.summary([5.0, 1.0, 2.0]) == {"seconds": 2.0, "fastest": 1.0, "slowest": 5.0, "rounds": 3}


def test_short_calls_are_repeated(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def call():
        clock[0] += 0.25

    run = timing.repeated(call, enough=1.0)
    begun = clock[0]
    assert run() == 0.25
    assert clock[0] - begun == 1.0


def test_records_append_and_refuse_other_columns(tmp_path):
    rows = [{"ratio": 1.234567, "note": None}, {"ratio": 2.0, "note": "differs"}]
    log = records.Log("some", WHERE, tmp_path)
    log.append(rows[:1])
    log.append(rows[1:])
    found = records.read(log.path)
    assert [(row["ratio"], row["note"], row["commit"]) for row in found] == [
        ("1.2346", "", "abc"),
        ("2.0", "differs", "abc"),
    ]
    assert log.path.read_text().count("date,") == 1
    assert all(0 <= float(row["others"]) <= 1 for row in found)
    with pytest.raises(DataError, match="other columns"):
        log.append([{"ratio": 1.0}])


def test_a_table_is_aligned():
    text = records.table([{"name": "a", "ratio": 1.23456}, {"name": "long", "ratio": 12345.6}], ("name", "ratio"))
    assert text.splitlines() == ["name  ratio", "----  -----", "a      1.23", "long  12346"]


def test_circumstances_name_the_machine():
    where = records.circumstances(123.456, {"torch": "2"})
    assert (where.matrix_gflops, where.torch, where.onnxruntime) == (123.5, "2", "")
    assert where.cores == machine.cores() >= 1
    assert where.device and where.jax == jax.__version__


def test_draws_depend_on_name_and_shape_alone():
    kernel = draws.parameter("conv", "kernel", (3, 3, 16, 32))
    np.testing.assert_array_equal(kernel, draws.parameter("conv", "kernel", (3, 3, 16, 32)))
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 16)), rel=0.05)
    assert np.abs(kernel - draws.parameter("other", "kernel", kernel.shape)).max() > 0.1
    with pytest.raises(ValueError, match="moment"):
        draws.parameter("conv", "moment", (3,))
    labels = draws.labels(1, 64, 48)
    assert labels.shape == (1, 64, 48) and (labels[labels != 255] < draws.CLASSES).all()


@pytest.mark.parametrize("length", [3, 5, 11, 12])
def test_the_peers_pool_as_we_do(length):
    for kernel, stride, padding in ((2, 2, 0), (3, 2, 1), (3, 1, 1)):
        expected = pooled_size(length, kernel, stride, padding)
        assert peer_nets.pooled((length,), kernel, stride, padding, ceil=True) == (expected,)


def test_the_grid_of_shapes_is_large_and_sensible():
    shapes = conv_shapes.grid()
    assert len(set(shapes)) == len(shapes) >= 200
    assert {1, 256} <= {shape.side for shape in shapes}
    assert {3, 4096} <= {shape.inputs for shape in shapes}
    assert {shape.kernel for shape in shapes} == {1, 3, 7, 11}
    assert {shape.dilation for shape in shapes} == {1, 2, 12}
    assert {shape.stride for shape in shapes} == {1, 2, 4} and {shape.images for shape in shapes} == {1, 2, 4, 8}
    assert len({shape.name for shape in shapes}) == len(shapes)
    assert all(shape.operations <= 40e9 and shape.bytes <= 2**30 for shape in shapes)
    assert len(conv_shapes.chosen(shapes, 10, "")) == 10
    assert {shape.kernel for shape in conv_shapes.chosen(shapes, 0, "7x7")} == {7}


def test_shapes_are_measured_once_a_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "matrix_rate", lambda: 100.0)
    monkeypatch.setattr(timing, "bandwidth", lambda: 10.0)
    path = tmp_path / "conv_shapes.csv"
    shape = conv_shapes.Shape(4, 8, 8, 3, 1)
    for _ in range(2):
        conv_shapes.measure([shape], conv_shapes.WORKS, path, minutes=1, rounds=1)
    rows = records.read(path)
    assert [row["work"] for row in rows] == list(conv_shapes.WORKS)
    same = rows[0]
    assert same["same_program"] == "1" and same["ratio"] == "1.0"
    assert "1 shapes" in conv_shapes.report(rows)


def test_what_seemed_slower_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "matrix_rate", lambda: 100.0)
    monkeypatch.setattr(timing, "bandwidth", lambda: 10.0)
    ratios = iter((1.2, 0.5, 0.9, 0.95))

    def measured(shape, work, matrix_gflops, bandwidth, rounds):
        return {"shape": shape.name, "work": work, "ratio": next(ratios)}

    monkeypatch.setattr(conv_shapes, "measured", measured)
    path, shape = tmp_path / "conv_shapes.csv", conv_shapes.Shape(4, 8, 8, 3, 1)
    conv_shapes.measure([shape], conv_shapes.WORKS, path, minutes=1, rounds=1)
    for _ in range(2):
        conv_shapes.measure([shape], conv_shapes.WORKS, path, minutes=1, rounds=3, again=True)
    assert [row["work"] for row in records.read(path)] == [*conv_shapes.WORKS, "input"]
    assert [float(row["ratio"]) for row in conv_shapes.measured_here(path).values()] == [1.2, 0.95, 0.9]


# AlexNet's few layers are compiled soonest.
TINY = nets.Case("fcn_alexnet", (33, 40), {"padding": "same", "width": 1 / 64, "fc_width": 8})


@pytest.mark.slow
def test_both_steps_learn(fast_compilation):
    for work in ("plain step", "own step"):
        step = nets.WORKS[work](TINY)
        first, second = float(step()), float(step())
        assert np.isfinite(first) and first > 0
        assert second != first
        assert step_time._operations(*step.program()) > 0


def test_rows_of_a_step_without_peers(fast_compilation, monkeypatch):
    monkeypatch.setattr(peers, "python", lambda: None)
    (row,) = step_time.compare("tiny", TINY, "forward", rate=100.0, rounds=1)
    assert row["runner"] == "fcn_jax" and row["ratio"] == 1 and row["seconds"] > 0
    (row,) = predict_latency.size_rows("segnet", lambda picture: picture[..., 0], (8, 9), rounds=1)
    assert row["size"] == "8x9" and row["cold"] > 0


def test_our_loader_reads_what_was_written(tmp_path):
    files.write_pairs(tmp_path, 3, (40, 50))
    batch = next(files.our_batches(tmp_path, 2, {"flip": True, "crop": (32, 32)}))
    assert batch["image"].shape == (2, 32, 32, 3) and batch["label"].shape == (2, 32, 32)
    assert loader_rate.our_seconds(tmp_path, 1) > 0


def test_fused_heads_compute_what_plain_ones_do(fast_compilation):
    resampling = nets.make(nets.CASES["fcn8s-same"]).resampling((4, 5), (32, 40))
    scores = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 5, draws.CLASSES), np.float32))
    labels = jnp.asarray(draws.labels(1, 32, 40))
    found = memory.heads(resampling)
    assert set(found) == {"cross_entropy", "cross_entropy, weighted", "focal", "dice", "confusion", "argmax"}
    plain, fused = (jax.jit(form)(scores, labels)[0] for form in found["cross_entropy"])
    assert float(plain) == pytest.approx(float(cross_entropy(resampling(scores), labels)[0]), rel=1e-5)
    assert float(fused) == pytest.approx(float(plain), rel=1e-5)
    whole, by_rows = (np.asarray(jax.jit(form)(scores, labels)) for form in found["confusion"])
    np.testing.assert_array_equal(whole, by_rows)


def test_own_work_is_not_counted_as_others():
    others, before = machine.Others(), machine._own_seconds()
    begun = time.perf_counter()
    while time.perf_counter() - begun < 0.3:
        pass
    assert machine._own_seconds() - before > 0.1
    assert 0 <= others.share() <= 1


@pytest.mark.slow
@pytest.mark.usefixtures("libtpu")
def test_on_a_slice_the_head_holds_and_moves_no_logits_of_full_size():
    shape = 8, 384, 512
    logits = math.prod(shape) * draws.CLASSES * 4 / 2**20  # MiB; fewer would stay in the chip's fast memory
    rows = {(row["what"], row["runner"]): row for row in memory.slice_rows(shape, ["cross_entropy", "dice"])}
    for what in ("cross_entropy", "dice"):
        assert rows[what, "plain"]["moved_mib"] > logits > 4 * rows[what, "fused"]["moved_mib"], rows
        assert rows[what, "fused"]["peak_mib"] < logits / 8


def test_memory_is_told():
    assert machine.memory()["peak"] >= machine.memory()["now"] > 0


def test_a_difference_is_relative_to_the_largest_value():
    assert peers.difference(np.array([1.0, 4.0]), np.array([1.0, 5.0])) == pytest.approx(0.2)
    with pytest.raises(peers.PeerError, match="output is"):
        peers.difference(np.zeros(2), np.zeros(3))
    assert step_time._largest_gap([1.0, 2.0], [1.0, 4.0]) == 0.5


def test_a_peer_that_fails_says_why_in_a_line(tmp_path, monkeypatch):
    python = tmp_path / "python"
    reply = json.dumps({"error": "ValueError: no such net"})
    python.write_text(f"#!/bin/sh\nread line\necho '{reply}'\n")
    python.chmod(0o755)
    monkeypatch.setenv("FCN_JAX_PEERS", str(python))
    with peers.Peer() as peer, pytest.raises(peers.PeerError, match="at 'build': ValueError: no such net"):
        peer.ask(do="build")


def test_a_start_that_fails_says_so(tmp_path):
    with pytest.raises(UserError, match="ended before its first step: error: "):
        start_time.first_step("configs/none.py", Path(tmp_path))
