"""Densities with walls, plateaus and funnels, and models that raise: each has a clear outcome."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import check_moments, default_dtype
from torch import Tensor, nn

from pyro_ebm import HMC, MALA, MCMC, NUTS, Funnel, NeuralEnergy, SamplingWarning, energy
from pyro_ebm.infer.kernel import Kernel


def box(x: Tensor) -> Tensor:
    """Flat, with hard walls: no gradient says where they are."""
    return torch.where(x.abs().amax(-1) < 5, 0.0, torch.inf)


@pytest.mark.parametrize("kernel", [NUTS, HMC, MALA])
def test_a_plateau_between_hard_walls(kernel: type[Kernel]) -> None:
    pyro.set_rng_seed(0)
    mcmc = MCMC(kernel(energy(box, event_shape=(2,))), 600, 300, num_chains=16, disable_progbar=True)
    with pytest.warns(SamplingWarning, match="not finite"):
        mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    assert bool((draws.abs() < 5).all())
    check_moments(draws, 0.0, 10 / 12**0.5)


def test_a_funnel_is_flagged() -> None:
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(Funnel(10, 3.0).double()), 500, 500, num_chains=8, disable_progbar=True)
    with pytest.warns(SamplingWarning, match="divergent transitions in"):
        mcmc.run()
    assert mcmc.attrs["target_accept_prob"] > 0.85


def test_a_model_that_raises_keeps_the_draws_so_far() -> None:
    """One that branches, and so runs chain by chain; Python's errors are the user's to see."""
    calls = [0]

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if z.abs() > 100:
            pyro.factor("never", torch.tensor(0.0))
        calls[0] += 1
        if calls[0] > 1500:
            raise OverflowError("the model gave up")

    mcmc = MCMC(HMC(model, num_steps=2), 1000, 20, num_chains=2, disable_progbar=True)
    with pytest.warns(SamplingWarning, match="chain by chain"), pytest.raises(OverflowError, match="gave up"):
        mcmc.run()
    kept = mcmc.get_samples(group_by_chain=True)["z"]
    assert 10 < kept.shape[1] < 1000
    assert bool(kept.isfinite().all())
    calls[0] = -10_000  # mended: the run goes on from there
    mcmc.resume()
    went_on = mcmc.get_samples(group_by_chain=True)["z"]
    assert went_on.shape == (2, 1000)
    assert torch.equal(went_on[:, : kept.shape[1]], kept)


@pytest.mark.parametrize("compile", [False, True])
def test_the_next_run_sees_replaced_parameters(compile: bool) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(0.0))

        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * (x - self.shift).square().sum(-1)

    with default_dtype(torch.float64):
        net = Shifted()
        target = NeuralEnergy(net, (2,)).requires_grad_(False)
        mcmc = MCMC(NUTS(target), 300, 200, num_chains=8, disable_progbar=True, compile=compile)
        pyro.set_rng_seed(0)
        for shift in (0.0, 10.0):
            net.shift = nn.Parameter(torch.tensor(shift), requires_grad=False)
            mcmc.run()
            check_moments(mcmc.get_samples(group_by_chain=True)["x"], shift, 1.0)
