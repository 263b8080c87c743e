"""A traced step as the source of a C function that repeats it."""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from pyro_ebm._core.program import operations as operations  # registers its handlers
from pyro_ebm._core.program.branches import guard_whole
from pyro_ebm._core.program.carry import replace_carry
from pyro_ebm._core.program.demand import guard_rows
from pyro_ebm._core.program.inlining import inline_constants
from pyro_ebm._core.program.linking import Callee
from pyro_ebm._core.program.loops import Loop, LoopWriter, group
from pyro_ebm._core.program.lowering import Lowering, UnsupportedError
from pyro_ebm._core.program.pointwise import C_TYPES, PREAMBLE, literal
from pyro_ebm._core.program.statements import (
    Buffer,
    Guard,
    Indirect,
    Operand,
    Statement,
    View,
    contiguous,
    renumber,
)

_ALIGNMENT = 64

# Of a function, at most, unless a single loop has more.
_LINES = 400
_PARAMETERS = "void** memory, void** library, char* arena, int forced"
_PRODUCTS = (
    "gemm_f64* dgemm = (gemm_f64*)library[0]; gemm_f32* sgemm = (gemm_f32*)library[1]; (void)dgemm; (void)sgemm;"
)
_BUFFER = re.compile(r"\bb\d+\b")


@dataclass(frozen=True)
class CSource:
    """C code for `carry, y = step(carry, x, constants)`, repeated.

    Attributes:
        text: the code, with the function `void run(void** memory, void** library, char* arena, int64_t repetitions,
            int forced)`. `memory` points to the carry, the stacked x and the constants, then the stacked y, which holds
            zeros, then `captured`; the stacked ones are moved on. Where `forced` is one, all `choices` fall on what is
            new.
        arena_size: bytes of scratch memory.
        captured: tensors that the graph holds.
        choices: names of the nodes that select all or nothing, by one boolean.
        linked: programs and callbacks that it calls.
        addresses: theirs, which follow those of matrix products in `library`.
    """

    text: str
    arena_size: int
    captured: tuple[Tensor, ...]
    choices: frozenset[str]
    linked: tuple[Callee, ...]
    addresses: tuple[int, ...]


