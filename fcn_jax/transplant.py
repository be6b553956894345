"""From one net into the next: what a run starts with when it goes on from other runs (32s → 16s → 8s, late fusion).

Every layer that both have is taken over and must fit, but for those that `init.skip` names; the score layers of finer
skips start anew. With several streams
each run gives its layers to one of them, under the stream's names.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from fcn_jax import config as experiment
from fcn_jax.checkpoints import Checkpoints
from fcn_jax.errors import CheckpointError
from fcn_jax.inputs import InputSpec
from fcn_jax.labels import Info, by_head
from fcn_jax.weights.names import matches


def from_runs(workdirs: Mapping[str, str], variables: Any, config: experiment.Config, info: Info) -> tuple[Any, str]:
    """Variables with the layers of other runs, by stream ("" for the only one), and a line that says what was taken.

    Raises CheckpointError where a run is missing, has other classes, another input or layers of another shape.
    """
    params = variables["params"]
    merged, steps = {name: dict(tree) for name, tree in variables.items()}, []
    taken: set[str] = set()
    for stream, name in workdirs.items():
        workdir = Path(name).expanduser()
        # What is said of a run begins with the field that names it.
        field = "stream_workdirs" if stream else "workdir"
        _check(field, workdir, config, info, same_input=not stream)
        with Checkpoints(workdir, read_only=True) as checkpoints:
            step, source = checkpoints.restore_variables("best")
        for pattern in config.init.skip:
            if not any(matches(layer, pattern) for layer in (*source["params"], *params)):
                raise CheckpointError(f"init.skip names {pattern!r}, no layer of {workdir} or of the net")
        skipped = {layer for layer in source["params"] if any(matches(layer, pattern) for pattern in config.init.skip)}
        layers = {layer + stream: leaves for layer, leaves in source["params"].items() if layer not in skipped}
        shared = [layer for layer in layers if layer in params]
        for layer in shared:
            ours, theirs = (jax.tree.map(lambda x: x.shape, tree[layer]) for tree in (params, layers))
            if ours != theirs:
                raise CheckpointError(f"init.{field}={workdir}: {layer} has {theirs} there and {ours} here")
        unknown = sorted(layer for layer in layers if layer not in params)
        if not shared or any(not layer.startswith(("upscore", "score")) for layer in unknown):
            raise CheckpointError(f"init.{field}={workdir} has other layers ({', '.join(unknown)}): it is another net")
        merged["params"] |= {layer: layers[layer] for layer in shared}
        for layer, statistics in source.get("batch_stats", {}).items():
            if layer not in skipped:
                merged["batch_stats"][layer + stream] = statistics
        taken.update(shared)
        steps.append(f"step {step} of {workdir}")
    anew = [layer for layer in params if layer not in taken]
    count, total = (
        sum(x.size for layer in layers for x in jax.tree.leaves(params[layer])) for layers in (taken, list(params))
    )
    line = f"{count:,} of {total:,} parameters from {' and '.join(steps)}"
    return merged, line + (f"; {', '.join(anew)} start anew" if anew else "")


def input_of(config: experiment.Config) -> InputSpec:
    """What the run that this one starts from wants to see, else what the FCN release does."""
    path = Path(config.init.workdir).expanduser() / experiment.CONFIG_FILE
    started = bool(config.init.workdir) and path.exists()
    return experiment.input_spec(experiment.load(path) if started else config)


def _check(field: str, workdir: Path, config: experiment.Config, info: Info, same_input: bool) -> None:
    """Whether the run is one of the same classes, and of the same input where it is not a part of it."""
    if not (workdir / experiment.CONFIG_FILE).exists():
        raise CheckpointError(f"init.{field}={workdir} is not the workdir of a run: train that stage first")
    theirs = experiment.load_classes(workdir / experiment.CLASSES_FILE)
    there, here = ({head: each.class_names for head, each in by_head(infos).items()} for infos in (theirs, info))
    compared: list[tuple[str, Any, Any]] = [("classes", there, here)]
    if same_input:
        its_input = experiment.input_spec(experiment.load(workdir / experiment.CONFIG_FILE))
        compared.append(("input", its_input, experiment.input_spec(config)))
    for what, there, here in compared:
        if there != here:
            raise CheckpointError(f"init.{field}={workdir} was trained with other {what}: {there} there, {here} here")
