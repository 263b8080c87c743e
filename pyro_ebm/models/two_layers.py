"""Two layers of units in {0, 1}, `p(v, h) ∝ exp(vᵀWh + bᵀv + cᵀh)`: block Gibbs steps, and the sum over all states."""

import torch
from torch import Generator, Size, Tensor
from torch.distributions import constraints
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pyro_ebm._core.errors import TreewidthError
from pyro_ebm._core.products import rows_times
from pyro_ebm._core.supports import enumerate_states

MAX_ENUMERATED_UNITS = 25
# Numbers in a block of states: what is held at a time, and a block is large enough to make Python's share small.
_BLOCK = 2**20


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`, to the last digit in double precision too, which torch's default threshold is not."""
    return functional.softplus(x, threshold=40.0)


def draw_units(logits: Tensor, generator: Generator | None) -> Tensor:
    """Units that are one with probability `sigmoid(logits)`, in the dtype of the logits.

    Uniform numbers in single precision are the fastest; their grain of 1e-7 is far below any Monte Carlo error.
    """
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float32, device=logits.device)
    return (uniform < logits.sigmoid()).to(logits.dtype)


def block_gibbs(
    values: Tensor,
    weight: Tensor,
    first: Tensor,
    second: Tensor,
    beta: float | Tensor,
    generator: Generator | None,
    num_steps: int = 1,
) -> Tensor:
    """Give all units of the second layer new states given the first layer, then the other way round.

    Args:
        values: of the first layer, `(*sample, *batch, V)`, in the dtype of the weight.
        weight: W, `(*batch, V, H)`.
        first: b, `(*batch, V)`.
        second: c, `(*batch, H)`.
        beta: the inverse temperature of the joint energy, a number or one that broadcasts with `(*sample, *batch, 1)`.
        generator: of the random numbers.
        num_steps: how often.
    """
    for _ in range(num_steps):
        hidden = draw_units(beta * (second + rows_times(values, weight)), generator)
        values = draw_units(beta * (first + rows_times(hidden, weight.mT)), generator)
    return values


def two_layer_log_partition(weight: Tensor, first: Tensor, second: Tensor, what: str) -> Tensor:
    """`log Σ_{v,h} exp(vᵀWh + bᵀv + cᵀh)` over all states: those of the smaller layer, with the other summed out.

    States come block by block: those of some units make a table, `Wᵀv` for each, and a state of the others shifts it.
    With gradients, blocks are computed again in the backward pass instead of being kept.

    Args:
        weight: W, `(*batch, V, H)`.
        first: b, `(*batch, V)`.
        second: c, `(*batch, H)`.
        what: who asks, for the error.

    Returns:
        `(*batch,)`.

    Raises:
        TreewidthError: if the smaller layer has more than 25 units.
    """
    if weight.shape[-2] > weight.shape[-1]:
        weight, first, second = weight.mT, second, first
    units, others = weight.shape[-2:]
    if units > MAX_ENUMERATED_UNITS:
        raise TreewidthError(
            f"{what}: got layers of {units} units and more, expected at most {MAX_ENUMERATED_UNITS} units in the "
            f"smaller one: its 2^{units} states are enumerated. Estimate log Z by annealed importance sampling, "
            "along annealing_path(), or track it by persistent walkers."
        )
    affordable = max(1, _BLOCK // (others * weight.shape[:-2].numel()))
    low = max(1, min(units, affordable.bit_length() - 1))
    states = enumerate_states(constraints.boolean, Size((low,)), weight.dtype, weight.device)
    table = states @ weight[..., :low, :]
    bias = (states @ first[..., :low].unsqueeze(-1)).squeeze(-1)
    places = torch.arange(units - low, device=weight.device)
    shared = (table, bias, weight[..., low:, :], first[..., low:], second)
    numbers = torch.arange(2 ** (units - low), device=weight.device)
    if len(numbers) == 1:
        return _block(*shared, numbers[0] >> places & 1)
    if not torch.is_grad_enabled() or not any(each.requires_grad for each in shared):
        total = _block(*shared, numbers[0] >> places & 1)
        for n in numbers[1:]:
            torch.logaddexp(total, _block(*shared, n >> places & 1), out=total)
        return total
    parts = [checkpoint(_block, *shared, n >> places & 1, use_reentrant=False) for n in numbers]
    return torch.stack(parts).logsumexp(0)


def _block(table: Tensor, bias: Tensor, weight: Tensor, first: Tensor, second: Tensor, state: Tensor) -> Tensor:
    """The part of the sum where the units that are not in the table have a state `(n,)`."""
    state = state.to(weight)
    shift = second + state @ weight
    terms = bias + softplus(table + shift.unsqueeze(-2)).sum(-1)
    return terms.logsumexp(-1) + (first * state).sum(-1)
