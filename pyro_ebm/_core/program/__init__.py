"""Batched programs: a step of tensors, repeated, as one trace, compiled where that pays."""

from pyro_ebm._core.program.program import CompiledFunction, EagerProgram, Program, build_program

__all__ = ["CompiledFunction", "EagerProgram", "Program", "build_program"]
