"""Restricted Boltzmann machines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Size, Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, constraints

from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm._core.products import rows_times
from pyro_ebm._core.shapes import leading_shape
from pyro_ebm.energies import BilinearEnergy, Energy, FieldEnergy
from pyro_ebm.graphs import FactorGraph
from pyro_ebm.models.base_rate_path import BaseRatePath
from pyro_ebm.models.two_layers import block_gibbs, draw_units, softplus, two_layer_log_partition

# Units that the data never switch have finite biases: log-odds of at most seven.
_LEAST_MEAN = 1e-3


class RBM(Energy):
    """Visible units that meet only by hidden ones, all in {0, 1}; the energy is the free energy of the visible units.

    `E(v, h) = -(v-μ)ᵀ W (h-λ) - bᵀv - cᵀh` up to a constant, which is chosen so that recentring changes no energy:

        F(v) = -log Σ_h exp(-E(v, h)) = -(b - Wλ)ᵀv - Σ_j log(1 + exp(c_j + (Wᵀ(v - μ))_j)).

    The offsets μ and λ change which machine given parameters are, and not what machines there are. With the means of
    the units as offsets, the gradient of the log-likelihood is the *centred* one, `⟨(v-μ)(h-λ)ᵀ⟩` of the data less that
    of the model, which learns better and does as well on data whose bits are flipped. `update_offsets` keeps them
    there. The gradient is that of `F` by autograd, with any objective.

    Args:
        num_visible: the number V of visible units.
        num_hidden: the number H of hidden units.
        means: of the data, `(*batch, V)`: μ, and by their log-odds the visible biases; by default 0.5.
        batch_shape: of machines side by side, each with parameters of its own.
        scale: the standard deviation of the first weights.
        generator: where the weights come from; by default torch's global one.

    Attributes:
        weight: W, `(*batch, V, H)`.
        visible_bias: b, `(*batch, V)`.
        hidden_bias: c, `(*batch, H)`; zeros at first.
        visible_offset: μ, `(*batch, V)`.
        hidden_offset: λ, `(*batch, H)`; 0.5 at first.

    Raises:
        ValueError: if a size is less than one, or means are not within 0 and 1.
        EnergyShapeError: if the means have another shape.

    References:
        Smolensky 1986, Information processing in dynamical systems: foundations of harmony theory.
        Melchior, Fischer and Wiskott 2016, How to center deep Boltzmann machines.

    >>> rbm = RBM(6, 3, means=torch.full((6,), 0.2))
    >>> rbm(torch.zeros(5, 6)).shape, rbm.gibbs_step(torch.zeros(5, 6)).shape, rbm.log_partition().shape
    (torch.Size([5]), torch.Size([5, 6]), torch.Size([]))
    """

    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor
    visible_offset: Tensor
    hidden_offset: Tensor

    def __init__(
        self,
        num_visible: int,
        num_hidden: int,
        *,
        means: Tensor | None = None,
        batch_shape: Sequence[int] = (),
        scale: float = 0.01,
        generator: Generator | None = None,
    ) -> None:
        if num_visible < 1 or num_hidden < 1:
            raise ValueError(f"RBM: got {num_visible} visible and {num_hidden} hidden units, expected at least 1 each.")
        batch = tuple(batch_shape)
        if means is None:
            means = torch.full((*batch, num_visible), 0.5)
        elif bool(((means < 0) | (means > 1)).any()):
            raise ValueError("RBM: got means below 0 or above 1, expected those of units in {0, 1}: data.mean(0).")
        if means.shape not in (Size((num_visible,)), Size((*batch, num_visible))):
            raise EnergyShapeError(
                f"RBM: got means of shape {tuple(means.shape)}, expected {(*batch, num_visible)}, one for each visible "
                "unit. Take them over the data: data.mean(0)."
            )
        means = means.detach().expand(*batch, num_visible).clone()
        weight = scale * torch.randn(*batch, num_visible, num_hidden, generator=generator, dtype=means.dtype)
        self._set_up(
            nn.Parameter(weight.to(means.device)),
            nn.Parameter(means.clamp(_LEAST_MEAN, 1 - _LEAST_MEAN).logit()),
            nn.Parameter(means.new_zeros(*batch, num_hidden)),
            means,
            means.new_full((*batch, num_hidden), 0.5),
        )

    @classmethod
    def from_tensors(
        cls,
        weight: Tensor,
        visible_bias: Tensor,
        hidden_bias: Tensor,
        *,
        visible_offset: Tensor | None = None,
        hidden_offset: Tensor | None = None,
    ) -> RBM:
        """The machine of given parameters; a `Parameter` is learned.

        Without offsets, biases are those of the textbook: `F(v) = -bᵀv - Σ_j log(1 + exp(c_j + (Wᵀv)_j))`. To go on
        with a centred gradient, follow with `recenter`.

        Args:
            weight: W, `(*batch, V, H)`.
            visible_bias: b, `(*batch, V)`.
            hidden_bias: c, `(*batch, H)`.
            visible_offset: μ, `(*batch, V)`; by default zeros.
            hidden_offset: λ, `(*batch, H)`; by default zeros.

        Raises:
            EnergyShapeError: if shapes do not fit.
        """
        machine = cls.__new__(cls)
        machine._set_up(
            weight,
            visible_bias,
            hidden_bias,
            torch.zeros_like(visible_bias) if visible_offset is None else visible_offset,
            torch.zeros_like(hidden_bias) if hidden_offset is None else hidden_offset,
        )
        return machine

    def _set_up(self, weight: Tensor, visible: Tensor, hidden: Tensor, mu: Tensor, lam: Tensor) -> None:
        if weight.dim() < 2 or 0 in weight.shape[-2:]:
            raise EnergyShapeError(f"RBM: got weight of shape {tuple(weight.shape)}, expected (*batch, V, H).")
        *batch, num_visible, num_hidden = weight.shape
        for name, each, size in (
            ("visible_bias", visible, num_visible),
            ("hidden_bias", hidden, num_hidden),
            ("visible_offset", mu, num_visible),
            ("hidden_offset", lam, num_hidden),
        ):
            if each.shape != (*batch, size):
                raise EnergyShapeError(
                    f"RBM: got {name} of shape {tuple(each.shape)}, expected {(*batch, size)}, as the weight is "
                    f"{tuple(weight.shape)}. Expand it, or transpose the weight, which is (*batch, visible, hidden)."
                )
        super().__init__((num_visible,), support=constraints.boolean, batch_shape=batch)
        self._hold(weight=weight, visible_bias=visible, hidden_bias=hidden)
        self._hold(visible_offset=mu.detach(), hidden_offset=lam.detach())

    # -- the energy --------------------------------------------------------------------------------------------------

    def fields(self) -> tuple[Tensor, Tensor]:
        """The biases of the textbook form, without offsets: `b - Wλ`, `(*batch, V)`, and `c - Wᵀμ`, `(*batch, H)`."""
        visible = self.visible_bias - rows_times(self.hidden_offset, self.weight.mT)
        return visible, self.hidden_bias - rows_times(self.visible_offset, self.weight)

    def forward(self, v: Tensor) -> Tensor:
        """The free energy at `(*sample, *batch, V)`, `(*sample, *batch)`."""
        leading_shape(v, self.event_shape, "RBM")
        v = v.to(self.weight)
        visible, hidden = self.fields()
        return -(v * visible).sum(-1) - softplus(hidden + rows_times(v, self.weight)).sum(-1)

    def joint_energy(self, v: Tensor, h: Tensor) -> Tensor:
        """`E(v, h)` at `(*sample, *batch, V)` and `(*sample, *batch, H)`, `(*sample, *batch)`."""
        v, h = v.to(self.weight), h.to(self.weight)
        visible, hidden = self.fields()
        return -((rows_times(v, self.weight) + hidden) * h).sum(-1) - (v * visible).sum(-1)

    def graph(self) -> FactorGraph:
        """The same machine as a graph over `"v"`, `(V,)`, and `"h"`, `(H,)`, of the present biases and offsets."""
        graph = FactorGraph()
        visible, hidden = self.fields()
        v = graph.variable("v", support=constraints.boolean, shape=visible.shape[-1:])
        h = graph.variable("h", support=constraints.boolean, shape=hidden.shape[-1:])
        graph.factor(BilinearEnergy(self.weight), v, h)
        graph.factor(FieldEnergy(visible), v[:])
        graph.factor(FieldEnergy(hidden), h[:])
        return graph

    def log_partition(self) -> Tensor:
        """Log Z in nats, `(*batch,)`, exact and differentiable, by the states of the smaller layer.

        Its cost goes with the states times the units of the other layer: 2^16 times 64 take a tenth of a second, and
        2^25 times 25 some seconds, and with their gradients a few gigabytes of memory.

        Raises:
            TreewidthError: if the smaller layer has more than 25 units.
        """
        return two_layer_log_partition(self.weight, *self.fields(), "RBM.log_partition")

    # -- the units ---------------------------------------------------------------------------------------------------

    def hidden_probabilities(self, v: Tensor) -> Tensor:
        """`P(h = 1 | v)`, the features of `(*sample, *batch, V)`, `(*sample, *batch, H)`."""
        return self._hidden_logits(v).sigmoid()

    def visible_probabilities(self, h: Tensor) -> Tensor:
        """`P(v = 1 | h)` at `(*sample, *batch, H)`, `(*sample, *batch, V)`."""
        return self._visible_logits(h).sigmoid()

    @torch.no_grad()
    def sample_hidden(self, v: Tensor, generator: Generator | None = None) -> Tensor:
        """A draw of the hidden units given `(*sample, *batch, V)`, `(*sample, *batch, H)`."""
        return draw_units(self._hidden_logits(v), generator)

    @torch.no_grad()
    def sample_visible(self, h: Tensor, generator: Generator | None = None) -> Tensor:
        """A draw of the visible units given `(*sample, *batch, H)`, `(*sample, *batch, V)`."""
        return draw_units(self._visible_logits(h), generator)

    def reconstruct(self, v: Tensor) -> Tensor:
        """`P(v = 1 | h)` at the features `h` of `(*sample, *batch, V)`: one mean-field step there and back."""
        return self.visible_probabilities(self.hidden_probabilities(v))

    def _hidden_logits(self, v: Tensor) -> Tensor:
        return self.fields()[1] + rows_times(v.to(self.weight), self.weight)

    def _visible_logits(self, h: Tensor) -> Tensor:
        return self.fields()[0] + rows_times(h.to(self.weight), self.weight.mT)

    @property
    def has_gibbs_step(self) -> bool:
        """Whether it can be sampled by `gibbs_step`: always."""
        return True

    @torch.no_grad()
    def gibbs_step(
        self,
        value: Tensor,
        generator: Generator | None = None,
        *,
        num_steps: int = 1,
        inverse_temperature: float | Tensor = 1.0,
    ) -> Tensor:
        """Block Gibbs: all hidden units given the visible ones, then all visible units; `exp(-F)` is invariant.

        Args:
            value: visible units, `(*sample, *batch, V)`.
            generator: of the random numbers; by default torch's global one.
            num_steps: how often.
            inverse_temperature: β, a number, or one for each chain, `(*sample, *batch)`: what is invariant is
                `Σ_h exp(-β E(v, h))`, the machine with β times all parameters, and not `exp(-β F(v))`.
        """
        beta = inverse_temperature
        if isinstance(beta, Tensor):
            beta = beta.to(self.weight).unsqueeze(-1)
        return block_gibbs(value.to(self.weight), self.weight, *self.fields(), beta, generator, num_steps)

    # -- centring ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def recenter(self, visible_means: Tensor | None = None, hidden_means: Tensor | None = None) -> None:
        """Make other offsets, and the biases that leave `F` as it is: `b + W(λ' - λ)` and `c + Wᵀ(μ' - μ)`.

        Args:
            visible_means: μ', `(*batch, V)`; by default those there are.
            hidden_means: λ', `(*batch, H)`; by default those there are.
        """
        mu = self.visible_offset if visible_means is None else visible_means.to(self.weight)
        lam = self.hidden_offset if hidden_means is None else hidden_means.to(self.weight)
        visible = self.visible_bias + rows_times(lam - self.hidden_offset, self.weight.mT)
        hidden = self.hidden_bias + rows_times(mu - self.visible_offset, self.weight)
        self._assign("visible_bias", visible)
        self._assign("hidden_bias", hidden)
        self._assign("visible_offset", mu.expand_as(visible).clone())
        self._assign("hidden_offset", lam.expand_as(hidden).clone())

    def _assign(self, name: str, value: Tensor) -> None:
        """Write into a parameter, which an optimiser may hold; a buffer, which the user may hold, becomes another."""
        if name in self._parameters:
            getattr(self, name).copy_(value)
        else:
            setattr(self, name, value)

    @torch.no_grad()
    def update_offsets(self, v: Tensor, rate: float = 0.01) -> None:
        """Move the offsets towards the means of the units at data, a minibatch at a time; `F` stays as it is.

        Args:
            v: visible units of data, `(*sample, *batch, V)`.
            rate: how far: 0 is not at all, 1 all the way.

        Raises:
            ValueError: if the rate is not within 0 and 1.
        """
        if not 0 <= rate <= 1:
            raise ValueError(f"RBM.update_offsets: got rate {rate}, expected one from 0 to 1.")
        sample_dims = tuple(range(v.dim() - 1 - len(self.batch_shape)))
        mu, lam = v.to(self.weight), self.hidden_probabilities(v)
        if sample_dims:
            mu, lam = mu.mean(sample_dims), lam.mean(sample_dims)
        self.recenter(self.visible_offset.lerp(mu, rate), self.hidden_offset.lerp(lam, rate))

    # -- annealing ---------------------------------------------------------------------------------------------------

    def reference(self) -> Distribution:
        """The machine without weights, `v_i ~ Bernoulli(sigmoid(b_i))`: normalised, detached, and near if centred."""
        each = Bernoulli(logits=self.visible_bias.detach(), validate_args=False)
        return Independent(each, 1, validate_args=False)

    def tempered(self, beta: float | Tensor) -> RBM:
        """The machine on the way from the reference to this one: weights `βW`, biases between the two.

        It is no multiple of the free energy, which would be no machine: see `annealing_path`.

        Args:
            beta: β, a number or `()`: 0 is the reference, 1 this machine.
        """
        visible, hidden = self.fields()
        start = self.visible_bias.detach()
        return RBM.from_tensors(beta * self.weight, (1 - beta) * start + beta * visible, beta * hidden)

    def annealing_path(self, generator: Generator | None = None) -> BaseRatePath:
        """The machines `tempered(β)` as a path of densities from the reference to this machine, with their Gibbs steps.

        Args:
            generator: of the transitions; by default torch's global one.
        """
        return BaseRatePath(self.visible_bias, self.weight, self.fields(), generator)
