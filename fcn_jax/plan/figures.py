"""A plan as a tree of figures, which is also what `--json` writes; all of one device unless it says otherwise."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from fcn_jax import evaluation
from fcn_jax.assembly import Assembly
from fcn_jax.labels import by_head
from fcn_jax.plan import operations, published
from fcn_jax.plan.capacity import Capacity
from fcn_jax.plan.compiled_text import Collective, CompiledText, without_fast_memory
from fcn_jax.plan.program import Program, abstract_batch
from fcn_jax.plan.roofline import roofline
from fcn_jax.plan.slices import Slice


def of_step(assembly: Assembly, part: Slice, size: tuple[int, int], program: Program, devices: int) -> dict[str, Any]:
    """What one compiled step needs, computes, moves and takes at the least."""
    state = jax.eval_shape(assembly.begin, assembly.variables)
    batch = abstract_batch(assembly, size, program.per_device)
    done = operations.count(assembly.train_step(), state, batch, platform=_platform(part))
    return _of_program(program, part, done, devices)


def of_prediction(assembly: Assembly, part: Slice, size: tuple[int, int], program: Program) -> dict[str, Any]:
    """The same of one image's labels, on a single device."""
    image = abstract_batch(assembly, size, 1)["image"]
    labels = evaluation.predicted_labels(assembly.model)
    done = operations.count(labels, assembly.variables, image, platform=_platform(part))
    return _of_program(program, part, done, 1)


def _platform(part: Slice) -> str:
    return jax.default_backend() if part.chip is None else "tpu"


def _of_program(program: Program, part: Slice, done: operations.Operations, devices: int) -> dict[str, Any]:
    text = CompiledText(program.text)
    figures: dict[str, Any] = {
        "images_a_device": program.per_device,
        "images_a_step": program.per_device * devices,
        "memory": memory(program, part),
        "operations": dataclasses.asdict(done),
        "collectives": [dataclasses.asdict(each) for each in text.collectives()],
        "compiling_seconds": round(program.seconds, 1),
    }
    if part.chip is not None:
        figures["traffic"] = text.traffic()
        everything = CompiledText(without_fast_memory(program.text)).traffic()
        figures["fast_traffic"] = sum(everything.values()) - sum(figures["traffic"].values())
        figures["layout"] = layout(text)
        figures["roofline"] = times(part, figures, program.per_device * devices)
    return figures


def layout(text: CompiledText, most: int = 12) -> dict[str, Any]:
    """What laying arrays out costs a step, in bytes: copies from one layout to another, and padding in memory."""
    copies = text.copies()
    return {
        "copies": len(copies),
        "copied": sum(size for size, _, _ in copies),
        "largest_copies": [
            {"bytes": size, "array": array, "operation": origin} for size, array, origin in copies[:most]
        ],
        "largest_padding": [
            {"bytes": size, "of": array.padded, "array": str(array), "operation": origin}
            for size, array, origin in text.padding()[:most]
        ],
    }


def memory(program: Program, part: Slice) -> dict[str, Any]:
    """Bytes on a device by what they are for, and what of them limits."""
    parts = dataclasses.asdict(program.memory)
    del parts["arguments"]
    parts["padding"] = program.memory.padding
    largest = max(parts, key=lambda name: parts[name])
    parts["total"] = program.memory.total
    if part.chip is not None:
        parts["available"] = int(part.chip.memory)
    return parts | {"largest": largest}


def times(
    part: Slice, figures: dict[str, Any], images: int, given: Sequence[Collective] | None = None
) -> dict[str, Any]:
    """The roofline of a step on a slice, in seconds, and images a second of the whole slice.

    `given` are the collectives of each device: those of the program, if not others.
    """
    if given is None:
        given = [Collective(**each) for each in figures["collectives"]]
    line = roofline(part, figures["operations"]["passes"], sum(figures["traffic"].values()), given)
    return {
        "arithmetic": line.compute,
        "memory": line.memory,
        "collectives": line.collectives,
        "behind": line.behind,
        "step": line.step,
        "bound": line.bound,
        "images_per_second": images / line.step,
    }


def of_slices(part: Slice, others: Sequence[Slice], figures: dict[str, Any], images: int) -> list[dict[str, Any]]:
    """The same step on its own slice and on others, which is derived: each device does what it does here, the
    collectives are others.

    `images` are those of the whole run, in however many steps of a slice. A single device has no collectives: what
    several would sum is taken to be one gradient for each parameter.
    """
    assert part.chip is not None
    given = [Collective("all-reduce", 1, figures["memory"]["parameters"])] if part.chips == 1 else None
    rows = []
    for other in others if part in others else [part, *others]:
        step_images = figures["images_a_device"] * other.chips
        line = times(other, figures, step_images, given)
        hours = images / line["images_per_second"] / 3600
        rows.append(
            {
                "topology": str(other),
                "chips": other.chips,
                "images_a_step": step_images,
                "collectives": line["collectives"],
                "step": line["step"],
                "bound": line["bound"],
                "images_per_second": line["images_per_second"],
                "run_hours": hours,
                "run_chip_hours": hours * other.chips,
                "derived": other != part,
            }
        )
    return rows


def of_capacity(found: Capacity) -> dict[str, Any]:
    """The largest share of a batch."""
    return {
        "images_a_device": found.largest.per_device,
        "predicted": found.predicted,
        "refused": found.refused,
        "exact": found.exact,
        "promised": found.promised,
        "bytes_without_images": max(int(found.fixed), 0),  # where images take more and more, the line meets none
        "bytes_an_image": int(found.each),
    }


def of_net(assembly: Assembly, size: tuple[int, int]) -> dict[str, Any]:
    """Multiply-adds of one image in use, and the published count by which our counting can be judged."""
    model: Any = assembly.model
    figures: dict[str, Any] = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(assembly.variables["params"])),
        "classes": by_head(model.num_classes),
        "multiply_adds_an_image": published.forward(model, size),
    }
    count = published.count_for(model, assembly.config.model.name)
    if count is not None:
        figures["published"] = dataclasses.asdict(count) | {"counted": published.counted(count)}
    return figures
