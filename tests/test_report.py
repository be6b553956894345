import json

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

from fcn_jax.errors import CheckpointError
from fcn_jax.metrics import Scores
from fcn_jax.report import Reporter, due, progress_line, score_entries, score_table

SCORES = Scores(0.9, 0.75, 0.5, 0.8, np.array([0.7, 0.3, np.nan]), np.array([0.9, 0.6, np.nan]))
NAMES = ("sky", "tv/monitor", "potted plant")


def reported(workdir) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events(workdir) -> list[Event]:
    """All events of a workdir, oldest file first: records of length (u64), its CRC (u32), bytes, their CRC (u32)."""
    found = []
    for path in sorted(workdir.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        raw = path.read_bytes()
        while raw:
            length = int.from_bytes(raw[:8], "little")
            found.append(Event.FromString(raw[12 : 12 + length]))
            raw = raw[16 + length :]
    return found


@pytest.mark.parametrize(
    ("every", "last", "steps"),
    [(1, 3, [1, 2, 3]), (5, 12, [5, 10, 12]), (5, 10, [5, 10]), (20, 12, [12]), (0, 12, [12]), (0, 0, [0])],
)
def test_due_at_multiples_and_at_the_last_step(every, last, steps):
    assert [step for step in range(last + 1) if due(step, every, last)] == steps


def test_due_refuses_a_negative_interval():
    with pytest.raises(ValueError, match="0 or more, not -1"):
        due(1, -1, 10)


def test_each_step_stands_once_and_reports_join(tmp_path):
    with Reporter(tmp_path) as reporter:
        reporter.scalars(1, {"train/loss": np.float32(0.5)})
        reporter.scalars(2, {"train/loss": 0.25, "count": np.int64(7)})
        assert len(reported(tmp_path)) == 2  # on disk at once, not when closed
        reporter.scalars(2, {"val/mean_iou": 0.125})
        reporter.scalars(3, {"train/loss": 0.1})
    assert reported(tmp_path) == [
        {"step": 1, "train/loss": 0.5},
        {"step": 2, "train/loss": 0.25, "count": 7, "val/mean_iou": 0.125},
        {"step": 3, "train/loss": 0.1},
    ]
    assert not list(tmp_path.glob("*.new"))


def test_steps_must_not_fall(tmp_path):
    with Reporter(tmp_path) as reporter:
        reporter.scalars(2, {"a": 1.0})
        with pytest.raises(ValueError, match="step 1 is reported after step 2"):
            reporter.scalars(1, {"a": 1.0})


def test_what_is_not_finite_is_null(tmp_path):
    with Reporter(tmp_path) as reporter:
        reporter.scalars(1, {"nan": float("nan"), "inf": np.float32(np.inf), "zero": 0})
    assert reported(tmp_path) == [{"step": 1, "nan": None, "inf": None, "zero": 0}]


def test_resuming_drops_later_steps_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 3, "a": 3}\n{"step": 4, "a"')
    with Reporter(tmp_path, resume_step=2) as reporter:
        assert reported(tmp_path) == [{"step": 1, "a": 1}, {"step": 2, "a": 2}]
        reporter.scalars(2, {"b": 5})
        reporter.scalars(3, {"a": 6})
    assert reported(tmp_path) == [{"step": 1, "a": 1}, {"step": 2, "a": 2, "b": 5}, {"step": 3, "a": 6}]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}')
    with Reporter(tmp_path, resume_step=5) as reporter:
        reporter.scalars(6, {"a": 6})
    assert [line["step"] for line in reported(tmp_path)] == [1, 2, 6]


@pytest.mark.parametrize("bad", ["not json", "[1]", '{"loss": 1}', '{"step": "x"}'])
def test_a_bad_line_inside_is_named_and_nothing_is_lost(tmp_path, bad):
    text = f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2 is not a report with a step"):
        Reporter(tmp_path, resume_step=2)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_death_while_rewriting_leaves_the_old_lines(tmp_path, monkeypatch):
    class Death(BaseException):
        pass

    def die(*_):
        raise Death

    reporter = Reporter(tmp_path)
    reporter.scalars(1, {"a": 1})
    with monkeypatch.context() as patched, pytest.raises(Death):
        patched.setattr("pathlib.Path.replace", die)
        reporter.scalars(1, {"b": 2})
    reporter.close()
    assert reported(tmp_path) == [{"step": 1, "a": 1}]


def test_tensorboard_gets_numbers_and_pictures_and_is_purged_on_resume(tmp_path):
    with Reporter(tmp_path) as reporter:
        reporter.scalars(3, {"train/loss": 0.5, "val/iou/00_sky": float("nan")})
        reporter.image(3, "val/strip", np.zeros((4, 6, 3), np.uint8))
    values = [(event.step, value) for event in events(tmp_path) for value in event.summary.value]
    assert [(step, value.tag) for step, value in values] == [(3, "train/loss"), (3, "val/strip")]
    assert values[0][1].simple_value == 0.5
    assert (values[1][1].image.height, values[1][1].image.width) == (4, 6)
    assert not any(event.HasField("session_log") for event in events(tmp_path))
    Reporter(tmp_path, resume_step=2).close()
    assert len(list(tmp_path.glob("events.*"))) == 2  # however soon after the first: one must not overwrite the other
    starts = [event for event in events(tmp_path) if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in starts] == [(3, SessionLog.START)]


def test_other_hosts_write_nothing(tmp_path):
    with Reporter(tmp_path / "run", active=False) as reporter:
        reporter.scalars(1, {"a": 1.0})
        reporter.image(1, "b", np.zeros((2, 2, 3), np.uint8))
        reporter.flush()
    assert not (tmp_path / "run").exists()


def test_progress_line():
    expected = "step  120/1200  loss 0.4312  58.1 images/s  ETA 0:01:23  waiting for data 2 %"
    assert progress_line(120, 1200, 0.43118, 58.06, 82.6, 0.021) == expected
    line = progress_line(1200, 1200, 0.4, 0.25, 100 * 3600, 1.0)
    assert line == "step 1200/1200  loss 0.4000  0.25 images/s  ETA 100:00:00  waiting for data 100 %"
    assert "ETA ?" in progress_line(1, 10, 1.0, 0.0, float("inf"), 0.0)


def test_score_entries_have_the_fixed_keys():
    assert list(score_entries(SCORES, NAMES)) == [
        "val/pixel_accuracy",
        "val/mean_accuracy",
        "val/mean_iou",
        "val/frequency_weighted_iou",
        "val/iou/00_sky",
        "val/iou/01_tv_monitor",
        "val/iou/02_potted_plant",
    ]
    entries = score_entries(SCORES, NAMES, prefix="test")
    assert entries["test/mean_iou"] == 0.5 and entries["test/iou/01_tv_monitor"] == 0.3
    with pytest.raises(ValueError):
        score_entries(SCORES, NAMES[:2])


def test_score_table():
    assert score_table(SCORES, NAMES) == (
        "class                     accuracy        IU\n"
        "--------------------------------------------\n"
        " 0 sky                      0.9000    0.7000\n"
        " 1 tv/monitor               0.6000    0.3000\n"
        " 2 potted plant                  -         -\n"
        "--------------------------------------------\n"
        "pixel accuracy                        0.9000\n"
        "mean accuracy                         0.7500\n"
        "mean IU                               0.5000\n"
        "frequency weighted IU                 0.8000\n"
        "1 of 3 classes occur neither in the truth nor in the predictions"
    )
