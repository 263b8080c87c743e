"""`MonteCarloEM`: learn a model's parameters with Markov chains of each datum's posterior in the place of a guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.util import zero_grads
from torch import Generator, Tensor

from pyro_ebm._core.errors import NonFiniteError
from pyro_ebm._core.randomness import seeded_generator
from pyro_ebm.infer.chain_messengers import ChainValues, FindConditional, LogDensityByDatum, VisitChains
from pyro_ebm.infer.data_plate import DataPlate, read_data_plate
from pyro_ebm.infer.posterior_chains import PosteriorChains


class MonteCarloEM:
    """Maximum likelihood for a Pyro model with latent sites in the plate of its data; it is used as `pyro.infer.SVI`.

    Every datum keeps chains of its latent values z. A step moves those of the minibatch by Metropolis-adjusted Langevin
    dynamics on `log p(z, x; θ)`, and follows the gradient there:

        ∇_θ log p(x; θ) = E_{p(z | x; θ)}[∇_θ log p(z, x; θ)].

    So there is no guide, and nothing is lost to one; the chains must keep up with θ instead. Where posteriors have
    modes far apart, chains stay in theirs. A learned energy is a prior as any other, `EnergyDistribution(energy, base,
    log_normalizer=PersistentWalkers())`, whose walkers are refreshed once in each step. Log Z is left out of the moves,
    where it is a constant, and is in the gradient.

    What is saved are the chains; parameters, the optimiser and walkers are saved by their own `state_dict`.

    Args:
        model: a Pyro model. All its latent sites are continuous and in one plate, which may be subsampled.
        optim: a Pyro optimiser, `pyro.optim.Adam({"lr": 1e-3})` say.
        num_chains: of each datum; more than one lie along a dim to the left of the model's plates, as Pyro's vectorised
            particles do.
        num_steps: of the chains, before each step of the optimiser.
        generator: of all random numbers, those of minibatches too; by default one of its own, seeded from torch's.

    Attributes:
        loss: of the last step: the negative log likelihood of data *and* latent values, `-log p(z, x; θ)` in nats,
            scaled to all data, mean over chains. It is no bound of the likelihood, and may rise while that rises too.
        acceptance_rate: of the chains in the last step.
        values: where they were, by site, in the shapes of the model.

    References:
        Wei and Tanner 1990, A Monte Carlo implementation of the EM algorithm.
        Younes 1999, On the convergence of Markovian stochastic algorithms with rapidly decreasing ergodicity rates.

    >>> import pyro.distributions as dist
    >>> pyro.set_rng_seed(0)
    >>> pyro.clear_param_store()
    >>> def model(x):
    ...     loc = pyro.param("loc", torch.tensor(0.0))
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(loc, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> em = MonteCarloEM(model, pyro.optim.Adam({"lr": 0.05}))
    >>> losses = [em.step(torch.full((100,), 3.0)) for _ in range(200)]
    >>> abs(pyro.param("loc").item() - 3) < 0.3
    True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        optim: Callable[..., Any],
        *,
        num_chains: int = 1,
        num_steps: int = 5,
        generator: Generator | None = None,
    ) -> None:
        for name, value in (("num_chains", num_chains), ("num_steps", num_steps)):
            if value < 1:
                raise ValueError(f"MonteCarloEM: got {name} {value}, expected at least 1.")
        self.model, self.optim = model, optim
        self.num_chains, self.num_steps = num_chains, num_steps
        self.loss, self.acceptance_rate = float("nan"), float("nan")
        self.values: dict[str, Tensor] = {}
        self._generator = generator
        self._plate: DataPlate | None = None
        self._chains: PosteriorChains | None = None
        self._conditional: set[str] | None = None

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Move the chains of a minibatch, and take a step of the optimiser; the arguments are the model's.

        Returns:
            The `loss`.

        Raises:
            BatchingError: if the latent sites are not continuous, or do not all lie in one plate.
            NonFiniteError: if the loss is not finite; then the parameters stay as they were.
            UnnormalizedError: if an energy of the model lacks a log Z that is not a constant.
        """
        plate, chains, generator = self._ready(args, kwargs)
        indices = plate.draw(generator)
        if indices is None or bool(chains.are_new(indices).any()):
            visit = VisitChains(plate, chains, indices, generator)
            with torch.no_grad(), poutine.block(), pyro.validation_enabled(False), visit:
                plate.over_chains(self.model)(*args, **kwargs)
            indices, free = visit.indices, visit.free
            chains.admit(indices, free)
        else:
            free = chains.at(indices)
        if self._conditional is None:
            self._conditional = self._find_conditional(plate, free, indices, args, kwargs)

        def log_density(at: Tensor) -> Tensor:
            return self._log_density(plate, at, indices, args, kwargs)

        free, acceptance = chains.move(indices, free, log_density, self.num_steps, generator)
        self.acceptance_rate = float(acceptance.mean())
        self._learn(plate, free, indices, args, kwargs)
        return self.loss

    def _ready(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[DataPlate, PosteriorChains, Generator]:
        if self._plate is None:
            self._plate = read_data_plate(self.model, args, kwargs, self.num_chains)
        plate = self._plate
        if self._generator is None:
            self._generator = seeded_generator(plate.like.device)
        if self._chains is None:
            self._chains = PosteriorChains(plate.size, self.num_chains, plate.num_coordinates, plate.like)
        return plate, self._chains, self._generator

    def _log_density(
        self, plate: DataPlate, free: Tensor, indices: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """That of the chains, `(chains, data, dim)` to `(chains, data)`."""
        values = ChainValues(plate, free, indices)
        scored = LogDensityByDatum(plate, self._conditional or (), free.new_zeros(free.shape[:2]))
        with poutine.block(), pyro.validation_enabled(False), scored, values:
            plate.over_chains(self.model)(*args, **kwargs)
        return scored.total + values.log_jacobian

    def _find_conditional(
        self, plate: DataPlate, free: Tensor, indices: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> set[str]:
        free = free.detach().requires_grad_()
        found = FindConditional(plate, free)
        with poutine.block(), pyro.validation_enabled(False), found, ChainValues(plate, free, indices):
            plate.over_chains(self.model)(*args, **kwargs)
        return found.conditional

    def _learn(
        self, plate: DataPlate, free: Tensor, indices: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """A step of the optimiser, as `pyro.infer.SVI` takes it."""
        values = ChainValues(plate, free, indices)
        with poutine.trace(param_only=True) as captured, values:
            trace = poutine.trace(plate.over_chains(self.model)).get_trace(*args, **kwargs)
            trace.compute_log_prob()
            loss = -trace.log_prob_sum() / self.num_chains
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(
                f"MonteCarloEM: got a loss of {float(loss.detach())}, expected a finite one. Lower the learning rate, "
                "clip gradients (pyro.optim.ClippedAdam), or check the model."
            )
        if loss.requires_grad:
            loss.backward()
        parameters = {site["value"].unconstrained() for site in captured.trace.nodes.values()}
        self.optim(parameters)
        zero_grads(parameters)
        self.loss = float(loss.detach())
        self.values = {name: value.detach() for name, value in values.values.items()}

    def report(self) -> dict[str, float]:
        """What there is to know of the last step."""
        return {"complete_data_nll": self.loss, "acceptance_rate": self.acceptance_rate}

    # -- saving ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The chains, and the state of the generator."""
        return {
            "chains": None if self._chains is None else self._chains.state_dict(),
            "generator": None if self._generator is None else self._generator.get_state(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` saved, of a `MonteCarloEM` made in the same way."""
        self._chains = None
        if saved["chains"] is not None:
            position = saved["chains"]["position"]
            size, num_chains, dim = position.shape
            self._chains = PosteriorChains(size, num_chains, dim, position)
            self._chains.load_state_dict(saved["chains"])
        self._generator = None
        if saved["generator"] is not None:
            device = "cpu" if self._chains is None else self._chains.position.device
            self._generator = Generator(device)
            self._generator.set_state(saved["generator"].cpu())
