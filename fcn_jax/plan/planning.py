"""One plan from beginning to end: a config, a slice and an image size are compiled, counted, and filled."""

import copy
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fcn_jax import config as experiment
from fcn_jax import fields, parallel
from fcn_jax.assembly import Assembly, assemble
from fcn_jax.errors import ConfigError, UserError, did_you_mean, one_line
from fcn_jax.labels import DatasetInfo
from fcn_jax.plan import figures, presumptions, slices
from fcn_jax.plan.capacity import SECONDS, largest_batch
from fcn_jax.plan.program import Program, TooLarge, compile_prediction, compile_step
from fcn_jax.plan.slices import Slice

_SMALLER = "smaller images (--size) or model.dtype=bfloat16"


@dataclasses.dataclass(frozen=True)
class Question:
    """What is to be planned. `per_device` are images a step on each device, all parts of an accumulated batch."""

    assembly: Assembly
    part: Slice
    mesh: Mesh
    size: tuple[int, int]
    size_from: str
    per_device: int
    class_weights: np.ndarray | None
    notes: tuple[str, ...]
    remember: Path | None = None  # a folder of what was compiled before

    @property
    def multiple(self) -> int:
        """A share of a batch is made of so many parts."""
        return self.assembly.config.optim.accumulate

    @property
    def available(self) -> float:
        """Bytes of a device that a program may use; 0 where the device does not tell."""
        if self.part.chip is not None:
            return self.part.chip.memory
        return float((self.mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit", 0))

    def compile(self, per_device: int | None = None, at_once: bool = False) -> Program:
        """The step for that many images on each device, or for those asked. Raises TooLarge.

        With `at_once` only what is remembered; else it raises NotRemembered.
        """
        share = per_device or self.per_device
        return self._fitting(
            compile_step(self.assembly, self.mesh, self.size, share, self.class_weights, self.remember, at_once)
        )

    def compile_prediction(self) -> Program:
        """The labels of one image on one device. Raises TooLarge."""
        return self._fitting(compile_prediction(self.assembly, self.mesh, self.size, self.remember))

    def _fitting(self, program: Program) -> Program:
        """The program. Raises TooLarge where the compiler lets pass what is larger than a device's memory."""
        if self.available and program.memory.total > self.available:
            raise TooLarge(f"{program.memory.total / 2**30:.1f} GiB needed")
        return program


def ask(
    config: experiment.Config,
    part: Slice,
    size: str = "",
    classes: int | None = None,
    remember: Path | None = None,
) -> Question:
    """What that config asks for on that slice. Raises UserErrors for what cannot be, before anything is compiled."""
    experiment.validate(config)
    info = presumptions.classes(config.data, classes)
    image_size, size_from = presumptions.image_size(config.data, size)
    assembly = assemble(config, info)
    weighted = isinstance(info, DatasetInfo) and (config.loss.class_weights or config.loss.class_weight_values)
    mesh = parallel.make_mesh(slices.devices(part))
    accumulate, batch_size = config.optim.accumulate, config.data.batch_size
    notes = []
    per_device = batch_size // mesh.size
    if batch_size % (mesh.size * accumulate):
        per_device = max(-(-batch_size // (mesh.size * accumulate)), 1) * accumulate
        times = f" times optim.accumulate={accumulate}" if accumulate > 1 else ""
        notes.append(
            f"data.batch_size={batch_size} cannot be split over {mesh.size} devices{times}: planned with {per_device} "
            f"on each, --config.data.batch_size={per_device * mesh.size}"
        )
    if weighted:
        notes.append("loss.class_weights are taken as ones: their values change nothing here")
    weights = np.ones(len(info.class_names), np.float32) if weighted and isinstance(info, DatasetInfo) else None
    return Question(assembly, part, mesh, image_size, size_from, per_device, weights, tuple(notes), remember)


def answer(
    question: Question, *, largest: bool = True, search: bool = False, seconds: float = SECONDS
) -> dict[str, Any]:
    """The plan. Raises UserError where not even the asked batch fits."""
    start = time.monotonic()
    config, part, mesh = question.assembly.config, question.part, question.mesh
    try:
        program = question.compile()
    except TooLarge as shortage:
        more = question.per_device > question.multiple
        fewer = f"fewer than {question.per_device} images a device (data.batch_size)"
        raise _does_not_fit(question, shortage, fewer if more else _SMALLER) from None
    plan: dict[str, Any] = {
        "name": config.name,
        "model": config.model.name,
        "dtype": config.model.dtype,
        "mode": config.parallel.mode,
        "topology": str(part),
        "chips": part.chips if part.chip else mesh.size,
        "devices": mesh.size,
        "device": mesh.devices.flat[0].device_kind,
        "jax": jax.__version__,
        "size": list(question.size),
        "size_from": question.size_from,
        "notes": list(question.notes),
        "net": figures.of_net(question.assembly, question.size),
        "step": _figures(question, program),
    }
    if part.chip is not None:
        images = config.train.steps * config.data.batch_size
        plan["run"] = {"images": images, "steps": config.train.steps, "batch_size": config.data.batch_size}
        # Of a sharded state each device of another slice has another share: nothing follows for it.
        others = [] if config.parallel.shard_state else slices.family(part.chip)
        plan["slices"] = figures.of_slices(part, others, plan["step"], images)
    if largest and question.available:
        try:
            found = largest_batch(
                question.compile,
                program,
                question.available,
                multiple=question.multiple,
                seconds=seconds - (time.monotonic() - start),
                search=search,
            )
        except jax.errors.JaxRuntimeError as error:
            # Of another batch; what is known of this one stands.
            reason = one_line(error, 200)
            plan["notes"].append(f"the search for the largest batch ended in an error of the compiler: {reason}")
            return plan
        plan["largest"] = figures.of_capacity(found)
        if found.largest is not program:
            plan["largest_step"] = _figures(question, found.largest)
    return plan


def latency(question: Question) -> dict[str, Any]:
    """The labels of one image, on one device. Raises UserError where they do not fit."""
    try:
        program = question.compile_prediction()
    except TooLarge as shortage:
        raise _does_not_fit(question, shortage, _SMALLER) from None
    return figures.of_prediction(question.assembly, question.part, question.size, program)


def sweep(question: Question) -> Iterator[dict[str, Any]]:
    """The steps of one part, two, four … images a device, until they do not fit.

    Raises ConfigError where devices do not tell what they hold, and any step would fit.
    """
    if not question.available:
        raise ConfigError(f"--sweep: the devices of {question.part} do not tell what memory they have; name a slice")
    share = question.multiple
    while True:
        try:
            yield _figures(question, question.compile(share))
        except TooLarge as shortage:
            yield {"images_a_device": share, "fault": f"{share} images a device do not fit: {shortage}"}
            return
        share *= 2


def compare(
    config: experiment.Config,
    part: Slice,
    options: Sequence[str],
    size: str,
    classes: int | None,
    remember: Path | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each combination of the options, `field=value,value`, and the step that it gives, or why there is none.

    Raises UserErrors, before anything is compiled, for what no combination makes good.
    """
    choices = [_choices(config, option) for option in options]
    asked: dict[str, Question | UserError] = {}
    for combination in itertools.product(*choices):
        variant = copy.deepcopy(config)
        for field, value in combination:
            group, _, name = field.rpartition(".")
            (variant[group] if group else variant)[name] = value
        label = ", ".join(f"{field}={value}" for field, value in combination)
        try:
            asked[label] = ask(variant, part, size, classes, remember)
        except UserError as error:
            asked[label] = error
    faults = [each for each in asked.values() if isinstance(each, UserError)]
    if len(faults) == len(asked):
        raise faults[0]
    for label, question in asked.items():
        if isinstance(question, UserError):
            yield label, {"fault": str(question)}
            continue
        try:
            yield label, _figures(question, question.compile())
        except TooLarge as shortage:
            yield label, {"fault": f"does not fit: {shortage}"}


def _choices(config: experiment.Config, option: str) -> list[tuple[str, Any]]:
    field, _, values = option.partition("=")
    known = fields.flat(config.to_dict())
    if field not in known:
        raise ConfigError(f"--compare={option}: no config field {field!r}{did_you_mean(field, known)}")
    if not values:
        raise ConfigError(f"--compare={option} names no values: --compare model.dtype=float32,bfloat16")
    kind = type(known[field])
    if kind is tuple:
        raise ConfigError(
            f"--compare={option}: {field} holds several values: plan each choice by itself, --config.{field}=…"
        )
    if kind is bool:
        if set(values.split(",")) - {"true", "false", "True", "False"}:
            raise ConfigError(f"--compare={option}: {field} is true or false")
        return [(field, value.lower() == "true") for value in values.split(",")]
    try:
        return [(field, kind(value)) for value in values.split(",")]
    except ValueError:
        raise ConfigError(f"--compare={option}: {field} is a {kind.__name__}") from None


def _does_not_fit(question: Question, shortage: TooLarge, smaller: str) -> UserError:
    name, available = question.assembly.config.name, question.available / 2**30
    return UserError(f"{name} does not fit {question.part}: {shortage}, {available:.2f} GiB there; try {smaller}")


def _figures(question: Question, program: Program) -> dict[str, Any]:
    return figures.of_step(question.assembly, question.part, question.size, program, question.mesh.size)
