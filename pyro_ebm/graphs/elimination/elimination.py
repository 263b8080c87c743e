"""Exact answers by bucket elimination: log Z, marginals, the mode, samples, entropy.

Variables leave one by one: the tables that have one are added up over their clique, and it is summed (or maximised)
out, `m(rest) = log Σ_v exp Σ_t t(v, rest)`. Marginals are the gradient of log Z, passed back step by step and not by
autograd, so that transforms and inference mode have them too; samples are drawn on the way back.

References:
    Dechter 1999, Bucket elimination: a unifying framework for reasoning.
    Darwiche 2003, A differential approach to inference in Bayesian networks.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.concrete import is_transformed
from pyro_ebm.graphs.elimination.plan import Plan, Step, plan_of
from pyro_ebm.graphs.tables import LogTables


def log_partition(tables: LogTables) -> Tensor:
    """Log Z in nats, `(*batch,)`, differentiable, twice as well.

    Raises:
        TreewidthError: if the tables would be too large.
    """
    potentials = [group.log_potentials for group in tables.groups]
    recorded = any(is_transformed(each) or each.requires_grad for each in potentials) and torch.is_grad_enabled()
    plan = _affordable_plan(tables, keeps_messages=recorded)
    messages = dict(enumerate(_rows(tables, plan)))
    for number, step in enumerate(plan.steps, len(messages)):
        messages[number] = _sum_out(step, [messages.pop(each) for each in step.inputs], tables)
    return _total(messages, plan, tables)


def marginals(tables: LogTables) -> tuple[list[Tensor], list[Tensor]]:
    """The marginal probabilities of elements, and of the factors' scopes.

    Returns:
        For each element its `(*batch, K)`; for each group of factors `(*batch, F, K_1, ..., K_r)`. They are
        differentiable where the tables are.
    """
    plan = _affordable_plan(tables, keeps_messages=True)
    messages = _messages(tables, plan)
    gradients = dict.fromkeys(plan.outputs, tables.like.new_ones(1))
    for number, step in zip(reversed(range(len(messages))), reversed(plan.steps), strict=False):
        inputs = [messages[each] for each in step.inputs]
        if inputs:
            parts = _weights(step, inputs, messages[number], gradients.pop(number))
            gradients.update(zip(step.inputs, parts, strict=True))
    groups = _grouped([gradients[number] for number in range(len(plan.permutations))], tables, plan)
    return _of_elements(tables, groups), groups


def _grouped(rows: Sequence[Tensor], tables: LogTables, plan: Plan) -> list[Tensor]:
    """What is found for each factor, `(batch or 1, ...)` with dims in the order of elimination, by group."""
    batch = tables.batch_shape
    groups, start = [], 0
    for group in tables.groups:
        count = len(group.scopes)
        places = plan.permutations[start : start + count]
        members = [
            row if place is None else row.permute([place.index(k) for k in range(len(place))])
            for row, place in zip(rows[start : start + count], places, strict=True)
        ]
        whole = [member.expand(batch.numel(), *group.sizes) for member in members]
        groups.append(torch.stack(whole, 1).reshape(*batch, count, *group.sizes))
        start += count
    return groups


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
    """A most probable joint state, as state numbers of elements, `(*batch, N)`.

    Raises:
        ValueError: if no joint state is possible.
    """
    plan = _affordable_plan(tables, keeps_messages=True)
    messages = {number: row.detach() for number, row in enumerate(_rows(tables, plan))}
    choices = []
    for number, step in enumerate(plan.steps, len(messages)):
        best, choice = _clique(step, [messages.pop(each) for each in step.inputs], tables).max(dim=1)
        messages[number] = best
        choices.append(choice)
    require_mass("mode", _total(messages, plan, tables))
    batch = tables.batch_shape.numel()
    place = torch.arange(batch, device=tables.like.device)
    states: dict[int, Tensor] = {}  # of each element, `(batch,)`
    for step, choice in zip(reversed(plan.steps), reversed(choices), strict=True):
        choice = choice.expand(batch, *choice.shape[1:])
        states[step.variable] = choice[(place, *[states[each] for each in step.rest])] if step.rest else choice
    return _side_by_side(states, Size([batch]), tables).reshape(*tables.batch_shape, len(states))


def sample(tables: LogTables, sample_shape: Size, generator: Generator | None = None) -> Tensor:
    """Exact draws, as state numbers of elements, `(*sample, *batch, N)`.

    Raises:
        ValueError: if no joint state is possible.
    """
    plan = _affordable_plan(tables, keeps_messages=True)
    with torch.no_grad():
        messages = _messages(tables, plan)
        require_mass("sample", _total(messages, plan, tables))
        batch, draws = tables.batch_shape.numel(), sample_shape.numel()
        like = tables.like
        shape = (len(tables.num_states), batch, draws)
        noise = torch.rand(shape, dtype=like.dtype, device=like.device, generator=generator)
        states: dict[int, Tensor] = {}  # of each element, `(batch, draws)`
        for step in reversed(plan.steps):
            entries = [
                _at(messages[number], [states[step.rest[member]] for member in members])
                for number, members in zip(step.inputs, step.members, strict=True)
            ]
            count = tables.num_states[step.variable]
            logits = sum(entries, like.new_zeros(count, 1, 1))
            cumulative = torch.softmax(logits, 0).cumsum(0)
            states[step.variable] = (noise[step.variable] * cumulative[-1] >= cumulative).sum(0).clamp(max=count - 1)
        chosen = _side_by_side(states, Size([batch, draws]), tables)
        return chosen.transpose(0, 1).reshape(*sample_shape, *tables.batch_shape, len(states))


def _side_by_side(states: Mapping[int, Tensor], lead: Size, tables: LogTables) -> Tensor:
    """The states of all elements, `(*lead, N)`, from those of each."""
    if not states:
        return torch.empty(*lead, 0, dtype=torch.long, device=tables.like.device)
    return torch.stack([states[element] for element in range(len(states))], -1)


def require_mass(what: str, log_mass: Tensor) -> None:
    """Check that there is a possible state, which transforms cannot branch on.

    Raises:
        ValueError: if there is none, for some element of the batch.
    """
    if not is_transformed(log_mass) and not bool((log_mass > -torch.inf).all()):
        raise ValueError(
            f"{what}: got log-potentials under which no joint state is possible (or NaN), expected at least one for "
            "every element of the batch. Some energies are infinite at each of them."
        )


def _at(message: Tensor, states: Sequence[Tensor]) -> Tensor:
    """Rows of a table, `(batch or 1, K, *rest)`, at states of the rest, each `(batch, draws)`: `(K, batch, draws)`.

    Where there is no rest, draws are a dim of one.
    """
    if not states:
        return message.mT.unsqueeze(-1)
    sizes = message.shape[2:]
    flat = message.flatten(2)
    strides = [sizes[k + 1 :].numel() for k in range(len(sizes))]
    index = (torch.stack(list(states)) * states[0].new_tensor(strides)[:, None, None]).sum(0)
    if len(flat) == 1:
        return flat[0][:, index]
    return flat.gather(2, index.unsqueeze(1).expand(-1, flat.shape[1], -1)).movedim(1, 0)


def _affordable_plan(tables: LogTables, *, keeps_messages: bool) -> Plan:
    plan = plan_of(tables)
    plan.require_affordable(tables.batch_shape.numel(), tables.like.element_size(), keeps_messages)
    return plan


def _messages(tables: LogTables, plan: Plan) -> list[Tensor]:
    """The factors' tables, and the messages of all steps."""
    messages = _rows(tables, plan)
    for step in plan.steps:
        messages.append(_sum_out(step, [messages[number] for number in step.inputs], tables))
    return messages


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


