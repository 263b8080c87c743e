"""Exact answers by bucket elimination: log Z, marginals, the mode, samples, entropy.

Variables leave one by one: the tables that have one are added up over their clique, and it is summed (or maximised)
out, `m(rest) = log Σ_v exp Σ_t t(v, rest)`. Marginals are the gradient of log Z; samples are drawn on the way back.

References:
    Dechter 1999, Bucket elimination: a unifying framework for reasoning.
    Darwiche 2003, A differential approach to inference in Bayesian networks.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.concrete import is_transformed
from pyro_ebm.graphs.plan import Plan, Step, plan_of
from pyro_ebm.graphs.tables import LogTables, TableGroup


def log_partition(tables: LogTables) -> Tensor:
    """Log Z in nats, `(*batch,)`, differentiable, twice as well.

    Raises:
        TreewidthError: if the tables would be too large.
    """
    plan = _affordable_plan(tables)
    messages = _rows(tables, plan)
    for step in plan.steps:
        messages.append(_sum_out(step, messages, tables))
    return _total(messages, plan, tables)


def marginals(tables: LogTables) -> tuple[list[Tensor], list[Tensor]]:
    """The marginal probabilities of elements, and of the factors' scopes.

    Returns:
        For each element its `(*batch, K)`; for each group of factors `(*batch, F, K_1, ..., K_r)`. They are
        differentiable where the tables are.
    """
    wants_gradient = torch.is_grad_enabled() and any(group.log_potentials.requires_grad for group in tables.groups)
    batch = tables.batch_shape
    with torch.enable_grad():
        leaves = []
        for group in tables.groups:  # a row for each factor, even where they share a table
            full = group.log_potentials.expand(*batch, len(group.scopes), *group.sizes)
            leaves.append(full if wants_gradient and full.requires_grad else full.detach().requires_grad_())
        rows = [TableGroup(group.scopes, leaf) for group, leaf in zip(tables.groups, leaves, strict=True)]
        value = log_partition(LogTables(tables.variables, tables.num_states, tuple(rows), batch))
        gradients = torch.autograd.grad(value.sum(), leaves, create_graph=wants_gradient) if leaves else ()
    return _of_elements(tables, gradients), list(gradients)


def _of_elements(tables: LogTables, groups: Sequence[Tensor]) -> list[Tensor]:
    """The marginals of elements, each from a factor that it is in; uniform for those that are in none."""
    found: dict[int, Tensor] = {}
    order = sorted(range(len(groups)), key=lambda number: tables.groups[number].arity)
    for number in order:
        group = tables.groups[number]
        first = len(tables.batch_shape) + 1
        for column, elements in enumerate(group.scopes.mT.tolist()):
            new = {element: row for row, element in enumerate(elements) if element not in found}
            if new:
                others = [first + k for k in range(group.arity) if k != column]
                single = groups[number].sum(others) if others else groups[number]
                rows = single.unbind(-2)
                found.update({element: rows[row] for element, row in new.items()})
    return [
        found[element] if element in found else tables.like.new_full((*tables.batch_shape, count), 1 / count)
        for element, count in enumerate(tables.num_states)
    ]


def entropy(tables: LogTables) -> Tensor:
    """The entropy in nats, `(*batch,)`: `log Z - Σ_f E[log φ_f]`."""
    _, groups = marginals(tables)
    total = log_partition(tables)
    for group, probability in zip(tables.groups, groups, strict=True):
        term = probability * group.log_potentials.masked_fill(group.log_potentials == -torch.inf, 0)
        total = total - term.flatten(len(tables.batch_shape)).sum(-1)
    return total


def mode(tables: LogTables) -> Tensor:
    """A most probable joint state, as state numbers of elements, `(*batch, N)`."""
    plan = _affordable_plan(tables)
    messages = [row.detach() for row in _rows(tables, plan)]
    choices = []
    for step in plan.steps:
        best, choice = _clique(step, messages, tables).max(dim=1)
        messages.append(best)
        choices.append(choice)
    batch = tables.batch_shape.numel()
    states = torch.zeros(len(tables.num_states), batch, dtype=torch.long, device=tables.like.device)
    rows = torch.arange(batch, device=states.device)
    for step, choice in zip(reversed(plan.steps), reversed(choices), strict=True):
        choice = choice.expand(batch, *choice.shape[1:])
        states[step.variable] = choice[(rows, *states[list(step.rest)])]
    return states.mT.reshape(*tables.batch_shape, -1)


def sample(tables: LogTables, sample_shape: Size, generator: Generator | None = None) -> Tensor:
    """Exact draws, as state numbers of elements, `(*sample, *batch, N)`."""
    plan = _affordable_plan(tables)
    with torch.no_grad():
        messages = [row.detach() for row in _rows(tables, plan)]
        for step in plan.steps:
            messages.append(_sum_out(step, messages, tables))
        batch, draws = tables.batch_shape.numel(), sample_shape.numel()
        like = tables.like
        states = torch.zeros(len(tables.num_states), batch, draws, dtype=torch.long, device=like.device)
        noise = torch.rand(states.shape, dtype=like.dtype, device=like.device, generator=generator)
        for step in reversed(plan.steps):
            entries = [
                _at(messages[number], states[[step.rest[member] for member in members]])
                for number, members in zip(step.inputs, step.members, strict=True)
            ]
            count = tables.num_states[step.variable]
            logits = sum(entries, like.new_zeros(count, 1, 1))
            cumulative = torch.softmax(logits, 0).cumsum(0)
            states[step.variable] = (noise[step.variable] * cumulative[-1] >= cumulative).sum(0).clamp(max=count - 1)
    return states.permute(2, 1, 0).reshape(*sample_shape, *tables.batch_shape, -1)


def _at(message: Tensor, states: Tensor) -> Tensor:
    """Rows of a table, `(batch or 1, K, *rest)`, at states of the rest `(rest, batch, draws)`: `(K, batch, draws)`."""
    sizes = message.shape[2:]
    flat = message.flatten(2) if sizes else message.unsqueeze(-1)
    strides = [sizes[k + 1 :].numel() for k in range(len(sizes))]
    index = (states * states.new_tensor(strides)[:, None, None]).sum(0)
    if len(flat) == 1:
        return flat[0][:, index]
    return flat.gather(2, index.unsqueeze(1).expand(-1, flat.shape[1], -1)).movedim(1, 0)


def _affordable_plan(tables: LogTables) -> Plan:
    plan = plan_of(tables)
    plan.require_affordable(tables.batch_shape.numel(), tables.like.element_size())
    return plan


def _rows(tables: LogTables, plan: Plan) -> list[Tensor]:
    """The factors' tables one by one, `(batch or 1, K_1, ..., K_r)`, their dims in the order of elimination."""
    rows: list[Tensor] = []
    batch = tables.batch_shape
    for group in tables.groups:
        count, lead = len(group.scopes), group.batch_shape
        table = group.log_potentials.expand(*(batch if lead.numel() > 1 else lead), count, *group.sizes)
        rows += table.reshape(-1, count, *group.sizes).unbind(1)
    return [
        row if permutation is None else row.permute(permutation)
        for row, permutation in zip(rows, plan.permutations, strict=True)
    ]


