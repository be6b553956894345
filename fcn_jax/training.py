"""When things happen: the loop, from an empty working directory or a half-finished one to the last step.

A working directory holds `config.json` and `classes.json`, which say what the run is; `checkpoints/`; `metrics.jsonl`
and TensorBoard's events; `pictures/`. The same call goes on where it stopped: data order, augmentation and dropout are
functions of (seed, step), so that a resumed run computes what an uninterrupted one does, bit for bit.
"""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from fcn_jax import (
    compilations,
    data,
    evaluation,
    hosts,
    optim,
    parallel,
    report,
    state,
    statistics,
    steps,
    transplant,
    visualize,
    weights,
    workdirs,
)
from fcn_jax import config as experiment
from fcn_jax.assembly import Assembly, assemble
from fcn_jax.checkpoints import Checkpoints
from fcn_jax.data import loader
from fcn_jax.inputs import InputSpec
from fcn_jax.labels import Info, by_head
from fcn_jax.models.layers import is_fully_connected
from fcn_jax.predict import Predictor
from fcn_jax.preemption import Preempted, Preemption
from fcn_jax.progress import Progress

_COMPARED = 8  # images of each split, by which hosts see whether they have the same ones
_GO_ON = "the same command goes on from the newest checkpoint"


def train(config: experiment.Config, workdir: Path, profile: bool = False) -> state.TrainState:
    """Trains the experiment of `config` in `workdir`, to its last step, and gives the final state.

    With `profile` a trace of a few early steps is written for TensorBoard. Raises UserErrors for what cannot work,
    before the first step where it can be known, and NonFiniteError when the loss stops being a number. On SIGTERM it
    saves and raises Preempted; before the first step there is nothing to save, and the process ends at once.
    """
    with Preemption() as preemption:
        return _train(config, workdir, profile, preemption)


def _train(config: experiment.Config, workdir: Path, profile: bool, preemption: Preemption) -> state.TrainState:
    if config.deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    # Not together: where hosts are unequal, they cannot tell each other, and each sees it by itself.
    mesh = parallel.make_mesh()
    preemption.listen()
    with hosts.together():
        experiment.validate(config)
        per_device = parallel.check_batch_size(config.data.batch_size, config.optim.accumulate, mesh)
        blobs = workdirs.settle_input(config, workdir)
        run = _Run.opened(config, workdir, mesh)
        told = run.told()
    hosts.check_equal(experiment.to_json(config), "the config")
    hosts.check_equal(told, "the data")

    with (
        hosts.first_alone_speaks(),
        workdirs.claimed(workdir, config, run.info, run.may_change),
        Checkpoints(workdir) as checkpoints,
    ):
        start, last = checkpoints.latest_step() or 0, config.train.steps
        like = run.assembly.abstract_state(mesh)
        # By the first host's word: folders on networks may show each another one.
        unscored = bool(hosts.first_says("unscored" if start > 0 and checkpoints.unscored(start) else ""))
        if start >= last and not unscored:
            print(f"{workdir}: finished at step {start} of {last}; nothing to do")
            return checkpoints.restore(start, like)
        _print_start(run, per_device)
        if start:
            current = checkpoints.restore(start, like)
            print(f"resumed from step {start}")
        else:
            variables = initial_variables(config, run.assembly.model, run.info, blobs)
            current = parallel.put_state(run.assembly.begin(variables), mesh, config.parallel.shard_state)
            del variables, blobs  # the run is long, and these are as large as the net
        loop = _Loop(run, checkpoints, preemption, start)
        with contextlib.ExitStack() as stack:
            with hosts.together():
                loop.report_to(stack.enter_context(report.Reporter(workdir, start, active=hosts.is_first())))
            if unscored:
                current = loop.score(current)
            current = loop.steps(current, profile)
    if hosts.is_first():  # with everything on disk
        print(f"finished: {workdir}")
    return current


