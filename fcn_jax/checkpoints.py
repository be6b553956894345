"""A run's state on disk and back, by Orbax: asynchronous, atomic, the newest two and the best kept.

A save that a killed process left half done is never mistaken for a checkpoint: Orbax writes beside and renames.
Parameters, and running statistics where a net has them, are items of their own, so that prediction reads them alone.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from fcn_jax import hosts
from fcn_jax.errors import CheckpointError, one_line
from fcn_jax.optim import parameter_names
from fcn_jax.state import TrainState

_FOLDER = "checkpoints"
_METRIC = "mean_iou"
_UNSCORED = "unscored"
_ASIDE = ".aside"  # behind the name of a checkpoint that is being saved anew


def prepare(workdir: Path) -> list[str]:
    """Makes the folder of checkpoints, whole: see `put_back`. Gives it and them, by their paths in `workdir`."""
    folder = workdir / _FOLDER
    folder.mkdir(exist_ok=True)
    put_back(workdir)
    return [_FOLDER, *(f"{_FOLDER}/{each.name}" for each in folder.iterdir() if each.name.isdigit())]


def put_back(workdir: Path) -> None:
    """Puts back what a killed run had set aside to save it anew, or removes it where that is done.

    One process does so, while no other one looks.
    """
    for aside in (workdir / _FOLDER).glob(f"*{_ASIDE}"):
        if aside.with_suffix("").exists():
            shutil.rmtree(aside)
        else:
            aside.rename(aside.with_suffix(""))


class Checkpoints:
    """The checkpoints under `workdir/checkpoints`, one folder a step. Use it as a context: leaving waits for saves."""

    def __init__(self, workdir: Path, read_only: bool = False):
        self.directory, self._read_only = (workdir / _FOLDER).absolute(), read_only
        logging.getLogger("absl").setLevel(logging.ERROR)
        # Orbax's own `max_to_keep` with a metric keeps the N best and deletes the newest, and with it the way forward.
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(2),
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[_METRIC], n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            best_fn=lambda metrics: metrics[_METRIC],
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
            # Where folders are listed late, hosts would go on from different steps; of readers each reads by itself.
            single_host_load_and_broadcast=not read_only,
        )
        # Named handlers, because without them metadata can be read only after a save or restore.
        handlers = {item: ocp.StandardCheckpointHandler() for item in ("params", "batch_stats", "rest")}
        # Where several hosts save, they wait for each other in all that the manager does.
        with hosts.waiting():
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        with hosts.waiting():
            self._manager.close()
        if not self._read_only and hosts.is_first():
            put_back(self.directory.parent)

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, mean_iou: float | None = None, unscored: bool = False) -> None:
        """Starts to save in the background; the state may be used on, donated too, when this returns.

        `unscored` notes that what is to follow the step was broken off. A checkpoint of the same step is replaced, and
        comes back where that is not brought to its end.
        """
        if step in self._manager.all_steps():
            self._set_aside(step)
        items = {"params": state.params, "rest": {"step": state.step, "opt_state": state.opt_state}}
        if state.batch_stats:
            items["batch_stats"] = state.batch_stats
        saved = ocp.args.Composite(**{name: ocp.args.StandardSave(item) for name, item in items.items()})
        metrics, note = None if mean_iou is None else {_METRIC: mean_iou}, {_UNSCORED: True} if unscored else None
        with hosts.waiting():
            self._manager.save(step, args=saved, metrics=metrics, custom_metadata=note)

    def unscored(self, step: int) -> bool:
        """Whether what is to follow that step was broken off."""
        try:
            return bool((self._manager.metadata(step).custom_metadata or {}).get(_UNSCORED))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._damaged(step, error) from error

    def _set_aside(self, step: int) -> None:
        if hosts.is_first():
            (self.directory / str(step)).rename(self.directory / f"{step}{_ASIDE}")
        with hosts.waiting():
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices(f"checkpoint {step} set aside")
            self._manager.reload()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of that step, with the shapes, types and placement of `like` (arrays, or their shapes)."""
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        rest = {"step": target.step, "opt_state": target.opt_state}
        items = self._restore(step, target.variables, rest=rest)
        return TrainState(
            step=items["rest"]["step"],
            params=items["params"],
            batch_stats=items.get("batch_stats", {}),
            opt_state=items["rest"]["opt_state"],
        )

    def restore_variables(self, which: str, like: Any | None = None) -> tuple[int, dict[str, Any]]:
        """A checkpoint's step and its net's variables: `latest`, `best` (by val mean IU, else the latest) or a step.

        With `like` (shapes) they must fit; without it they come as they were saved.
        """
        step = self._step(which)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        if like is None:
            like = self._saved_variables(step)
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
        return step, self._restore(step, target)

    def restore_params(self, which: str, like: Any | None = None) -> tuple[int, Any]:
        """The step and the parameters alone of a checkpoint; see `restore_variables`."""
        step, variables = self.restore_variables(which, None if like is None else {"params": like})
        return step, variables["params"]

    def _step(self, which: str) -> int:
        steps = self._manager.all_steps()
        if not steps:
            raise CheckpointError(f"{self.directory} holds no checkpoint")
        if which == "latest":
            return max(steps)
        if which == "best":
            best = self._manager.best_step()
            return max(steps) if best is None else best
        if which.isdigit() and int(which) in steps:
            return int(which)
        raise CheckpointError(f"no checkpoint {which!r} in {self.directory}: there are {sorted(steps)}, best, latest")

    def _restore(self, step: int, variables: Any, **targets) -> dict[str, Any]:
        """The items of a checkpoint, by the shapes they must have."""
        targets |= {name: tree for name, tree in variables.items() if tree}
        saved = self._saved_variables(step)
        here, there = (_shapes({name: tree[name] for name in variables if tree.get(name)}) for tree in (targets, saved))
        differences = [
            f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]
        if differences:
            more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise CheckpointError(
                f"{self.directory / str(step)} does not fit the run's config: {', '.join(differences[:3])}{more}"
            )
        items = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
        try:
            with hosts.waiting():
                restored = self._manager.restore(step, args=ocp.args.Composite(**items))
            return {name: restored[name] for name in items}
        except (ValueError, KeyError, OSError) as error:
            raise self._damaged(step, error) from error

    def _saved_variables(self, step: int) -> dict[str, Any]:
        """The shapes and types of the saved parameters, and of the running statistics if there are any."""
        try:
            items = self._manager.item_metadata(step)
            saved = {name: items[name] for name in ("params", "batch_stats") if items.get(name)}
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._damaged(step, error) from error
        if "params" not in saved:
            raise self._damaged(step, "its parameters are missing")
        return saved

    def _damaged(self, step: int, fault: Any) -> CheckpointError:
        # TensorStore appends all of its settings to what it says.
        fault = one_line(str(fault).split(" [tensorstore_spec")[0], 300)
        return CheckpointError(
            f"{self.directory / str(step)} cannot be restored ({fault}): "
            "remove that folder to go on from the one before"
        )


def _shapes(variables: Any) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(x.shape)
        for tree in variables.values()
        for name, x in zip(parameter_names(tree), jax.tree.leaves(tree), strict=True)
    }
