"""The interactions of statistical physics: fields, couplings of two variables, dense bilinear forms.

Each is over single elements (event shape `()`), so that a factor graph applies it to as many scopes as it has, but for
`BilinearEnergy`, which couples whole vectors.
"""

from torch import Tensor

from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm._core.products import rows_times
from pyro_ebm.energies.energy import Energy


class FieldEnergy(Energy):
    """An external field: `E(x) = -h x`.

    Args:
        field: h, `(*batch,)`; a `Parameter` is learned.
    """

    field: Tensor

    def __init__(self, field: Tensor) -> None:
        super().__init__((), batch_shape=field.shape)
        self._hold(field=field)

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, *batch)`."""
        return -self.field * x


class IsingEnergy(Energy):
    """The Ising coupling of two spins: `E(a, b) = -J a b`; a positive J likes them equal.

    Args:
        coupling: J, `(*batch,)`; a `Parameter` is learned.
    """

    coupling: Tensor

    def __init__(self, coupling: Tensor) -> None:
        super().__init__([(), ()], batch_shape=coupling.shape)
        self._hold(coupling=coupling)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The energy at two values `(*sample, *batch)`."""
        return -self.coupling * a * b


class PottsEnergy(Energy):
    """The Potts coupling of two labels: `E(a, b) = -J [a = b]`; a positive J likes them equal.

    Args:
        coupling: J, `(*batch,)`; a `Parameter` is learned.
    """

    coupling: Tensor

    def __init__(self, coupling: Tensor) -> None:
        super().__init__([(), ()], batch_shape=coupling.shape)
        self._hold(coupling=coupling)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The energy at two values `(*sample, *batch)`."""
        return -self.coupling * (a == b).to(self.coupling)


class DifferenceEnergy(Energy):
    """A spring between two real variables: `E(a, b) = ½ w (a - b)²`.

    Args:
        weight: w, `(*batch,)`; a `Parameter` is learned.
    """

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__([(), ()], batch_shape=weight.shape)
        self._hold(weight=weight)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The energy at two values `(*sample, *batch)`."""
        return 0.5 * self.weight * (a - b) ** 2


class AnchorEnergy(Energy):
    """A spring that ties a real variable to zero: `E(x) = ½ κ x²`.

    Args:
        weight: κ, `(*batch,)`; a `Parameter` is learned.
    """

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__((), batch_shape=weight.shape)
        self._hold(weight=weight)

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, *batch)`."""
        return 0.5 * self.weight * x**2


class BilinearEnergy(Energy):
    """Every element of one vector coupled with every element of another: `E(v, h) = -vᵀ W h`.

    Args:
        weight: W, `(*batch, n, m)`; a `Parameter` is learned.

    Raises:
        EnergyShapeError: if the weight is not a matrix.
    """

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        if weight.dim() < 2:
            raise EnergyShapeError(
                f"BilinearEnergy: got weight of shape {tuple(weight.shape)}, expected (*batch, n, m)."
            )
        super().__init__([(weight.shape[-2],), (weight.shape[-1],)], batch_shape=weight.shape[:-2])
        self._hold(weight=weight)

    def forward(self, v: Tensor, h: Tensor) -> Tensor:
        """The energy at `(*sample, *batch, n)` and `(*sample, *batch, m)`, `(*sample, *batch)`."""
        return -(rows_times(v.to(self.weight), self.weight) * h).sum(-1)


class SumToZeroEnergy(Energy):
    """A soft constraint on a sum: `E(x) = (Σ_i x_i)² / (2 s²)`, which holds it to zero within s.

    Args:
        size: the number n of elements.
        scale: s, `(*batch,)`.
    """

    scale: Tensor

    def __init__(self, size: int, scale: Tensor) -> None:
        super().__init__((size,), batch_shape=scale.shape)
        self._hold(scale=scale)

    @property
    def precision(self) -> Tensor:
        """The matrix of the quadratic form, `(*batch, n, n)`."""
        size = self.event_shape[0]
        return (self.scale**-2)[..., None, None].expand(*self.batch_shape, size, size)

    @property
    def linear(self) -> Tensor:
        """Its linear part: zeros, `(*batch, n)`."""
        return self.scale.new_zeros(*self.batch_shape, *self.event_shape)

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, *batch, n)`, `(*sample, *batch)`."""
        return 0.5 * (x.sum(-1) / self.scale) ** 2
