"""When things happen: the loop, from an empty working directory or a half-finished one to the last step.

A working directory holds `config.json` and `classes.json`, which say what the run is; `checkpoints/`; `metrics.jsonl`
and TensorBoard's events; `pictures/`. The same call goes on where it stopped: data order, augmentation and dropout are
functions of (seed, step), so that a resumed run computes what an uninterrupted one does, bit for bit.
"""

import dataclasses
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

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
from fcn_jax.assembly import assemble
from fcn_jax.checkpoints import Checkpoints
from fcn_jax.data import loader
from fcn_jax.labels import Info, by_head
from fcn_jax.models.layers import is_fully_connected
from fcn_jax.predict import Predictor
from fcn_jax.preemption import Preempted, Preemption
from fcn_jax.progress import Progress

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
    with hosts.together():
        experiment.validate(config)
        if config.deterministic:
            os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
        mesh = parallel.make_mesh()
        per_device = parallel.check_batch_size(config.data.batch_size, config.optim.accumulate, mesh)
        blobs = workdirs.settle_input(config, workdir)
        train_source = data.open_split(config.data, config.data.train_split)
        val_source = data.open_split(config.data, config.data.val_split)
        info = train_source.info
        assembly = assemble(config, info)
        model, abstract = assembly.model, assembly.variables
        schedule = optim.make_schedule(config.optim, config.train.steps)
        spec = experiment.input_spec(config)
        class_weights = experiment.class_weights(config, info)
        # Into how many parts a batch is cut changes nothing but what each part is normalised by.
        cut_freely = config.loss.normalization != "part_mean" and "batch_stats" not in abstract
    hosts.check_equal(experiment.to_json(config), "the config")

    with (
        hosts.first_alone_speaks(),
        workdirs.claimed(workdir, config, info, ("optim.accumulate",) if cut_freely else ()),
        Checkpoints(workdir) as checkpoints,
    ):
        asked = hosts.Asked(mesh)
        start, last = checkpoints.latest_step() or 0, config.train.steps
        like = assembly.abstract_state(mesh)
        unscored = start > 0 and checkpoints.unscored(start)
        if start >= last and not unscored:
            print(f"{workdir}: finished at step {start} of {last}; nothing to do")
            return checkpoints.restore(start, like)
        _print_start(config, workdir, mesh, per_device, train_source, val_source, abstract["params"])
        if start:
            current = checkpoints.restore(start, like)
            print(f"resumed from step {start}")
        else:
            variables = initial_variables(config, model, info, blobs)
            current = parallel.put_state(assembly.begin(variables), mesh, config.parallel.shard_state)

        mode = config.parallel.mode

        def stop() -> bool:
            return asked(preemption.asked)

        train_step = assembly.compiled_train_step(mesh, class_weights)
        eval_step = parallel.wrap_eval_step(steps.make_eval_step(model), mesh, mode, config.parallel.shard_state)
        batches = loader.train_batches(
            train_source,
            config.data.augment,
            spec,
            batch_size=config.data.batch_size,
            seed=config.seed,
            start_step=start,
            threads=config.data.threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        with report.Reporter(workdir, start, active=hosts.is_first()) as reporter:
            progress = Progress(config, reporter, optim.parameter_names(abstract["params"]), schedule)

            def leave(step: int) -> Preempted:
                return Preempted(f"{workdir}: left after step {step} of {last}; {_GO_ON}")

            def look(step: int, current: state.TrainState) -> tuple[state.TrainState, float | None]:
                """The state to be kept and its val mean IU, NaN where no pixel is labelled, None if asked to leave."""
                used = current
                with progress.paused(current):
                    if step >= last and config.train.statistics_batches and current.batch_stats:
                        used = _with_exact_statistics(config, model, current, train_source, spec, mesh, stop)
                    results = None
                    if used is not None:
                        results = evaluation.evaluate_net(
                            eval_step,
                            used.variables,
                            val_source,
                            spec,
                            mesh,
                            mode,
                            # As many at a time as a training step holds, which is what memory is known to do for.
                            batch_size=config.data.batch_size // config.optim.accumulate,
                            threads=config.data.threads,
                            stop=stop,
                        )
                    if used is None or results is None:
                        print(f"the evaluation after step {step} was broken off")
                        return current, None
                    mean_iou = progress.write_scores(step, results)
                if step >= last:
                    # Before the last checkpoint: with it a run is finished, and is not looked at again.
                    _write_pictures(config, workdir, model, used.variables, mesh, val_source, reporter)
                return used, mean_iou

            def save(step: int, current: state.TrainState, mean_iou: float | None, broken_off: bool = False) -> None:
                with progress.paused(current):
                    progress.check_parameters(step, current)
                # Without a labelled pixel in the split there is no score to rank the checkpoint by. Before the
                # statistics of the training set there is none either: the net is not the one to be used.
                scored = mean_iou == mean_iou and (step >= last or not config.train.statistics_batches)
                checkpoints.save(step, parallel.joined(current, mesh), mean_iou if scored else None, broken_off)

            if unscored:
                preemption.worth_saving = True
                current, mean_iou = look(start, current)
                if mean_iou is None:
                    raise leave(start)
                save(start, current, mean_iou)
            for step in range(start + 1, last + 1):
                if profile and step == min(start + 3, last):
                    jax.profiler.start_trace(str(workdir))
                with progress.waiting():
                    batch = next(batches)
                    shape = batch["image"].shape
                    progress.note_shape(shape)
                    batch = parallel.put_batch(batch, mesh, mode)
                with (
                    jax.profiler.StepTraceAnnotation("train_step", step_num=step),
                    compilations.of("the step, for batches", shape),
                ):
                    current, step_report = train_step(current, batch)
                # Until its first step is compiled, which takes minutes, a run has nothing that is not saved.
                preemption.worth_saving = True
                progress.add(step, step_report, current)
                if profile and step == min(start + 8, last):
                    jax.block_until_ready(current)
                    jax.profiler.stop_trace()
                    profile = False
                    print(f"wrote a trace of steps {min(start + 3, last)} to {step} into {workdir}/plugins/profile")

                mean_iou, looked_at = None, report.due(step, config.train.eval_every, last)
                if looked_at:
                    current, mean_iou = look(step, current)
                broken_off = looked_at and mean_iou is None
                leaving = (stop() and step < last) or broken_off
                if looked_at or leaving or report.due(step, config.train.checkpoint_every, last):
                    save(step, current, mean_iou, broken_off)
                if leaving:
                    raise leave(step)
    if hosts.is_first():  # with everything on disk
        print(f"finished: {workdir}")
    return current


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


def _with_exact_statistics(config, model, current, source, spec, mesh, stop) -> state.TrainState | None:
    """The state with batch norm's statistics computed over training batches by the final parameters.

    None where `stop`, asked before each batch, breaks it off.
    """
    batches = loader.train_batches(
        source,
        config.data.augment,
        spec,
        # As many images at a time as batch norm saw in training.
        batch_size=config.data.batch_size // config.optim.accumulate,
        seed=config.seed,
        start_step=0,
        threads=config.data.threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    count = config.train.statistics_batches
    images = (
        parallel.put_batch({"image": batch["image"]}, mesh, "mesh")["image"]
        for batch in itertools.islice(batches, count)
    )
    exact = statistics.over_batches(model, parallel.whole(current.variables, mesh), images, stop)
    if exact is None:
        return None
    print(f"batch norm's statistics computed over {count} batches")
    return dataclasses.replace(current, batch_stats=parallel.put_state(exact, mesh, config.parallel.shard_state))


def _print_start(config, workdir, mesh, per_device, train_source, val_source, abstract) -> None:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract))
    device = mesh.devices.flat[0]
    kind = device.platform if device.platform == device.device_kind else f"{device.platform} ({device.device_kind})"
    print(f"workdir {workdir}, jax {jax.__version__} on {mesh.size} {kind} device{'s' if mesh.size > 1 else ''}")
    classes = " and ".join(f"{each.num_classes} {head}".strip() for head, each in by_head(train_source.info).items())
    print(f"{config.model.name}: {parameters:,} parameters, {classes} classes")
    print(f"{config.data.name}: {len(train_source)} images to train on, {len(val_source)} to validate on")
    accumulated = f", in {config.optim.accumulate} parts" if config.optim.accumulate > 1 else ""
    print(f"batches of {config.data.batch_size} images, {per_device} on each device at a time{accumulated}", flush=True)


def _write_pictures(config, workdir, model, variables, mesh, source, reporter) -> None:
    if not config.train.pictures:
        return
    variables = parallel.whole(variables, mesh)  # every host's part
    if not hosts.is_first():
        return
    variables = parallel.on_one_device(variables)
    predictor = Predictor(model, variables, experiment.input_spec(config), source.info, str(workdir))
    folder = workdir / "pictures"
    for name, picture in evaluation.pictures(source, predictor, config.train.pictures):
        visualize.write_png(folder / f"{name}.png", picture)
        reporter.image(config.train.steps, f"val/{name}", picture)
    print(f"pictures in {folder}")
