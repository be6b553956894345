"""Our convolution against XLA's own over a grid of layer shapes: forward, and the gradients of map and of kernel.

    python -m benchmarks.conv_shapes                          the whole grid: about a quarter of an hour on two cores
    python -m benchmarks.conv_shapes --minutes 5              as far as that, and on from there when run again
    python -m benchmarks.conv_shapes --shapes 20              twenty shapes, spread over the grid
    python -m benchmarks.conv_shapes --only 7x7 --works kernel
    python -m benchmarks.conv_shapes --again                  once more, three times as often, what seemed slower
    python -m benchmarks.conv_shapes --report                 the table of what this commit has measured

Of what was measured twice the later figure counts: runs of a hundredth of a millisecond differ by more than a seventh.

`ratio` is XLA's seconds over ours: below 1/1.15 we have made a layer more than 15 % slower. Where both are the same
program it is 1 and only one is timed. `share` is the attained part of what the machine allows, the smaller of the
matrix rate and intensity times bandwidth, both measured in the run; told of layers above a GFLOP.
"""

import argparse
import dataclasses
import functools
import itertools
import random
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import records, timing
from fcn_jax.ops.convolution import conv2d

WORKS = ("forward", "input", "kernel")  # the pass, and whose gradient
_MAPS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# In and out: from the image, equal, widening and narrowing, the fully connected, the scores.
_CHANNELS = (
    *((3, 16), (3, 64), (3, 96), (8, 8), (16, 16), (32, 32), (64, 64), (128, 128), (256, 256), (512, 512)),
    *((1024, 1024), (2048, 2048), (4096, 4096), (64, 128), (256, 512), (512, 1024), (512, 4096), (512, 2048)),
    *((2048, 512), (256, 64), (64, 21), (256, 21), (4096, 21)),
)
# Layers of the nets at about 360×480 and 224×224: map, channels in and out, taps, dilation.
_NETS = (
    *((256, 3, 64, 3, 1), (256, 64, 64, 3, 1), (128, 64, 128, 3, 1), (128, 128, 128, 3, 1), (64, 128, 256, 3, 1)),
    *((64, 256, 256, 3, 1), (48, 256, 512, 3, 1), (48, 512, 512, 3, 1), (24, 512, 512, 3, 1), (14, 512, 512, 3, 1)),
    *((12, 512, 4096, 7, 1), (7, 512, 4096, 7, 1), (12, 4096, 4096, 1, 1), (12, 4096, 21, 1, 1), (48, 512, 512, 3, 2)),
    *((48, 512, 1024, 3, 12), (48, 1024, 1024, 1, 1), (45, 2048, 512, 3, 1), (256, 64, 21, 3, 1)),
)
# Unpadded: fc6, and the trunk where only what the image reaches is convolved.
_UNPADDED = (
    *((16, 512, 4096, 7, 1), (7, 512, 4096, 7, 1), (256, 64, 64, 3, 1), (128, 128, 128, 3, 1)),
    *((96, 256, 256, 3, 1), (58, 512, 512, 3, 1)),
)
# Several images: side, channels in and out, taps, dilation, stride, images.
_BATCHES = (
    *((32, 64, 64, 3, 1, 1, 8), (32, 256, 256, 3, 1, 1, 8), (16, 512, 512, 3, 1, 1, 8), (32, 256, 512, 3, 1, 1, 4)),
    *((64, 128, 128, 3, 1, 1, 4), (128, 64, 64, 3, 1, 1, 4), (128, 32, 32, 3, 1, 1, 4), (128, 16, 16, 3, 1, 1, 4)),
    *((128, 3, 16, 3, 1, 1, 4), (64, 64, 8, 3, 1, 1, 8), (32, 64, 21, 3, 1, 1, 4), (32, 32, 32, 3, 1, 1, 2)),
    *((128, 256, 21, 3, 1, 1, 4), (32, 128, 128, 3, 12, 1, 4), (8, 128, 512, 7, 1, 1, 4), (64, 16, 16, 1, 1, 1, 8)),
    *((32, 64, 256, 1, 1, 1, 8), (16, 512, 21, 1, 1, 1, 8)),
)
# Strided, as in residual nets, AlexNet and GoogLeNet.
_STRIDED = (
    *((240, 3, 64, 7, 1, 2), (224, 3, 64, 7, 1, 2), (227, 3, 96, 11, 1, 4), (120, 128, 128, 3, 1, 2)),
    *((60, 256, 256, 3, 1, 2), (32, 512, 512, 3, 1, 2), (120, 256, 512, 1, 1, 2), (60, 512, 1024, 1, 1, 2)),
    *((128, 16, 32, 3, 1, 2), (64, 32, 64, 3, 1, 2, 4), (64, 16, 32, 1, 1, 2, 4), (128, 3, 16, 7, 1, 2, 4)),
)
_SAMPLED = {True: 221, False: 30}  # padded, and not
_KERNELS = ((1, 1), (3, 1), (3, 2), (3, 12), (7, 1), (7, 2), (11, 1))  # taps a side, dilation
_MOST_OPERATIONS, _MOST_BYTES = 40e9, 2**30
_LARGE = 1e9  # operations from which the attained share is told
_TOLERATED = 1.15
_AGAIN = 3  # times as many rounds
_SHOWN = ("shape", "work", "ratio", "ours_ms", "xla_ms", "gflop", "gflops", "share", "same_program")
_WORST = 12