def _clique(step: Step, messages: Sequence[Tensor], tables: LogTables) -> Tensor:
    """The sum of the tables that have a variable, `(batch or 1, K, *rest)`."""
    if not step.inputs:
        return tables.like.new_zeros(1, tables.num_states[step.variable])
    return _joint([messages[number] for number in step.inputs], step)


def _joint(inputs: Sequence[Tensor], step: Step) -> Tensor:
    total = inputs[0][step.views[0]]
    for each, view in zip(inputs[1:], step.views[1:], strict=True):
        total = total + each[view]
    return total


def _sum_out(step: Step, messages: Sequence[Tensor], tables: LogTables) -> Tensor:
    if not step.inputs:
        return tables.like.new_full((1,), float(tables.num_states[step.variable])).log()
    inputs = [messages[number] for number in step.inputs]
    if not any(each.requires_grad or is_transformed(each) for each in inputs):
        return _log_sum_exp(step, inputs)  # the function below costs as much again
    message: Tensor = _LogSumExp.apply(step, *inputs)  # type: ignore[no-untyped-call]
    return message


def _log_sum_exp(step: Step, inputs: Sequence[Tensor]) -> Tensor:
    joint = _joint(inputs, step)
    if joint.shape[1] == 2:
        return torch.logaddexp(joint[:, 0], joint[:, 1])
    top = joint.amax(1, keepdim=True).clamp(min=torch.finfo(joint.dtype).min)  # where all is -inf, so is the result
    return (joint - top).exp_().sum(1).log_().add_(top.squeeze(1))


def _total(messages: Sequence[Tensor], plan: Plan, tables: LogTables) -> Tensor:
    total = tables.like.new_zeros(1)
    for number in plan.outputs:
        total = total + messages[number]
    return total.expand(tables.batch_shape.numel()).reshape(tables.batch_shape)


class _LogSumExp(torch.autograd.Function):
    """Adds tables up over a clique, and sums its first variable out, in logarithms.

    Where all is `-inf` the result is, and gradients are zero. What is saved is the inputs, not the clique, which is as
    large as all of them: it is made again on the way back.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(step: Step, *inputs: Tensor) -> Tensor:
        return _log_sum_exp(step, inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.step = inputs[0]
        ctx.save_for_backward(output, *inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        output, *inputs = ctx.saved_tensors
        finite = output.masked_fill(output == -torch.inf, torch.inf)
        weight = (_joint(inputs, ctx.step) - finite.unsqueeze(1)).exp() * gradients[0].unsqueeze(1)
        results: list[Tensor | None] = [None]
        for each, absent in zip(inputs, ctx.step.absent, strict=True):
            part = weight.sum(absent) if absent else weight
            results.append(part.sum(0, keepdim=True) if len(each) == 1 and len(part) > 1 else part)
        return tuple(results)


# Looked up by torch at every call, and slow to find.
_LogSumExp.forward.__signature__ = inspect.signature(_LogSumExp.forward)  # type: ignore[attr-defined]
