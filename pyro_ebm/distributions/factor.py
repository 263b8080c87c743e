"""One energy factor among the sites of a model."""

from typing import Any

import pyro
from pyro.distributions import Unit
from torch import Size, Tensor

from pyro_ebm._core.errors import EnergySupportError
from pyro_ebm._core.shapes import broadcast, check_energy_shape, leading_shape
from pyro_ebm._core.validation import validation_enabled
from pyro_ebm.distributions._coupling import check_coupling
from pyro_ebm.distributions._legality import check_unnormalized
from pyro_ebm.energies import Energy


class _EnergyFactor(Unit):  # type: ignore[misc]
    """`pyro.factor`'s distribution, which remembers what the factor is a function of."""

    def __init__(self, energy: Tensor, values: tuple[Tensor, ...]) -> None:
        self._energy, self._values = energy, values
        super().__init__(-energy)

    def expand(self, batch_shape: Size, _instance: Any = None) -> "_EnergyFactor":
        new: _EnergyFactor = self._get_checked_instance(_EnergyFactor, _instance)
        new._energy, new._values = self._energy, self._values
        Unit.expand(self, batch_shape, _instance=new)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        check_unnormalized(self._energy, self._values)
        log_prob: Tensor = super().log_prob(value)
        return log_prob


def factor(name: str, energy: Energy, *values: Tensor) -> None:
    """Declare one energy factor among existing sites: the joint density is multiplied by `exp(-E(*values))`.

    Plates, masks, scales and `pyro.render_model` see it as they see `pyro.factor`.

    Args:
        name: the name of the factor.
        energy: an energy over as many variables as there are values.
        *values: the values, each `(*batch, *event)`; their batch dims broadcast, and line up with the enclosing plates.

    Raises:
        EnergyShapeError: if a value does not end in its event shape, or the energy does not reduce just the event dims.
        CoupledPlateError: if it ties together elements of a plate that is subsampled.
        EnergySupportError: if a value is outside of the energy's support, and Pyro's validation is on.
        UnnormalizedError: under inference, if the energy depends on learned or sampled tensors other than `values`: the
            joint density's log Z would depend on them too. Where such a term is meant, say so with `pyro.factor`.

    >>> import torch
    >>> import pyro.distributions as dist
    >>> from pyro_ebm import energy
    >>> attract = energy(lambda x, y: (x - y) ** 2, event_shape=[(), ()])
    >>> def model():
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     y = pyro.sample("y", dist.Normal(0.0, 1.0))
    ...     factor("attract", attract, x, y)
    >>> trace = pyro.poutine.trace(pyro.condition(model, {"x": torch.tensor(1.0), "y": torch.tensor(3.0)})).get_trace()
    >>> trace.compute_log_prob()
    >>> trace.nodes["attract"]["log_prob"]
    tensor(-4.)
    """
    what = f'at factor "{name}"'
    if not isinstance(energy, Energy):
        raise TypeError(
            f"{what}: got {type(energy).__name__}, expected an Energy. Wrap a callable: energy(fn, event_shape=...)."
        )
    if len(values) != energy.num_variables:
        raise TypeError(f"{what}: got {len(values)} values, expected {energy.num_variables}, one for each variable.")
    leads = [leading_shape(v, s, what) for v, s in zip(values, energy.event_shapes, strict=True)]
    if validation_enabled():
        for value, support in zip(values, energy.supports, strict=True):
            if not bool(support.check(value).all()):
                raise EnergySupportError(
                    f"{what}: got a value outside of the energy's support {support}, expected all inside. Give its "
                    "site that support, or declare the energy on a wider one (support=...)."
                )
    expected = broadcast([energy.batch_shape, *leads], what)
    result = check_energy_shape(energy(*values), expected, what)
    declare_factor(name, result, values)
    check_coupling(name, result, values)


def declare_factor(name: str, energy: Tensor, values: tuple[Tensor, ...]) -> None:
    """Declare a factor by its energy at the values `(*batch,)`, and these values."""
    distribution = _EnergyFactor(energy, values)
    pyro.sample(name, distribution, obs=distribution.sample(), infer={"is_auxiliary": True})
