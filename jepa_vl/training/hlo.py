"""What a compiled program does, read from its text: FLOPs, bytes, collectives, loops unrolled.

XLA's own cost analysis counts the body of a loop once, however often it runs.
"""

import math
import re
from collections import Counter, defaultdict
from functools import cached_property
from typing import NamedTuple

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8": 1, "s16": 2, "u16": 2, "f16": 2,
         "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
         "c128": 16}  # fmt: skip
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
# Names for what is there already, not operations on it.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
        "call", "after-all", "partition-id", "replica-id", "iota", "copy-done", "slice-done",
        "async-done", "async-update", "optimization-barrier"}  # fmt: skip
SLICES = {"dynamic-slice", "slice", "gather"}
CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?([^,}\s]+)")


class Buffer(NamedTuple):
    """An array: element type, dimensions, and whether it lies in the device's main memory."""

    dtype: str
    shape: tuple[int, ...]
    main: bool

    @property
    def bytes(self) -> int:
        """Its size; 0 for tokens."""
        return math.ceil(math.prod(self.shape) * BYTES.get(self.dtype, 0))


class Operation(NamedTuple):
    """One line of a computation."""

    name: str
    kind: str
    out: list[Buffer]
    operands: list[str]
    rest: str
    root: bool


class Collective(NamedTuple):
    """Communication of one kind among groups of one size.

    Attributes:
      kind: one of :data:`COLLECTIVES`.
      group: devices that take part in each.
      count: how often it runs in a step.
      bytes: of its results on one device, all runs together.
    """

    kind: str
    group: int
    count: int
    bytes: int