def write_source(
    graph_module: fx.GraphModule, carry: list[Tensor], x: list[Tensor], constants: list[Tensor]
) -> tuple[CSource, list[Tensor]]:
    """Lower a step, whose inputs are `[*carry, *x, *constants]` and whose outputs `[*carry, *y]`.

    Returns:
        The source, and the outputs at the example inputs.

    Raises:
        UnsupportedError: if the graph has an operation or dtype that C programs do not know.
    """
    lowering = Lowering(graph_module, len(carry) + len(x))
    outputs: list[Tensor] = list(lowering.run(*carry, *x, *constants))
    nodes = next(n for n in graph_module.graph.nodes if n.op == "output").args[0]
    for old, new in zip(carry, outputs[: len(carry)], strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise UnsupportedError(f"a carry that turns from {_kind(old)} to {_kind(new)}")
    results = lowering.outputs(nodes)
    y = [lowering.new_view(value.dtype, value.shape, "output") for value in outputs[len(carry) :]]
    for result, place in zip(results[len(carry) :], y, strict=True):
        _store(lowering, result, place)
    replace_carry(lowering, lowering.inputs[: len(carry)], results[: len(carry)])
    statements, buffers = lowering.statements, lowering.buffers
    _mark_constant(statements, buffers)
    inline_constants(statements, buffers)
    _drop_dead(statements, buffers)
    _mark_constant(statements, buffers)
    guard_rows(statements, buffers)
    guard_whole(statements, buffers)
    once = [i for i, s in enumerate(statements) if buffers[s.target_view.buffer].constant]
    repeated = [i for i, s in enumerate(statements) if not buffers[s.target_view.buffer].constant]
    loops = [group(statements, once), group(statements, repeated)]
    arena, size = _arena(statements, loops, buffers)
    memory = [*lowering.inputs, *y, *(contiguous(b, ()) for b in lowering.captured)]
    stepping = [*range(len(carry), len(carry) + len(x)), *range(len(lowering.inputs), len(lowering.inputs) + len(y))]
    places = {view.buffer: f"memory[{i}]" for i, view in enumerate(memory)}
    places |= {buffer: f"(arena + {at})" for buffer, at in arena.items()}
    pointers = {f"b{b}": f"{(kind := C_TYPES[buffers[b].dtype])}* b{b} = ({kind}*){at};" for b, at in places.items()}
    functions, calls = _functions([_write(statements, each, buffers) for each in loops], pointers)
    advance = [
        f"memory[{i}] = ({C_TYPES[buffers[memory[i].buffer].dtype]}*)memory[{i}] + {buffers[memory[i].buffer].numel};"
        for i in stepping
    ]
    text = "\n".join(
        [
            PREAMBLE,
            *functions,
            "void run(void** memory, void** library, char* arena, int64_t repetitions, int forced) {",
            *calls[0],
            "for (int64_t repetition = 0; repetition < repetitions; repetition++) {",
            *calls[1],
            *advance,
            "}",
            "}",
            "",
        ]
    )
    captured, choices = tuple(lowering.captured.values()), frozenset(lowering.choices)
    linked, addresses = tuple(lowering.linked), tuple(lowering.addresses)
    return CSource(text, size, captured, choices, linked, addresses), outputs


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _store(lowering: Lowering, result: View, place: View) -> None:
    """Copy a result to memory that holds zeros: where one boolean chooses between it and zero, if it does."""
    dtype, guards = lowering.buffers[place.buffer].dtype, frozenset[Guard]()
    source: View | Indirect | str = result
    while isinstance(source, View):
        writers = [s for s in lowering.statements if s.target_view.buffer == source.buffer]
        if len(writers) != 1 or writers[0].target != source or not writers[0].chooses:
            break
        mask, chosen, otherwise = writers[0].operands
        if otherwise.source != literal(0, dtype) or not isinstance(mask.source, View) or chosen.dtype != dtype:
            break
        guards, source = guards | {Guard(mask.source, True)}, chosen.source
    lowering.emit(Statement(place.sizes, (Operand(source, dtype),), place, dtype, guards=guards))


def _drop_dead(statements: list[Statement], buffers: list[Buffer]) -> None:
    """Drop what nothing reads."""
    read: set[int] = {b.index for b in buffers if b.role != "local"}
    kept: list[int] = []
    for number in range(len(statements) - 1, -1, -1):
        statement = statements[number]
        if statement.target_view.buffer in read:
            kept.append(number)
            read.update(view.buffer for view in statement.views())
    renumber(statements, kept[::-1])


def _mark_constant(statements: list[Statement], buffers: list[Buffer]) -> None:
    """Find what is the same in every repetition: it is computed once."""
    for statement in statements:
        buffers[statement.target_view.buffer].constant = buffers[statement.target_view.buffer].role == "local"
    changed = True
    while changed:
        changed = False
        for statement in statements:
            target = buffers[statement.target_view.buffer]
            if target.constant and not all(buffers[v.buffer].constant for v in statement.views()):
                target.constant, changed = False, True


def _functions(stages: list[list[str]], pointers: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """Functions of so many lines each, since compilers take more than twice as long for one that is twice as long.

    Args:
        stages: the loops of each stage.
        pointers: how a function declares each buffer that it names.

    Returns:
        The functions, and how each stage calls its own.
    """
    functions: list[str] = []
    calls: list[list[str]] = []
    for stage in stages:
        calls.append([])
        parts: list[list[str]] = [[]]
        for loop in stage:
            if parts[-1] and sum(each.count("\n") for each in parts[-1]) + loop.count("\n") > _LINES:
                parts.append([])
            parts[-1].append(loop)
        for part in filter(None, parts):
            code = "\n".join(part)
            name = f"part{len(functions)}"
            used = [pointers[each] for each in dict.fromkeys(_BUFFER.findall(code))]
            head = f"static __attribute__((noinline)) void {name}({_PARAMETERS}) {{"
            functions.append("\n".join([head, _PRODUCTS, *used, code, "}"]))
            calls[-1].append(f"{name}(memory, library, arena, forced);")
    return functions, calls


def _write(statements: list[Statement], loops: list[Loop], buffers: list[Buffer]) -> list[str]:
    where: dict[int, set[int]] = {}
    for number, loop in enumerate(loops):
        for i in loop.statements:
            for view in statements[i].views():
                where.setdefault(view.buffer, set()).add(number)
    text = []
    for number, loop in enumerate(loops):
        needed = {
            s.target_view.buffer
            for s in (statements[i] for i in loop.statements)
            if buffers[s.target_view.buffer].role != "local"
            or buffers[s.target_view.buffer].constant
            or where.get(s.target_view.buffer, set()) - {number}
        }
        text.append(LoopWriter(statements, loop, buffers, needed).write())
    return text


def _arena(statements: list[Statement], loops: list[list[Loop]], buffers: list[Buffer]) -> tuple[dict[int, int], int]:
    """Offsets of local buffers in the scratch memory, in bytes; those not alive at once may share it."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    time = 0
    for stage in loops:
        for loop in stage:
            for i in loop.statements:
                for view in [*statements[i].views(), statements[i].target_view]:
                    first.setdefault(view.buffer, time)
                    last[view.buffer] = time
            time += 1
    free: list[tuple[int, int]] = []
    busy: list[tuple[int, int, int]] = []
    places: dict[int, int] = {}
    end = 0
    for index in sorted((b for b in first if buffers[b].role == "local"), key=lambda b: first[b]):
        size = (
            -(-buffers[index].numel * torch.empty(0, dtype=buffers[index].dtype).element_size() // _ALIGNMENT)
            * _ALIGNMENT
        )
        while busy and busy[0][0] < first[index]:
            free.append(heapq.heappop(busy)[1:])
        fitting = min((f for f in free if f[1] >= size), key=lambda f: f[1], default=None)
        if fitting is None:
            at, end = end, end + size
        else:
            free.remove(fitting)
            at = fitting[0]
            if fitting[1] > size:
                free.append((at + size, fitting[1] - size))
        places[index] = at
        heapq.heappush(busy, (time if buffers[index].constant else last[index], at, size))
    return places, end
