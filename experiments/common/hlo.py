"""Collective traffic of a compiled program, read from its HLO text.

A collective inside a loop counts as often as the loop runs (XLA writes known trip counts into the text; a loop without
one counts once, and is reported). Bytes are what one device sends when rings are used: of n devices and s bytes a
device holds of the larger side, all-gather and reduce-scatter send s·(n−1)/n, all-reduce twice that, all-to-all
s·(n−1)/n, collective-permute s.

Programs for GPUs and TPUs split a collective in two, so that work goes on while bytes travel: "all-gather-start" and
"all-gather-done". The start is counted, the done is not. Its type has the operands beside the result.
"""

import math
import re
from dataclasses import dataclass, field

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "s16": 16, "u16": 16, "f16": 16,
        "bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


@dataclass
class Traffic:
    """Bytes that one device sends a run of the program, and how many collectives it takes part in.

    Attributes:
      sent: kind → bytes. calls: kind → collectives. unknown_loops: loops with collectives, of a length XLA does not
        say. sources: (kind, operation of the model) → bytes.
    """

    sent: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    unknown_loops: int = 0
    sources: dict[tuple[str, str], float] = field(default_factory=dict)

    def total(self) -> float:
        return sum(self.sent.values())


def shape_bytes(text: str) -> int:
    """Bytes of all arrays of an HLO type: "(f32[4,8]{1,0}, s32[])" is 132."""
    return sum(math.prod(int(size) for size in sizes.split(",") if size) * BITS.get(dtype, 0) // 8
               for dtype, sizes in _SHAPE.findall(text))


def elements(text: str) -> list[str]:
    """The elements of an HLO tuple type: "((f32[4,8]{1,0}), s32[])" has "(f32[4,8]{1,0})" and "s32[]"."""
    parts, depth = [""], 0
    for character in text[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def started(kind: str, result: str) -> str:
    """The type of what a collective gives, from that of its start: an all-reduce's is the same, of all others it is
    (operands, results, …), where an ellipsis stands for what the runtime keeps."""
    return result if kind == "all-reduce" else elements(result)[1]


def group_size(attributes: str, devices: int) -> int:
    """Devices of one group of a collective, from its replica_groups in any of XLA's notations."""
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([^']+)'", match[2])) if match[2] else devices
    return devices


def sent_bytes(kind: str, result: int, devices: int) -> float:
    """Bytes one device sends in one collective of `devices` whose result has `result` bytes on each."""
    share = (devices - 1) / devices
    # What a reduce-scatter reads is `devices` times its result.
    return result * {"all-gather": share, "all-reduce": 2 * share, "reduce-scatter": devices * share,
                     "all-to-all": share, "collective-permute": 1.0}[kind]


def traffic(text: str, devices: int) -> Traffic:
    """Collectives of a compiled module's HLO text (`compiled.as_text()`), with loops multiplied out."""
    bodies, entry = _computations(text)
    found = Traffic()

    def visit(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            result, operation, rest = match.groups()
            if operation in ("async-update", "async-done"):  # these name the computation that async-start calls
                continue
            kind = operation.removesuffix("-start")
            if kind in KINDS:
                result = result if kind == operation else started(kind, result)
                sent = sent_bytes(kind, shape_bytes(result), group_size(rest, devices))
                found.sent[kind] = found.sent.get(kind, 0.0) + times * sent
                found.calls[kind] = found.calls.get(kind, 0) + times
                source = re.search(r'op_name="([^"]*)"', rest)
                key = kind, source[1] if source else "unnamed"
                found.sources[key] = found.sources.get(key, 0.0) + times * sent
                continue
            loop = 1
            if operation == "while":
                trip = re.search(r'known_trip_count[^\d]*(\d+)', rest)
                loop = int(trip[1]) if trip else 1
                before = sum(found.calls.values())
            for called in re.findall(r"(?:body|calls|to_apply|condition)=%?([\w.\-]+)", rest):
                visit(called, times * loop)
            for branches in re.findall(r"branch_computations=\{([^}]*)\}", rest):
                for called in branches.replace("%", "").split(", "):
                    visit(called, times)
            if operation == "while" and not trip and sum(found.calls.values()) > before:
                found.unknown_loops += 1

    visit(entry, 1)
    return found


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of every computation by name, and the name of the entry."""
    bodies: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[2]
            bodies[current] = []
            entry = current if match[1] else entry
        elif line.startswith("}"):
            current = ""
        elif current:
            bodies[current].append(line)
    return bodies, entry
