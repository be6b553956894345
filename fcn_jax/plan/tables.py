"""A plan in words: lines for a terminal of a hundred columns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_MEMORY = {
    "parameters": "parameters",
    "statistics": "running statistics",
    "optimizer": "optimizer state",
    "batch": "batch",
    "padding": "layout of these",
    "temporaries": "activations, temporaries",
    "results": "results",
    "code": "program",
}


def plan_lines(plan: Mapping[str, Any], layout: bool = False) -> Iterator[str]:
    """Everything about one plan, on request with what layouts cost."""
    net, step = plan["net"], plan["step"]
    images = f"images of {_size(plan['size'])} ({plan['size_from']})"
    yield f"{plan['name']}: {plan['model']} in {plan['dtype']}, {net['parameters']:,} parameters, {images}"
    chips = f"{plan['chips']} chip{'s' * (plan['chips'] > 1)}"
    yield (
        f"{plan['topology']}: {chips}, {plan['devices']} of {plan['device']!r}, "
        f"parallel.mode={plan['mode']}; {_images(step['images_a_device'])} a device, {step['images_a_step']} a step"
    )
    yield from plan["notes"]
    yield ""
    yield from memory_lines(step["memory"])
    yield ""
    yield from operation_lines(net, step)
    yield ""
    yield from collective_lines(step["collectives"])
    if "roofline" in step:
        yield from roofline_lines(step["roofline"])
    if layout and "layout" in step:
        yield ""
        yield from layout_lines(step["layout"])
    if "largest" in plan:
        yield ""
        yield from capacity_lines(plan["largest"], plan.get("largest_step"))
    if "slices" in plan:
        yield ""
        yield from slice_lines(plan)


def memory_lines(memory: Mapping[str, Any]) -> Iterator[str]:
    """Bytes on each device by what they are for, against what there is."""
    available = memory.get("available")
    yield "memory of each device" + (f", of {_gib(available)}" if available else "")
    for name, words in _MEMORY.items():
        if memory[name]:
            share = f"{100 * memory[name] / available:6.1f} %" if available else ""
            yield f"  {words:<26}{_bytes(memory[name]):>12}{share}"
    fits = "" if not available else f"{100 * memory['total'] / available:6.1f} %"
    yield f"  {'total':<26}{_bytes(memory['total']):>12}{fits}   most of it: {_MEMORY[memory['largest']]}"


def operation_lines(net: Mapping[str, Any], step: Mapping[str, Any]) -> Iterator[str]:
    """Operations and traffic by kind, and how our counting compares with what is published."""
    done, traffic = step["operations"], step.get("traffic", {})
    yield "a step of each device          GFLOP    memory traffic"
    for words, key, kinds in (
        ("convolutions", "convolutions", ("convolutions",)),
        ("matrix products", "products", ("matrix products",)),
        ("pooling", "", ("pooling",)),
        ("layout copies", "", ("layout copies",)),
        ("the rest", "rest", ("the rest",)),
    ):
        flops = f"{done[key] / 1e9:12,.1f}" if key else f"{'':12}"
        moved = _bytes(sum(traffic[kind] for kind in kinds)) if traffic else ""
        yield f"  {words:<22}{flops}{moved:>18}"
    if traffic:
        yield f"  {'beside, in fast memory':<34}{_bytes(step['fast_traffic']):>18}"
    yield f"one image in use: {net['multiply_adds_an_image'] / 1e9:,.1f} G multiply-adds before the last up-sampling"
    if "published" in net:
        count = net["published"]
        yield (
            f"counting checked: {count['name']} at {count['size']}×{count['size']}, {count['counted'] / 1e9:.2f} G; "
            f"published {count['multiply_adds'] / 1e9:.2f} G ({count['source']})"
        )


def collective_lines(collectives: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What devices tell each other."""
    if not collectives:
        yield "collectives: none"
    for each in collectives:
        behind = ", behind other work" * each["behind"]
        yield f"collectives: {each['count']} {each['kind']}, {_bytes(each['size'])} from each device a step{behind}"


def roofline_lines(line: Mapping[str, Any]) -> Iterator[str]:
    """The least time of a step, and what it waits for."""
    yield (
        f"roofline: at least {_seconds(line['step'])} a step (arithmetic {_seconds(line['arithmetic'])}, memory "
        f"{_seconds(line['memory'])}, collectives {_seconds(line['collectives'])}), bound by {line['bound']}"
    )
    yield f"          at most {line['images_per_second']:,.0f} images a second; a real step is slower"


