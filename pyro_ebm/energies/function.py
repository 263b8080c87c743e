"""Any callable as an energy."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm._core.shapes import broadcast, check_energy_shape, leading_shape
from pyro_ebm.energies.energy import Energy, EventShape, Support


class FunctionEnergy(Energy):
    """A callable as an energy, over one variable or several: `E(*values) = fn(*values)`.

    The callable takes values with any leading dims, `(*sample, *batch, *event)`, and reduces their event dims. An
    `nn.Module` becomes a submodule, so that its parameters are the energy's.

    Args:
        fn: the callable; a module-level function or an `nn.Module` pickles, a lambda does not.
        event_shape: one event shape, or a list with one for each variable.
        support: one support, or a list with one for each variable.
        batch_shape: the batch shape of tensors that `fn` closes over.
        score_fn: the score `∇ log p = -∇E` by hand, where that is faster than automatic differentiation, or where `fn`
            has none: `(*sample, *batch, *event)` to the same shape. For one variable only.

    Raises:
        EnergyShapeError: at a call, if `fn` does not return `(*sample, *batch)`, or `score_fn` the shape it is given.
        ValueError: if `score_fn` comes with several variables, or with an `fn` that has parameters to learn: their
            gradients would be lost.
    """

    fn: Callable[..., Tensor]

    def __init__(
        self,
        fn: Callable[..., Tensor],
        event_shape: EventShape,
        *,
        support: Support = constraints.real,
        batch_shape: Sequence[int] = (),
        score_fn: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(event_shape, support=support, batch_shape=batch_shape)
        self.fn = fn
        self.score_fn = score_fn
        if score_fn is not None and self.num_variables != 1:
            raise ValueError(f"energy: got score_fn for {self.num_variables} variables, expected one variable.")
        if score_fn is not None and any(p.requires_grad for p in self.parameters()):
            raise ValueError(
                "energy: got score_fn with a module that has parameters to learn, expected none: their gradients would "
                "be lost. Freeze them (module.requires_grad_(False)), or leave out score_fn."
            )
        self._name = f"energy({getattr(fn, '__name__', type(fn).__name__)})"

    def forward(self, *values: Tensor) -> Tensor:
        """The energy at values `(*sample, *batch, *event)`, `(*sample, *batch)`."""
        if len(values) != self.num_variables:
            raise TypeError(f"{self._name}: got {len(values)} values, expected {self.num_variables}.")
        leads = [leading_shape(v, s, self._name) for v, s in zip(values, self.event_shapes, strict=True)]
        expected = broadcast([self.batch_shape, *leads], self._name)
        value = self.fn(*values) if self.score_fn is None else _with_score(values[0], self.fn, self.score_fn)
        return check_energy_shape(value, expected, self._name)


def _with_score(x: Tensor, fn: Callable[[Tensor], Tensor], score_fn: Callable[[Tensor], Tensor]) -> Tensor:
    value: Tensor = _WithScore.apply(x, fn, score_fn)  # type: ignore[no-untyped-call]
    return value


class _WithScore(torch.autograd.Function):
    """An energy whose gradient is given."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, fn: Callable[[Tensor], Tensor], score_fn: Callable[[Tensor], Tensor]) -> Tensor:
        return fn(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.score_fn = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        score = ctx.score_fn(x)
        if score.shape != x.shape:
            raise EnergyShapeError(f"score_fn: got shape {tuple(score.shape)}, expected {tuple(x.shape)}, that of x.")
        weight = gradients[0].reshape(gradients[0].shape + (1,) * (x.dim() - gradients[0].dim()))
        return -weight * score, None, None


def energy(
    fn: Callable[..., Tensor] | nn.Module,
    event_shape: EventShape,
    *,
    support: Support = constraints.real,
    batch_shape: Sequence[int] = (),
    score_fn: Callable[[Tensor], Tensor] | None = None,
) -> FunctionEnergy:
    """Make an energy of a callable: see `FunctionEnergy`.

    >>> import torch
    >>> spring = energy(lambda x, y: (x - y).square().sum(-1), event_shape=[(3,), (3,)])
    >>> spring(torch.zeros(5, 3), torch.ones(3))
    tensor([3., 3., 3., 3., 3.])
    """
    return FunctionEnergy(fn, event_shape, support=support, batch_shape=batch_shape, score_fn=score_fn)