@dataclasses.dataclass(frozen=True)
class Shape:
    """A layer on a square map, padded so that with a stride of one the map keeps its size, or not at all."""

    side: int
    inputs: int
    outputs: int
    kernel: int
    dilation: int
    stride: int = 1
    images: int = 1
    _: dataclasses.KW_ONLY
    padded: bool = True

    @property
    def name(self) -> str:
        """As records and `--only` call it: `64x64 128>256 3x3 d2`; behind it, where it is so, s2, b4, unpadded."""
        name = f"{self.side}x{self.side} {self.inputs}>{self.outputs} {self.kernel}x{self.kernel} d{self.dilation}"
        name += f" s{self.stride}" * (self.stride > 1) + f" b{self.images}" * (self.images > 1)
        return name if self.padded else f"{name} unpadded"

    @property
    def operations(self) -> float:
        """Of each work: a product and a sum are two."""
        return 2.0 * self.images * self.output_side**2 * self.kernel**2 * self.inputs * self.outputs

    @property
    def bytes(self) -> float:
        """Of map, kernel and output, each touched once."""
        cells = self.side**2 * self.inputs + self.output_side**2 * self.outputs
        return 4.0 * (self.images * cells + self.kernel**2 * self.inputs * self.outputs)

    @property
    def padding(self) -> int:
        """On each side."""
        return self.dilation * (self.kernel - 1) // 2 if self.padded else 0

    @property
    def output_side(self) -> int:
        """Cells along a side of the output."""
        return (self.side + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def is_sensible(self) -> bool:
        """Whether a net might have it, and this machine can measure it."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (
            self.operations <= _MOST_OPERATIONS
            # The gradients hold a second map or kernel beside those.
            and 2 * self.bytes <= _MOST_BYTES
            # A kernel that sees nothing but padding beyond its middle is none.
            and reach <= (2 * self.side + 5 if self.padded else self.side)
            and (self.padded or self.kernel > 1)
            # The image's channels come on an image; thousands of channels do not.
            and (self.inputs > 3 or self.side >= 32)
            and (self.kernel < 11 or max(self.inputs, self.outputs) <= 256)
            and (self.kernel < 7 or self.dilation == 1 or self.inputs <= 256)
        )


def grid() -> list[Shape]:
    """Every shape that is measured: the nets' own, and of all sensible combinations a sample that stays the same."""
    layers: list[tuple[int, ...]] = [*_NETS, *_BATCHES, *_STRIDED]
    shapes = [Shape(*layer) for layer in layers] + [Shape(*layer, padded=False) for layer in _UNPADDED]
    for padded, count in _SAMPLED.items():
        product = itertools.product(_KERNELS, _CHANNELS, _MAPS)
        combined = [Shape(side, *channels, *kernel, padded=padded) for kernel, channels, side in product]
        shapes += random.Random(0).sample([shape for shape in combined if shape.is_sensible()], count)
    return list(dict.fromkeys(shapes))


def main() -> None:
    """Measures what this commit lacks, appends each row as it comes, prints the worst."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=0, help="so many of the grid, evenly spread; 0: all")
    parser.add_argument("--only", default="", help="shapes whose name matches this pattern, such as '7x7' or ' 3>64 '")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no further shape is begun")
    parser.add_argument("--rounds", type=int, default=timing.ROUNDS)
    parser.add_argument("--again", action="store_true", help="measure anew what seemed more than 15 %% slower")
    parser.add_argument("--report", action="store_true", help="measure nothing, print what has been")
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    arguments = parser.parse_args()
    wanted = chosen(grid(), arguments.shapes, arguments.only)
    path = arguments.results / "conv_shapes.csv"
    if not arguments.report:
        rounds = arguments.rounds * (_AGAIN if arguments.again else 1)
        measure(wanted, arguments.works, path, arguments.minutes, rounds, arguments.again)
    names = {shape.name for shape in wanted}
    print(report([row for (shape, _), row in measured_here(path).items() if shape in names]))


def measured_here(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """What this commit has measured last of each shape and work."""
    here = records.commit()
    return {(row["shape"], row["work"]): row for row in records.read(path) if row["commit"] == here}


def chosen(shapes: list[Shape], count: int, pattern: str) -> list[Shape]:
    """Those whose name matches, and of them `count`, evenly spread (0: all)."""
    matching = [shape for shape in shapes if re.search(pattern, shape.name)]
    if not count or count >= len(matching):
        return matching
    return [matching[place * len(matching) // count] for place in range(count)]


def measure(
    shapes: list[Shape], works: Iterable[str], path: Path, minutes: float, rounds: int, again: bool = False
) -> None:
    """Appends a row for each shape and work that this commit has none of, or, `again`, one in which we seem slower."""
    deadline = time.monotonic() + 60 * minutes
    where = records.circumstances(timing.matrix_rate())
    bandwidth = timing.bandwidth()
    log = records.Log(path.stem, where, path.parent)
    done = measured_here(path)
    for shape, work in itertools.product(shapes, works):
        known = done.get((shape.name, work))
        if (known is None or float(known["ratio"]) * _TOLERATED >= 1) if again else known is not None:
            continue
        if time.monotonic() > deadline:
            print("the minutes are over; run it again to go on")
            return
        row = measured(shape, work, where.matrix_gflops, bandwidth, rounds)
        log.append([row])


def measured(shape: Shape, work: str, matrix_gflops: float, bandwidth: float, rounds: int) -> dict[str, Any]:
    """The row of one work on one shape."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((shape.images, shape.side, shape.side, shape.inputs), np.float32))
    kernel = jnp.asarray(rng.standard_normal((shape.kernel, shape.kernel, shape.inputs, shape.outputs), np.float32))
    cotangent = jnp.ones((shape.images, shape.output_side, shape.output_side, shape.outputs))
    programs = {
        name: jax.jit(_work(function, work)).lower(x, kernel, cotangent).compile()
        for name, function in (("ours", _ours(shape)), ("xla", _xla(shape)))
    }
    same = _essence(programs["ours"]) == _essence(programs["xla"])
    runs = {
        name: timing.repeated(functools.partial(program, x, kernel, cotangent))
        for name, program in programs.items()
        if name == "ours" or not same
    }
    seconds = {name: timing.summary(spent) for name, spent in timing.in_turn(runs, rounds, warm_up=0).items()}
    ours = seconds["ours"]["seconds"]
    theirs = seconds.get("xla", seconds["ours"])["seconds"]
    gflops = shape.operations / ours / 1e9
    attainable = min(matrix_gflops, shape.operations / shape.bytes * bandwidth)
    return {
        "shape": shape.name,
        "work": work,
        "ratio": theirs / ours,
        "ours_ms": 1e3 * ours,
        "xla_ms": 1e3 * theirs,
        "same_program": int(same),
        "gflop": shape.operations / 1e9,
        "gflops": gflops,
        "bandwidth": bandwidth,
        "share": gflops / attainable,
        "rounds": rounds,
    }


def _essence(program: jax.stages.Compiled) -> str:
    """What a program computes, without the names and source lines of its instructions."""
    lines = [line for line in (program.as_text() or "").splitlines() if re.search(r" = |ENTRY|^}", line)]
    return re.sub(r", metadata=\{[^}]*\}|[._]\d+\b|%[\w.-]+", "", "\n".join(lines))


def _ours(shape: Shape) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return lambda x, kernel: conv2d(x, kernel, stride=shape.stride, padding=shape.padding, dilation=shape.dilation)


def _xla(shape: Shape) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return lambda x, kernel: lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(shape.stride, shape.stride),
        padding=[(shape.padding, shape.padding)] * 2,
        rhs_dilation=(shape.dilation, shape.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _work(convolve: Callable[[jax.Array, jax.Array], jax.Array], work: str) -> Callable[..., jax.Array]:
    """A function of map, kernel and the output's gradient; what it does not need of them is dropped."""

    def forward(x, kernel, cotangent):
        return convolve(x, kernel)

    def of_input(x, kernel, cotangent):
        return jax.vjp(lambda x: convolve(x, kernel), x)[1](cotangent)[0]

    def of_kernel(x, kernel, cotangent):
        return jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](cotangent)[0]

    return {"forward": forward, "input": of_input, "kernel": of_kernel}[work]


def report(rows: list[dict[str, Any]]) -> str:
    """The worst ratios and the worst shares, and how many there are of each."""
    rows = [{name: _number(value) for name, value in row.items()} for row in rows]
    if not rows:
        return "nothing measured at this commit"
    slow = [row for row in rows if row["ratio"] * _TOLERATED < 1]
    large = [row for row in rows if row["gflop"] >= _LARGE / 1e9]
    poor = [row for row in large if row["share"] < 0.6]
    shapes = len({row["shape"] for row in rows})
    return "\n".join(
        [
            f"{len(rows)} works on {shapes} shapes; {len(slow)} more than 15 % slower than XLA's own",
            records.table(sorted(rows, key=lambda row: row["ratio"])[:_WORST], _SHOWN),
            f"{len(large)} of at least a GFLOP; {len(poor)} of them below 60 % of what is attainable",
            records.table(sorted(large, key=lambda row: row["share"])[:_WORST], _SHOWN),
            "the largest gains",
            records.table(sorted(rows, key=lambda row: -row["ratio"])[:_WORST], _SHOWN),
        ]
    )


def _number(value: str) -> Any:
    try:
        return float(value)
    except ValueError:
        return value


if __name__ == "__main__":
    main()