def layout_lines(layout: Mapping[str, Any]) -> Iterator[str]:
    """The largest copies from one layout to another, and the arrays with the most padding."""
    yield f"layout copies: {layout['copies']:,} a step, {_bytes(layout['copied'])}; the largest"
    for each in layout["largest_copies"]:
        yield f"  {_bytes(each['bytes']):>10}  {each['array']:<28} {each['operation']}"
    yield "padding in memory, the arrays with the most"
    for each in layout["largest_padding"]:
        share = f"{_bytes(each['bytes'])} of {_bytes(each['of'])}"
        yield f"  {share:>24}  {each['array']:<28} {each['operation']}"


def capacity_lines(largest: Mapping[str, Any], step: Mapping[str, Any] | None) -> Iterator[str]:
    """The largest share of a batch, and how that is known."""
    each, fixed = _bytes(largest["bytes_an_image"]), _bytes(largest["bytes_without_images"])
    count, promised, refused = largest["images_a_device"], largest["promised"], largest["refused"]
    how = f"predicted from {count:,}" if promised else "compiled"
    yield f"largest batch: {_images(promised or count)} a device, {how}; {each} an image beside {fixed}"
    if refused:
        yield f"  {_images(refused)} do not fit" + ("" if largest["exact"] else "; --search looks in between")
    elif promised:
        yield "  not compiled for want of time: --seconds gives more, --search looks on"
    else:
        more = f"memory promises {largest['predicted']:,}" if largest["predicted"] > count else "so memory promises"
        yield f"  {more}; --search makes sure that not one more fits"
    if step and "roofline" in step:
        line = step["roofline"]
        rate = f"at most {line['images_per_second']:,.0f} images a second"
        yield f"  {_images(count)}: at least {_seconds(line['step'])} a step, {rate}, bound by {line['bound']}"


def slice_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """Slices of other sizes, at the same share of a batch on each device."""
    run = plan["run"]
    as_configured = f"{run['steps']:,} steps of {run['batch_size']:,}"
    yield f"the whole run at the roofline: {run['images']:,} images, the config's {as_configured}"
    yield "  hours are for as many images on each slice: the more of them in a step, the fewer steps"
    yield "  slice          chips  images/step    step    images/s      hours  chip-hours"
    for row in plan["slices"]:
        derived = "derived" if row["derived"] else "compiled"
        yield (
            f"  {row['topology']:<14}{row['chips']:>6}{row['images_a_step']:>13,}{_seconds(row['step']):>10}"
            f"{row['images_per_second']:>10,.0f}{row['run_hours']:>11.3f}{row['run_chip_hours']:>12.3f}  {derived}"
        )


def comparison_lines(plans: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Iterator[str]:
    """Several compiled steps, a line each."""
    width = max(map(len, labels))
    yield f"{'':<{width}}  images a device     memory  temporaries    traffic    GFLOP     step  images/s  bound by"
    for plan, label in zip(plans, labels, strict=True):
        step = plan.get("step", plan)
        if "memory" not in step:
            yield f"{label:<{width}}  {plan['fault']}"
            continue
        memory, line, done = step["memory"], step.get("roofline"), step["operations"]
        flops = done["convolutions"] + done["products"] + done["rest"]
        times = (
            f"{_bytes(sum(step['traffic'].values())):>11}{flops / 1e9:>9,.0f}"
            f"{_seconds(line['step']):>9}{line['images_per_second']:>10,.0f}  {line['bound']}"
            if line
            else ""
        )
        yield (
            f"{label:<{width}}{step['images_a_device']:>17}{_bytes(memory['total']):>11}"
            f"{_bytes(memory['temporaries']):>13}{times}"
        )


def latency_lines(size: Sequence[int], figures: Mapping[str, Any]) -> Iterator[str]:
    """The labels of one image on one device."""
    yield f"one image of {_size(size)} in use"
    yield from memory_lines(figures["memory"])
    if "roofline" in figures:
        line = figures["roofline"]
        yield (
            f"at least {_seconds(line['step'])} (arithmetic {_seconds(line['arithmetic'])}, memory "
            f"{_seconds(line['memory'])}), bound by {line['bound']}"
        )


def _size(size: Sequence[int]) -> str:
    return "×".join(map(str, size))


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def _bytes(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}" if unit != "GiB" else f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def _seconds(count: float) -> str:
    return f"{count:.2f} s" if count >= 1 else f"{1e3 * count:.1f} ms" if count >= 1e-4 else f"{1e6 * count:.0f} µs"
