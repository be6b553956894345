"""What the text of a compiled TPU program tells: traffic to memory, collectives, copies, padding, host transfers.

A program is a tree of computations; those that are run are the entry and the bodies of loops, each instruction of
which reads its operands from memory and writes its result there. An asynchronous one does so where it is started. What
lies in the chip's fast memory (`S(1)` in a layout) costs no traffic; a layout's tile, `T(8,128)`, tells to what its two
innermost axes are padded.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator

KINDS = ("convolutions", "matrix products", "pooling", "layout copies", "the rest")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
HOST_TRANSFERS = ("infeed", "outfeed", "send", "recv")
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}
# fmt: off
# What computes and moves nothing by itself.
_FREE = frozenset((
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "iota",
))
# fmt: on
_FUSED = ("fusion", "fusion-start", "async-start")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ")
_SLICES = ("slice", "dynamic-slice")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array in a program: what its values take, and what it takes as laid out (`padded`), in bytes."""

    dtype: str
    shape: tuple[int, ...]
    layout: str
    values: int
    padded: int
    in_memory: bool  # and not in the chip's fast memory

    @property
    def traffic(self) -> int:
        return self.padded if self.in_memory else 0

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: its arrays (several, where the result is a tuple), and the names of its operands and computations."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str

    @property
    def origin(self) -> str:
        """The path of the JAX operation that it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def free(self) -> bool:
        """Whether it computes and moves nothing by itself."""
        return self.opcode in _FREE or self.opcode.endswith(("-update", "-done"))

    @property
    def collective(self) -> bool:
        return self.opcode.removesuffix("-start") in COLLECTIVES

    @property
    def fused(self) -> str | None:
        """The computation that it is made of, where it is a fusion or asynchronous."""
        return self.called("calls") if self.opcode in _FUSED else None

    def called(self, role: str) -> str | None:
        found = re.search(rf"\b{role}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of a kind: how many are run a step, and the bytes that a device gives into them."""

    kind: str
    count: int
    size: int
    behind: bool = False  # run while a device does other work