def _clique(step: Step, inputs: Sequence[Tensor], tables: LogTables) -> Tensor:
    """The sum of the tables that have a variable, `(batch or 1, K, *rest)`."""
    return _joint(inputs, step) if inputs else tables.like.new_zeros(1, tables.num_states[step.variable])


def _joint(inputs: Sequence[Tensor], step: Step) -> Tensor:
    total = inputs[0][step.views[0]]
    for each, view in zip(inputs[1:], step.views[1:], strict=True):
        total = total + each[view]
    return total


def _sum_out(step: Step, inputs: Sequence[Tensor], tables: LogTables) -> Tensor:
    if not inputs:
        return tables.like.new_full((1,), float(tables.num_states[step.variable])).log()
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


def _weights(step: Step, inputs: Sequence[Tensor], output: Tensor, gradient: Tensor) -> list[Tensor]:
    """The gradient of a message handed on to its inputs, `(batch or 1, ...)` for each; zero where all is `-inf`."""
    finite = output.masked_fill(output == -torch.inf, torch.inf)
    weight = (_joint(inputs, step) - finite.unsqueeze(1)).exp() * gradient.unsqueeze(1)
    return [weight.sum(absent) if absent else weight for absent in step.absent]


def _total(messages: Sequence[Tensor] | Mapping[int, Tensor], plan: Plan, tables: LogTables) -> Tensor:
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
        parts = _weights(ctx.step, inputs, output, gradients[0])
        return None, *(
            part.sum(0, keepdim=True) if len(each) == 1 and len(part) > 1 else part
            for each, part in zip(inputs, parts, strict=True)
        )


# Looked up by torch at every call, and slow to find.
_LogSumExp.forward.__signature__ = inspect.signature(_LogSumExp.forward)  # type: ignore[attr-defined]