class Program:
    """A compiled module of one device."""

    def __init__(self, text: str):
        """Args: text: ``compiled.as_text()``."""
        self.computations: dict[str, list[Operation]] = {}
        self.entry, lines = "", None
        for line in text.splitlines():
            if line and not line[0].isspace() and line.rstrip().endswith("{"):
                head = re.match(r"(ENTRY )?%?([\w.\-]+)", line)
                if head and " -> " in line:
                    lines = self.computations.setdefault(head[2], [])
                    self.entry = head[2] if head[1] else self.entry
            elif lines is not None and " = " in line:
                operation = _operation(line)
                if operation:
                    lines.append(operation)
        self.buffers = {
            name: {o.name: o.out for o in operations}
            for name, operations in self.computations.items()
        }

    @cached_property
    def runs(self) -> Counter[str]:
        """How often each computation runs in one execution of the program.

        Raises:
          ValueError: the length of a loop is not known.
        """
        runs: Counter[str] = Counter()

        def visit(name: str, times: int) -> None:
            runs[name] += times
            for operation in self.computations[name]:
                inner = times * self._trips(operation) if operation.kind == "while" else times
                for called in CALLED.findall(operation.rest):
                    if called.lstrip("%") in self.computations and "region" not in operation.kind:
                        visit(called.lstrip("%"), inner)

        visit(self.entry, 1)
        return runs

    def _trips(self, loop: Operation) -> int:
        """Iterations of a loop that counts from 0 up to a constant."""
        known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest)
        if known:
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        operations = self.computations[condition[1]] if condition else []
        limits = [
            int(o.operands[0])
            for o in operations
            if o.kind == "constant" and o.out[0].dtype in ("s32", "u32") and o.operands[0].isdigit()
        ]
        if len(limits) != 1:
            raise ValueError(f"{loop.name}: a loop of unknown length")
        return limits[0]

    def flops(self) -> int:
        """Of all matrix products and convolutions, 2 a multiplication that is not with padding."""
        total = 0
        for name, times in self.runs.items():
            for operation in self.computations[name]:
                if operation.kind in ("dot", "convolution"):
                    total += times * self._product(name, operation)
        return total

    def cycles(self) -> int:
        """The TPU compiler's own estimate of all operations but communication; 0: it gave none."""
        return sum(cycles for cycles, _ in self.costs.values())

    def _product(self, computation: str, operation: Operation) -> int:
        left, right = (self.buffers[computation][o][0].shape for o in operation.operands[:2])
        if operation.kind == "dot":
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", operation.rest)
            dims = [int(d) for d in contracted[1].split(",") if d] if contracted else []
            return 2 * math.prod(operation.out[0].shape) * math.prod(left[d] for d in dims)
        return _convolution(left, right, operation)

    def collectives(self) -> list[Collective]:
        """What devices send each other, each kind and size of group once."""
        count: Counter[tuple[str, int]] = Counter()
        size: Counter[tuple[str, int]] = Counter()
        seen: dict[str, set[tuple[str, tuple]]] = defaultdict(set)
        for name, times in self.runs.items():
            for operation in self.computations[name]:
                kind = operation.kind.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                # One that runs beside computation stands in each fusion that moves it on.
                channel = re.search(r"channel_id=(\d+)", operation.rest)
                shapes = tuple(b.shape for b in operation.out)
                mark = (channel[1], shapes) if channel else (operation.name, ())
                if mark in seen[kind]:
                    continue
                seen[kind].add(mark)
                group, share = group_size(operation.rest), 1
                if name.startswith("all-reduce-scatter"):  # so XLA:TPU writes a reduce-scatter
                    kind, share = "reduce-scatter", max(group, 1)
                key = kind, group
                parts = operation.out
                if operation.kind.endswith("-start") and len(parts) > 1:  # (operands, results, ...)
                    parts = [max(parts, key=lambda b: b.bytes)]
                count[key] += times
                size[key] += times * sum(b.bytes for b in parts) // share
        return [Collective(*key, count[key], size[key]) for key in sorted(count)]

    def bytes_moved(self) -> int:
        """To and from main memory, as the operations stand; what stays on the chip is free."""
        return sum(moved for _, moved in self.costs.values())

    @cached_property
    def costs(self) -> dict[str, tuple[int, int]]:
        """Cycles and bytes moved by the name that tracing gave an operation; empty: it has none."""
        costs: dict[str, tuple[int, int]] = {}
        fused = self._fused()
        for name, times in self.runs.items():
            for operation in self.computations[name]:
                traced = re.search(r'op_name="([^"]*)"', operation.rest)
                told = re.search(r'"estimated_cycles":"(\d+)"', operation.rest)
                key = traced[1] if traced else ""
                cycles, moved = costs.get(key, (0, 0))
                cycles += times * int(told[1]) if told else 0
                moved += 0 if name in fused else times * self._moved(name, operation)
                costs[key] = cycles, moved
        return costs

    def _fused(self) -> set[str]:
        """Computations inside an operation: their buffers never exist."""
        inside, queue = set(), []
        for operations in self.computations.values():
            for operation in operations:
                if operation.kind not in ("while", "call", "conditional"):
                    queue += [c.lstrip("%") for c in CALLED.findall(operation.rest)]
        while queue:
            name = queue.pop()
            if name in inside or name not in self.computations:
                continue
            inside.add(name)
            for operation in self.computations[name]:
                queue += [c.lstrip("%") for c in CALLED.findall(operation.rest)]
        return inside

    def _moved(self, computation: str, operation: Operation) -> int:
        if operation.kind in FREE:
            return 0
        buffers = self.buffers[computation]
        reads = [sum(b.bytes for b in buffers.get(o, []) if b.main) for o in operation.operands]
        writes = sum(b.bytes for b in operation.out if b.main)
        if operation.kind == "slice-start":  # gives (operands, what it takes out, ...)
            out = operation.out[len(operation.operands)]
            return (out.bytes if reads[0] else 0) + (out.bytes if out.main else 0)
        if operation.kind in SLICES:  # what it takes out, not what it takes from
            part = max((b.bytes for b in operation.out), default=0)
            return min(part, reads[0] if reads else 0) + writes
        if operation.kind == "dynamic-update-slice":
            return 2 * (reads[1] if len(reads) > 1 else 0)
        if operation.kind == "copy-start":
            return reads[0] + sum(b.bytes for b in operation.out[:1] if b.main)
        called = CALLED.search(operation.rest)
        if operation.kind == "fusion" and called:
            self._narrow(called[1].lstrip("%"), reads)
            writes = min(writes, self._written(called[1].lstrip("%"), writes))
        return sum(reads) + writes

    def _narrow(self, fusion: str, reads: list[int]) -> None:
        """Of operands that a fusion only takes slices of, counts the slices."""
        operations = self.computations.get(fusion, [])
        for operation in operations:
            if operation.kind != "parameter" or not operation.operands:
                continue
            number = int(operation.operands[0])
            users = [o for o in operations if operation.name in o.operands]
            sliced = [o for o in users if o.kind in SLICES or _updates(o, operation.name)]
            if users and len(sliced) == len(users) and number < len(reads):
                taken = sum(o.out[0].bytes for o in sliced if o.kind in SLICES)
                reads[number] = min(reads[number], taken)

    def _written(self, fusion: str, whole: int) -> int:
        """What a fusion writes that updates a part of a buffer in place."""
        operations = self.computations.get(fusion, [])
        root = next((o for o in operations if o.root), None)
        if root is None or root.kind != "dynamic-update-slice":
            return whole
        update = self.buffers[fusion].get(root.operands[1])
        return update[0].bytes if update else whole