class CompiledText:
    """The instructions of a program, by computation, and what can be read off them."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        instructions: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line.endswith("{") and not line.startswith((" ", "HloModule")):
                name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
                instructions = self.computations[name] = {}
                self.entry = name if line.startswith("ENTRY") else self.entry
            elif head := _HEAD.match(line):
                instruction = _instruction(head[1], line[head.end() :])
                instructions[instruction.name] = instruction

    def run(self) -> Iterator[tuple[str, Instruction, int]]:
        """Each instruction that is run, with its computation and how often a step runs it."""
        yield from self._run(self.entry, 1)

    def _run(self, computation: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        for instruction in self.computations[computation].values():
            yield computation, instruction, times
            if instruction.opcode == "while":
                trips = self._trips(instruction.called("condition") or "")
                yield from self._run(instruction.called("body") or "", times * trips)
            elif instruction.opcode == "call":
                yield from self._run(instruction.called("to_apply") or "", times)
            elif instruction.opcode == "conditional":
                for branch in re.findall(r"%([\w.\-]+)", instruction.rest.partition("metadata")[0]):
                    if branch in self.computations:
                        yield from self._run(branch, times)

    def _trips(self, condition: str) -> int:
        """How often a loop runs: the constant that its counter is compared with."""
        counts = [
            int(found[1])
            for instruction in self.computations.get(condition, {}).values()
            if instruction.opcode == "constant" and (found := re.match(r"\((\d+)\)", instruction.rest))
        ]
        return max(counts, default=1)

    def traffic(self) -> dict[str, int]:
        """Bytes to and from memory a step, by kind of operation.

        What collectives read and write is left out: they do it while they send, and the time of that is counted by
        itself.
        """
        total: dict[str, int] = dict.fromkeys(KINDS, 0)
        for computation, instruction, times in self.run():
            total[self.kind(instruction)] += times * self._traffic(computation, instruction)
        return total

    def kind(self, instruction: Instruction) -> str:
        """One of KINDS: that of the largest work in an instruction, a fusion as a rule."""
        inside = [instruction, *self._inside(instruction)]
        products = [each for each in inside if each.opcode in ("convolution", "dot")]
        if products:
            return "convolutions" if any("conv_general" in each.origin for each in products) else "matrix products"
        if any(each.opcode in ("reduce-window", "select-and-scatter") for each in inside):
            return "pooling"
        return "layout copies" if self.is_copy(instruction) else "the rest"

    def is_copy(self, instruction: Instruction) -> bool:
        """Whether an instruction only lays values out in another way."""
        work = {each.opcode for each in self._inside(instruction) or [instruction] if not each.free}
        return bool(work & {"copy", "transpose"}) and work <= {"copy", "transpose", "reshape"}

    def copies(self) -> list[tuple[int, str, str]]:
        """What is laid out anew: bytes of traffic a step, what, and the operation that it comes from; largest first."""
        found = [
            (times * self._traffic(computation, instruction), str(instruction.arrays[0]), instruction.origin)
            for computation, instruction, times in self.run()
            if self.is_copy(instruction)
        ]
        return sorted((entry for entry in found if entry[0]), reverse=True)

    def padding(self) -> list[tuple[int, Array, str]]:
        """Arrays in memory that are padded: bytes of padding, array, operation; largest first, each shape once."""
        largest: dict[str, tuple[int, Array, str]] = {}
        for _, instruction, _ in self.run():
            if instruction.free and instruction.opcode != "parameter":
                continue
            for array in instruction.arrays:
                if array.in_memory and array.padded > array.values:
                    largest[f"{array}{array.layout}"] = (array.padded - array.values, array, instruction.origin)
        return sorted(largest.values(), key=lambda entry: -entry[0])

    def collectives(self) -> list[Collective]:
        """What devices send each other a step, by kind."""
        counts: dict[tuple[str, bool], list[int]] = defaultdict(lambda: [0, 0])
        for scope, instruction, times, behind in self._sending():
            kind = instruction.opcode.removesuffix("-start")
            given = instruction.arrays
            if kind in ("all-gather", "reduce-scatter"):  # all others give as much as they get
                given = [array for name in instruction.operands if name in scope for array in scope[name].arrays]
            elif instruction.opcode.endswith("-start"):  # operands and results, side by side
                given = given[: max(len(instruction.operands), 1)]
            counts[kind, behind][0] += times
            counts[kind, behind][1] += times * sum(array.values for array in given)
        return [Collective(kind, *given, behind=behind) for (kind, behind), given in counts.items()]

    def _sending(self) -> Iterator[tuple[dict[str, Instruction], Instruction, int, bool]]:
        """Each collective once, its computation, how often it is run, and whether behind other work.

        One that is done behind other work is in every fusion that brings it a bit further, all of one chain.
        """
        chains = set()
        for computation, instruction, times in self.run():
            outside = self.computations[computation]
            within = [(scope, each) for scope in self._called(instruction) for each in scope.values()]
            for scope, each in [(outside, instruction), *within]:
                if each.collective:
                    chain = re.search(r'chain_id="\d+"', each.rest)
                    if chain is None or chain[0] not in chains:
                        started = any(one.opcode.endswith("-start") for one in (instruction, each))
                        yield scope, each, times, started or chain is not None
                    if chain is not None:
                        chains.add(chain[0])

    def _called(self, instruction: Instruction) -> Iterator[dict[str, Instruction]]:
        """The computations that make up a fusion."""
        fused = instruction.fused
        if fused in self.computations:
            yield self.computations[fused]
            for each in self.computations[fused].values():
                yield from self._called(each)

    def operand_types(self, instruction: Instruction) -> set[str]:
        """The types of an instruction's operands."""
        scope = next(each for each in self.computations.values() if each.get(instruction.name) is instruction)
        return {array.dtype for name in instruction.operands if name in scope for array in scope[name].arrays}

    def everything(self) -> Iterator[Instruction]:
        """All instructions, those inside of fusions too."""
        for computation in self.computations.values():
            yield from computation.values()

    def host_transfers(self) -> list[str]:
        """Instructions that would wait for the host."""
        return [
            f"{each.opcode} {each.name} ({each.origin})"
            for each in self.everything()
            if each.opcode.removesuffix("-done") in HOST_TRANSFERS
            or "S(5)" in "".join(array.layout for array in each.arrays)
            or (each.opcode == "custom-call" and re.search(r'custom_call_target="[^"]*(callback|Host)', each.rest))
        ]

    @functools.cache  # noqa: B019  a program is looked at by one short-lived object
    def _inside(self, instruction: Instruction) -> list[Instruction]:
        return [each for computation in self._called(instruction) for each in computation.values()]

    def _traffic(self, computation: str, instruction: Instruction) -> int:
        """Bytes that one run of an instruction reads and writes, without those of collectives."""
        opcode, scope = instruction.opcode.removesuffix("-start"), self.computations[computation]
        if (
            instruction.free
            or instruction.collective
            or (opcode == "custom-call" and re.search(r'"(AllocateBuffer|ConcatBitcast)"', instruction.rest))
        ):
            return 0
        operands = [scope[name].arrays for name in instruction.operands if name in scope]
        results = instruction.arrays
        if instruction.opcode == "copy-start":
            return sum(array.traffic for array in results[:2])  # where to, and where from
        if instruction.opcode.endswith("-start"):
            # They stand behind the operands; the scalars after them are the compiler's own.
            results = tuple(array for array in results[sum(map(len, operands)) :] if array.shape)
        if opcode in _SLICES:
            # Only what is cut out is read, and written where it does not stay in fast memory.
            source = operands[0][0].in_memory if operands and operands[0] else False
            return sum(array.traffic + (array.padded if source else 0) for array in results[:1])
        if opcode == "dynamic-update-slice":
            return 2 * sum(array.traffic for array in operands[1])
        reads = [sum(array.traffic for array in each) for each in operands]
        fused = instruction.fused
        if fused in self.computations:
            return self._fused_traffic(self.computations[fused], reads, results)
        return sum(reads) + sum(array.traffic for array in results)

    def _fused_traffic(self, inside: dict[str, Instruction], reads: list[int], results: tuple[Array, ...]) -> int:
        """Bytes that a fusion reads of its operands, of which it may only use slices, and writes.

        What its collectives alone read and write is left out, and so is what fusions in which one is done behind other
        work hand on to each other.
        """
        root = next(reversed(inside.values()))
        if re.search(r'"AsyncCollective(Start|Done)"', root.rest):
            return 0
        sent = set[str]()
        for each in inside.values():
            # Of a sum a device may keep a part alone.
            part = each.opcode in (*_SLICES, "bitcast", "get-tuple-element") and each.operands[0] in sent
            if part or each.collective or "chain_id=" in each.rest:
                sent.add(each.name)
        written, arrays = sum(array.traffic for array in results), iter(results)
        if sent:
            for name in root.operands if root.opcode == "tuple" else (root.name,):
                given = sum(array.traffic for array in itertools.islice(arrays, len(inside[name].arrays)))
                written -= given if name in sent or inside[name].opcode == "parameter" else 0
            if root.opcode == "tuple":
                sent.add(root.name)
        for each in inside.values():
            if each.opcode != "parameter":
                continue
            place = int(re.match(r"\((\d+)\)", each.rest)[1])  # pyright: ignore[reportOptionalSubscript]
            users = [user for user in inside.values() if each.name in user.operands]
            if place >= len(reads) or not users:
                continue
            if all(user.name in sent for user in users):
                reads[place] = 0
            elif all(user.opcode in _SLICES for user in users):
                reads[place] = min(reads[place], sum(user.arrays[0].padded for user in users))
            elif all(user.opcode == "dynamic-update-slice" and user.operands[0] == each.name for user in users):
                # Updated in place: the rest of it stays where it is.
                updates = sum(inside[user.operands[1]].arrays[0].padded for user in users)
                written = max(written - reads[place], 0) + min(updates, reads[place])
                reads[place] = 0
        return sum(reads) + written


