"""Energies whose gradient is given by hand: it is the one used, everywhere."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import randn
from models import check_moments
from torch import Tensor, nn

from pyro_ebm import MCMC, NUTS, EnergyShapeError, energy, factor


def quartic(x: Tensor) -> Tensor:
    return 0.25 * x.pow(4).sum(-1)


def quartic_score(x: Tensor) -> Tensor:
    return -x.pow(3)


def test_the_gradient_is_minus_the_score() -> None:
    x = randn(1, 5, 3).requires_grad_()
    (given,) = torch.autograd.grad(energy(quartic, (3,), score_fn=quartic_score)(x).sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(energy(quartic, (3,))(x).sum(), x)
    torch.testing.assert_close(given, found)
    (second,) = torch.autograd.grad(given.sum(), x)  # what score matching needs
    torch.testing.assert_close(second, 3 * x.detach().square())


def test_a_function_without_a_gradient_of_its_own_can_be_sampled() -> None:
    """Numbers from outside torch: only the score makes them samplable."""
    gaussian = energy(lambda x: 0.5 * x.detach().square().sum(-1), (2,), score_fn=lambda x: -x)
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(gaussian), num_samples=400, warmup_steps=200, num_chains=16, disable_progbar=True)
    mcmc.run()
    check_moments(mcmc.get_samples(group_by_chain=True)["x"], 0.0, 1.0)


def test_in_a_pyro_model_the_score_is_batched_by_vmap() -> None:
    by_hand, automatic = energy(quartic, (3,), score_fn=quartic_score), energy(quartic, (3,))
    draws = []
    for each in (by_hand, automatic):

        def model(each: object = each) -> None:
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            factor("quartic", each, z)

        pyro.set_rng_seed(0)
        mcmc = MCMC(NUTS(model), num_samples=20, warmup_steps=20, num_chains=3, disable_progbar=True)
        mcmc.run()
        draws.append(mcmc.get_samples()["z"])
    torch.testing.assert_close(*draws, rtol=1e-3, atol=1e-3)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="2 variables, expected one"):
        energy(lambda x, y: x + y, [(), ()], score_fn=quartic_score)
    with pytest.raises(ValueError, match="gradients would be lost"):
        energy(nn.Linear(3, 1), (3,), score_fn=quartic_score)
    wrong = energy(quartic, (3,), score_fn=lambda x: -x.sum(-1))
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(EnergyShapeError, match=r"score_fn: got shape \(\), expected \(3,\)"):
        torch.autograd.grad(wrong(x), x)