def _updates(operation: Operation, name: str) -> bool:
    return operation.kind == "dynamic-update-slice" and operation.operands[0] == name


def _operation(line: str) -> Operation | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    text = re.sub(r"/\*.*?\*/", "", line[found.end() :])
    end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    kind = re.match(r"\s*([\w\-]+)\(", text[end:])
    if not kind:
        return None
    inside = end + kind.end()
    close = inside - 1 + _closing(text[inside - 1 :])
    operands = [
        o.strip().split(" ")[-1].lstrip("%")
        for o in re.split(r",(?![^{\[(]*[}\])])", text[inside:close])
    ]
    return Operation(
        found[2], kind[1], _buffers(text[:end]), operands, text[close + 1 :], bool(found[1])
    )


def _closing(text: str) -> int:
    """Where the parenthesis that a text begins with is closed."""
    depth = 0
    for place, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if not depth:
            return place
    raise ValueError(f"unbalanced: {text[:80]}")


def _buffers(text: str) -> list[Buffer]:
    found = re.findall(r"([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\](\{[^}]*\})?", text)
    return [
        Buffer(
            dtype if dtype in BYTES else dtype[:2],
            tuple(int(d.lstrip("<=")) for d in dims.split(",") if d),
            not re.search(r"S\([1-9]\d*\)", layout),
        )
        for dtype, dims, layout in found
    ]


def _convolution(left: tuple[int, ...], right: tuple[int, ...], operation: Operation) -> int:
    """2 x multiplications of a convolution; XLA:TPU writes every matrix product as one."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", operation.rest)
    if not labels:
        raise ValueError(f"{operation.name}: a convolution without dim_labels")
    of_left, of_right, of_out = labels[1], labels[2], labels[3]
    batch_groups = re.search(r"batch_group_count=(\d+)", operation.rest)
    total = left[of_left.index("b")] // (int(batch_groups[1]) if batch_groups else 1)
    total *= right[of_right.index("i")] * right[of_right.index("o")]
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", _window(operation.rest)))
    for place in (letter for letter in of_right if letter.isdigit()):
        axis = int(place)
        total *= _valid_positions(
            left[of_left.index(place)],
            right[of_right.index(place)],
            operation.out[0].shape[of_out.index(place)],
            stride=_entry(window, "stride", axis, 1),
            pad=_entry(window, "pad", axis, 0),
            left_dilation=_entry(window, "lhs_dilate", axis, 1),
            right_dilation=_entry(window, "rhs_dilate", axis, 1),
        )
    return 2 * total


def _window(rest: str) -> str:
    found = re.search(r"window=\{([^}]*)\}", rest)
    return found[1] if found else ""


def _entry(window: dict[str, str], name: str, axis: int, default: int) -> int:
    """The value of one axis; of a padding the low end."""
    parts = window[name].split("x") if name in window else []
    return int(parts[axis].split("_")[0]) if axis < len(parts) else default


def _valid_positions(
    size: int, kernel: int, out: int, stride: int, pad: int, left_dilation: int, right_dilation: int
) -> int:
    """Pairs of an output place and a kernel place that meet an element, not padding."""
    valid = 0
    for k in range(kernel):
        for o in range(out):
            at = o * stride - pad + k * right_dilation
            valid += at >= 0 and at % left_dilation == 0 and at // left_dilation < size
    return valid


def group_size(rest: str) -> int:
    """Devices of each group of a collective; 0 where it is not said (a permutation).

    Raises:
      ValueError: groups are told in a way that this does not know.
    """
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest)
    if mesh:
        sizes = dict(re.findall(r"'([\w]+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'([\w]+)'", mesh[2]))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    if not listed and "replica_groups=" in rest:
        raise ValueError(f"groups of a collective: {rest[rest.index('replica_groups=') :][:80]}")
    return len(listed[1].split(",")) if listed else 0