def without_fast_memory(text: str) -> str:
    """The text of a program as if every array lay in memory: its traffic is all that instructions read and write."""
    return re.sub(r"S\([1-9]\d*\)", "", text)


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else re.match(r"\S*", text).end() - 1  # pyright: ignore
    kind, text = text[: end + 1], text[end + 1 :].lstrip()
    opcode, _, _ = text.partition("(")
    end = _closing(text, len(opcode))
    inside = text[len(opcode) + 1 : end]
    arrays = tuple(_array(*found) for found in _SHAPE.findall(kind))
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    keep = f"({inside})" if opcode in ("parameter", "constant") else ""
    return Instruction(name, opcode.strip(), arrays, operands, keep + text[end + 1 :])


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` is closed."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.start()
    return len(text) - 1


@functools.lru_cache(maxsize=4096)
def _array(dtype: str, dims: str, layout: str) -> Array:
    shape = tuple(int(size) for size in dims.split(",") if size)
    bits = re.search(r"\d+$", dtype)
    size = _BYTES.get(dtype, int(bits[0]) / 8 if bits else 4)
    order, _, tiles = layout.partition(":")
    padded = list(shape)
    tile = re.search(r"T\(([\d,]+)\)", tiles)
    if tile and shape:
        axes = [int(axis) for axis in order.split(",") if axis] or list(range(len(shape)))[::-1]
        for axis, length in zip(axes, reversed(tile[1].split(",")), strict=False):
            padded[axis] = -(-padded[axis] // int(length)) * int(length)
    in_memory = not re.search(r"S\([1-9]", tiles)
    return Array(dtype, shape, layout, int(math.prod(shape) * size), int(math.prod(padded) * size), in_memory)
