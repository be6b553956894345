"""How a run goes: its steps timed, counted and checked, and told in one line."""

import collections
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fcn_jax import config as experiment
from fcn_jax import evaluation, hosts, optim, parallel, report, state
from fcn_jax.errors import NonFiniteError
from fcn_jax.labels import by_head

# Reports are read this many steps late, so that the device never waits for the host.
_STEPS_AHEAD = 2


class Progress:
    """Times, counts and checks the steps, and says how the run goes."""

    def __init__(
        self, config: experiment.Config, reporter: report.Reporter, names: Sequence[str], schedule: optax.Schedule
    ):
        self._config, self._reporter, self._names, self._schedule = config, reporter, names, schedule
        self._pending = collections.deque()
        self._shapes: set[tuple[int, ...]] = set()
        self._loss_sum, self._pixels = collections.Counter[str](), collections.Counter[str]()  # by head
        self._waited = self._idle = 0.0
        self._steps = 0
        self._begun = time.perf_counter()

    def waiting(self):
        """A context whose time counts as waiting for data, unless the step before is still running at its end."""
        return _Stopwatch(self._add_wait)

    def _add_wait(self, seconds: float) -> None:
        # Steps are dispatched ahead: while one runs, the device misses nothing.
        if not self._pending or all(value.is_ready() for value in jax.tree.leaves(self._pending[-1][1])):
            self._waited += seconds

    def note_shape(self, shape: tuple[int, ...]) -> None:
        """Says when a batch has a shape that was not seen before: its step is compiled first, which takes a while."""
        if shape not in self._shapes:
            self._shapes.add(shape)
            print(
                f"compiling the step for batches of {' × '.join(map(str, shape))} (shape {len(self._shapes)})",
                flush=True,
            )

    def paused(self, current: state.TrainState):
        """A context whose time counts neither as training nor as waiting; all reports are read before it."""
        while self._pending:
            self._read(current)
        with hosts.waiting():
            jax.block_until_ready(current)
        return _Stopwatch(lambda seconds: setattr(self, "_idle", self._idle + seconds))

    def add(self, step: int, step_report: dict[str, jax.Array], current: state.TrainState) -> None:
        """Takes a step's report; reads those a few steps old, and writes a line when one is due."""
        self._pending.append((step, step_report))
        last = self._config.train.steps
        due = report.due(step, self._config.train.log_every, last)
        while len(self._pending) > (0 if due else _STEPS_AHEAD):
            self._read(current)
        self._steps += 1
        if due:
            self._write_line(step)

    def write_scores(self, step: int, results: Mapping[str, evaluation.Evaluation]) -> float:
        """Writes an evaluation's scores, and a line of them for each head; gives the first head's mean IU.

        The first head's scores are called `val/…`, those of further heads `val/<head>/…`.
        """
        for place, (head, result) in enumerate(results.items()):
            self._write_head(step, head, f"val/{head}" if place else "val", result)
        return next(iter(results.values())).scores.mean_iou

    def _write_head(self, step: int, head: str, prefix: str, result: evaluation.Evaluation) -> None:
        scores = result.scores
        self._reporter.scalars(step, report.score_entries(scores, result.info.class_names, prefix))
        print(
            f"{f'val {head}'.strip()}: mean IU {scores.mean_iou:.4f}, pixel accuracy {scores.pixel_accuracy:.4f}, "
            f"mean accuracy {scores.mean_accuracy:.4f}, f.w. IU {scores.frequency_weighted_iou:.4f} "
            f"({result.counted_line()})"
        )
        if warning := result.one_sided():
            print(warning)

    def check_parameters(self, step: int, current: state.TrainState) -> None:
        """Raises NonFiniteError rather than let a state be saved that holds a NaN or an infinity."""
        for what, tree in (("parameter", current.params), ("statistic", current.batch_stats)):
            if tree and (name := first_nonfinite(tree)):
                raise NonFiniteError(f"step {step}: {what} {name} is not finite; nothing of this step was saved")

    def _read(self, current: state.TrainState) -> None:
        step, values = self._pending.popleft()
        with hosts.waiting():
            sums = {head: float(value) for head, value in by_head(values["loss_sum"]).items()}
            pixels = {head: float(value) for head, value in by_head(values["pixels"]).items()}
            norms = np.asarray(values["gradient_norms"])
        if not np.isfinite(sum(sums.values())) or not np.isfinite(norms).all():
            self._raise_nonfinite(step, _per_pixel(sums, pixels), norms, current)
        self._loss_sum.update(sums)
        self._pixels.update(pixels)

    def _raise_nonfinite(self, step: int, loss: float, norms: np.ndarray, current: state.TrainState) -> None:
        # Steps that meet a non-finite value leave the parameters alone, so these are the ones that led to it.
        if name := first_nonfinite(current.params):
            culprit = f"parameter {name}"
        else:
            bad = [name for name, norm in zip(self._names, norms, strict=True) if not np.isfinite(norm)]
            culprit = f"gradient of {bad[0]} ({len(bad)} of {len(norms)} gradients)" if bad else "loss alone"
        raise NonFiniteError(
            f"step {step}: the loss is {loss}; first non-finite: {culprit}. Nothing of this step was saved; a lower "
            "optim.lr, optim.warmup_steps or optim.clip_norm may help, then run the command again in a new workdir"
        )

    def _write_line(self, step: int) -> None:
        now = time.perf_counter()
        elapsed = max(now - self._begun - self._idle, 1e-9)
        rate = self._steps * self._config.data.batch_size / elapsed
        loss = _per_pixel(self._loss_sum, self._pixels)
        remaining = (self._config.train.steps - step) * elapsed / self._steps
        entries = {
            "train/loss": loss,
            **{f"train/loss/{head}": self._loss_sum[head] / (self._pixels[head] or 1) for head in self._pixels if head},
            "train/images_per_second": rate,
            "train/learning_rate": float(np.asarray(self._schedule(step - 1))),
            "train/data_wait": self._waited / elapsed,
        }
        self._reporter.scalars(step, entries)
        total = self._config.train.steps
        print(report.progress_line(step, total, loss, rate, remaining, self._waited / elapsed), flush=True)
        self._loss_sum.clear()
        self._pixels.clear()
        self._waited = self._idle = 0.0
        self._steps, self._begun = 0, now


def _per_pixel(sums: Mapping[str, float], pixels: Mapping[str, float]) -> float:
    """The loss per valid pixel; that of several heads is the sum of theirs."""
    return sum(sums[head] / (pixels[head] or 1) for head in sums)


class _Stopwatch:
    """A context manager that hands the seconds spent in it to `add`."""

    def __init__(self, add):
        self._add = add

    def __enter__(self):
        self._begun = time.perf_counter()

    def __exit__(self, *exception):
        self._add(time.perf_counter() - self._begun)


def first_nonfinite(tree: Any) -> str | None:
    """The name of the first parameter that holds a NaN or an infinity, in the order of their names; else None.

    Leaves are of JAX; of shares of them every host has to come by.
    """
    several = parallel.in_order(jax.tree.leaves(tree)[0].sharding.device_set) is not None
    sound = np.asarray(_finite_leaves(several)(tree))
    return next((name for name, ok in zip(optim.parameter_names(tree), sound, strict=True) if not ok), None)


@functools.cache
def _finite_leaves(several_cpus: bool) -> Callable[[Any], jax.Array]:
    def finite(tree: Any) -> jax.Array:
        return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])

    return jax.jit(finite, compiler_options=parallel.IN_ORDER if several_cpus else None)