@dataclasses.dataclass(frozen=True)
class _Run:
    """An experiment in its working directory: its data opened, its net assembled, the devices it has."""

    config: experiment.Config
    workdir: Path
    mesh: Mesh
    train_source: Any
    val_source: Any
    assembly: Assembly
    class_weights: np.ndarray | None

    @classmethod
    def opened(cls, config: experiment.Config, workdir: Path, mesh: Mesh) -> "_Run":
        train_source = data.open_split(config.data, config.data.train_split)
        val_source = data.open_split(config.data, config.data.val_split)
        info = train_source.info
        assembly = assemble(config, info)
        return cls(config, workdir, mesh, train_source, val_source, assembly, experiment.class_weights(config, info))

    @property
    def info(self) -> Info:
        return self.train_source.info

    @property
    def spec(self) -> InputSpec:
        return experiment.input_spec(self.config)

    def told(self) -> str:
        """What hosts have to agree on of the data that each of them sees: classes, numbers, and some of the images."""
        names = [experiment.classes_to_json(self.info)]
        for source in (self.train_source, self.val_source):
            looked_at = evaluation.spread(source, _COMPARED) if jax.process_count() > 1 else ()
            names += [str(len(source)), *(source[index]["id"] for index in looked_at)]
        return " ".join(names)

    @property
    def may_change(self) -> tuple[str, ...]:
        """Fields that another start may set otherwise: what they change is not what is computed."""
        # Into how many parts a batch is cut changes nothing but what each part is normalised by.
        normalised = self.config.loss.normalization == "part_mean" or "batch_stats" in self.assembly.variables
        return () if normalised else ("optim.accumulate",)

    def batches(self, batch_size: int, start: int) -> Iterator[dict[str, Any]]:
        """This host's rows of training batches, those of step `start` + 1 first."""
        config = self.config
        return loader.train_batches(
            self.train_source,
            config.data.augment,
            self.spec,
            batch_size=batch_size,
            seed=config.seed,
            start_step=start,
            threads=config.data.threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    @property
    def part_size(self) -> int:
        """As many images at a time as a training step holds and batch norm sees: memory is known to do for them."""
        return self.config.data.batch_size // self.config.optim.accumulate


class _Loop:
    """The steps of a run, and what is done between them: evaluations, checkpoints, leaving when asked to."""

    def __init__(self, run: _Run, checkpoints: Checkpoints, preemption: Preemption, start: int):
        config, assembly, mesh = run.config, run.assembly, run.mesh
        self._run, self._checkpoints, self._preemption, self._start = run, checkpoints, preemption, start
        self._asked = hosts.Asked(mesh)
        self._last = config.train.steps
        self._train_step = assembly.compiled_train_step(mesh, run.class_weights)
        self._eval_step = parallel.wrap_eval_step(
            steps.make_eval_step(assembly.model), mesh, config.parallel.mode, config.parallel.shard_state
        )
        self._batches = run.batches(config.data.batch_size, start)

    def report_to(self, reporter: report.Reporter) -> None:
        """Begins the reports, behind everything that may be wrong with what was asked for."""
        config, params = self._run.config, self._run.assembly.variables["params"]
        schedule = optim.make_schedule(config.optim, self._last)
        self._reporter = reporter
        self._progress = Progress(config, reporter, optim.parameter_names(params), schedule)

    def steps(self, current: state.TrainState, profile: bool) -> state.TrainState:
        """The state after the last step. Raises Preempted when asked to leave."""
        config, start = self._run.config, self._start
        trace = _Trace(self._run.workdir, start, self._last) if profile else None
        for step in range(start + 1, self._last + 1):
            if trace:
                trace.before(step)
            with self._progress.waiting():
                batch = next(self._batches)
                shape = batch["image"].shape
                self._progress.note_shape(shape)
                batch = parallel.put_batch(batch, self._run.mesh, config.parallel.mode)
            with (
                jax.profiler.StepTraceAnnotation("train_step", step_num=step),
                compilations.of("the step, for batches", shape),
            ):
                current, step_report = self._train_step(current, batch)
            # Until its first step is compiled, which takes minutes, a run has nothing that is not saved.
            self._preemption.worth_saving = True
            self._progress.add(step, step_report, current)
            if trace:
                trace.after(step, current)

            mean_iou, looked_at = None, report.due(step, config.train.eval_every, self._last)
            if looked_at:
                current, mean_iou = self._look(step, current)
            broken_off = looked_at and mean_iou is None
            leaving = (self._stop() and step < self._last) or broken_off
            if looked_at or leaving or report.due(step, config.train.checkpoint_every, self._last):
                self._save(step, current, mean_iou, broken_off)
            if leaving:
                raise self._leave(step)
        return current

    def score(self, current: state.TrainState) -> state.TrainState:
        """Makes up for the evaluation of the first step's state, broken off before. Raises Preempted if it is again."""
        step, self._preemption.worth_saving = self._start, True
        current, mean_iou = self._look(step, current)
        if mean_iou is None:
            raise self._leave(step)
        self._save(step, current, mean_iou)
        return current

    def _stop(self) -> bool:
        return self._asked(self._preemption.asked)

    def _leave(self, step: int) -> Preempted:
        return Preempted(f"{self._run.workdir}: left after step {step} of {self._last}; {_GO_ON}")

    def _look(self, step: int, current: state.TrainState) -> tuple[state.TrainState, float | None]:
        """The state to be kept and its val mean IU, NaN where no pixel is labelled, None if asked to leave."""
        run, used, results = self._run, current, None
        with self._progress.paused(current):
            if step >= self._last and run.config.train.statistics_batches and current.batch_stats:
                used = _with_exact_statistics(run, current, self._stop)
            if used is not None:
                results = evaluation.evaluate_net(
                    self._eval_step,
                    used.variables,
                    run.val_source,
                    run.spec,
                    run.mesh,
                    run.config.parallel.mode,
                    batch_size=run.part_size,
                    threads=run.config.data.threads,
                    stop=self._stop,
                )
            if used is None or results is None:
                print(f"the evaluation after step {step} was broken off")
                return current, None
            mean_iou = self._progress.write_scores(step, results)
            if step >= self._last:
                # Before the last checkpoint: with it a run is finished, and is not looked at again.
                _write_pictures(run, used.variables, self._reporter, lambda: self._preemption.asked)
        return used, mean_iou

    def _save(self, step: int, current: state.TrainState, mean_iou: float | None, broken_off: bool = False) -> None:
        # Without a labelled pixel in the split there is no score to rank the checkpoint by. Before the statistics of
        # the training set there is none either: the net is not the one to be used.
        final = step >= self._last or not self._run.config.train.statistics_batches
        score = mean_iou if mean_iou == mean_iou and final else None
        with self._progress.paused(current), hosts.waiting():
            self._progress.check_parameters(step, current)
        self._checkpoints.save(step, parallel.joined(current, self._run.mesh), score, broken_off)


class _Trace:
    """A trace of a few early steps, for TensorBoard."""

    def __init__(self, workdir: Path, start: int, last: int):
        self._workdir, self._first, self._last = workdir, min(start + 3, last), min(start + 8, last)

    def before(self, step: int) -> None:
        if step == self._first:
            jax.profiler.start_trace(str(self._workdir))

    def after(self, step: int, current: state.TrainState) -> None:
        if step == self._last:
            jax.block_until_ready(current)
            jax.profiler.stop_trace()
            print(f"wrote a trace of steps {self._first} to {step} into {self._workdir}/plugins/profile")


def initial_variables(
    config: experiment.Config, model: nn.Module, info: Info, blobs: Mapping[str, np.ndarray] | None = None
) -> Any:
    """A net's variables before the first step: drawn from the seed, then taken from what `config.init` names.

    `blobs` are those of the file `init.weights`, if it was read already.
    """
    variables = state.init_variables(model, config.seed)
    params = variables["params"]
    for layer in params:
        if is_fully_connected(layer):
            params[layer]["kernel"] = params[layer]["kernel"] * config.init.fc_scale
    init = config.init
    if init.weights:
        path = Path(init.weights).expanduser()
        blobs = weights.read(path) if blobs is None else blobs
        if init.extra_channels:
            blobs = weights.with_extra_channels(blobs, model)
        variables, transferred = weights.transfer(
            blobs, variables, model, tuple(init.skip), str(path), config.model.name
        )
        print(transferred)
    elif init.workdir or init.stream_workdirs:
        streams = dict(zip(config.model.streams, init.stream_workdirs, strict=True))
        sources = {"": init.workdir} if init.workdir else streams
        variables, transferred = transplant.from_runs(sources, variables, config, info)
        print(transferred)
    else:
        print(f"all parameters are drawn from seed {config.seed}, none is from a file")
    return variables


def _with_exact_statistics(run: _Run, current: state.TrainState, stop: Callable[[], bool]) -> state.TrainState | None:
    """The state with batch norm's statistics computed over training batches by the final parameters.

    None where `stop`, asked before each batch, breaks it off.
    """
    count = run.config.train.statistics_batches
    images = (
        parallel.put_batch({"image": batch["image"]}, run.mesh, "mesh")["image"]
        for batch in itertools.islice(run.batches(run.part_size, 0), count)
    )
    exact = statistics.over_batches(run.assembly.model, parallel.whole(current.variables, run.mesh), images, stop)
    if exact is None:
        return None
    print(f"batch norm's statistics computed over {count} batches")
    placed = parallel.put_state(exact, run.mesh, run.config.parallel.shard_state)
    return dataclasses.replace(current, batch_stats=placed)


def _print_start(run: _Run, per_device: int) -> None:
    config, mesh = run.config, run.mesh
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.assembly.variables["params"]))
    device = mesh.devices.flat[0]
    kind = device.platform if device.platform == device.device_kind else f"{device.platform} ({device.device_kind})"
    print(f"workdir {run.workdir}, jax {jax.__version__} on {mesh.size} {kind} device{'s' if mesh.size > 1 else ''}")
    classes = " and ".join(f"{each.num_classes} {head}".strip() for head, each in by_head(run.info).items())
    print(f"{config.model.name}: {parameters:,} parameters, {classes} classes")
    print(f"{config.data.name}: {len(run.train_source)} images to train on, {len(run.val_source)} to validate on")
    accumulated = f", in {config.optim.accumulate} parts" if config.optim.accumulate > 1 else ""
    print(f"batches of {config.data.batch_size} images, {per_device} on each device at a time{accumulated}", flush=True)


def _write_pictures(run: _Run, variables: Any, reporter: report.Reporter, stop: Callable[[], bool]) -> None:
    count = run.config.train.pictures
    if not count:
        return
    variables = parallel.whole(variables, run.mesh)  # every host's part
    if not hosts.is_first():
        return
    variables = parallel.on_one_device(variables)
    predictor = Predictor(run.assembly.model, variables, run.spec, run.val_source.info, str(run.workdir))
    folder = run.workdir / "pictures"
    for name, picture in evaluation.pictures(run.val_source, predictor, count):
        visualize.write_png(folder / f"{name}.png", picture)
        reporter.image(run.config.train.steps, f"val/{name}", picture)
        if stop():
            break
    print(f"pictures in {folder}")
