"""Annealed importance sampling against closed forms, in both directions, and how honest its errors are."""

import math

import pytest
import torch
from cases import randn
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_ebm import RBM, Estimate
from pyro_ebm._core.estimate import estimate_of
from pyro_ebm.mcmc.annealed import adaptive_ladder, annealed, geometric_path

LINEAR = torch.linspace(0, 1, 30, dtype=torch.float64)

# From a standard normal in two dims to one with another mean and scale, and a log Z of its own.

MEAN, SCALE, LOG_Z = torch.tensor([1.0, -0.5], dtype=torch.float64), 0.7, 7.0
REFERENCE = Independent(Normal(torch.zeros(2, dtype=torch.float64), 1.0), 1)
TARGET = Independent(Normal(MEAN, SCALE), 1)
PATH = geometric_path(REFERENCE.log_prob, lambda x: TARGET.log_prob(x) + LOG_Z)


def random_walk(x: Tensor, log_density, beta: Tensor) -> Tensor:
    """Metropolis, of a few steps."""
    for _ in range(3):
        new = x + torch.randn_like(x) * (1 - 0.5 * beta)
        accepted = torch.rand(x.shape[:-1], dtype=x.dtype) < (log_density(new) - log_density(x)).exp()
        x = torch.where(accepted.unsqueeze(-1), new, x)
    return x


def up(chains: int, *batch: int) -> Estimate:
    return estimate_of(annealed(PATH, random_walk, REFERENCE.sample((chains, *batch)), LINEAR).log_weights)


def down(chains: int, *batch: int) -> Estimate:
    run = annealed(PATH, random_walk, TARGET.sample((chains, *batch)), LINEAR.flip(0))
    return estimate_of(run.log_weights, reciprocal=True)


@pytest.mark.parametrize("direction", [up, down])
def test_gaussians_and_honest_errors(direction) -> None:
    """Five hundred runs of a hundred chains, as a batch."""
    found = direction(100, 500)
    assert found.value.shape == found.standard_error.shape == found.ess.shape == (500,)
    off = ((found.value - LOG_Z) / found.standard_error).abs()
    assert off.max() < 4.5
    assert (off < 2).double().mean() >= 0.9
    assert abs(found.value.mean() - LOG_Z) < 4 * found.value.std() / math.sqrt(500)
    assert found.value.std() < 1.25 * found.standard_error.mean()


def test_few_temperatures_bracket_the_truth() -> None:
    ladder = torch.linspace(0, 1, 4, dtype=torch.float64)
    narrow = Independent(Normal(MEAN, 0.2), 1)
    path = geometric_path(REFERENCE.log_prob, narrow.log_prob)
    low = estimate_of(annealed(path, random_walk, REFERENCE.sample((10, 2000)), ladder).log_weights).value
    high = annealed(path, random_walk, narrow.sample((10, 2000)), ladder.flip(0)).log_weights
    high = estimate_of(high, reciprocal=True).value
    for each, sign in ((low, -1), (high, 1)):
        assert sign * each.mean() > 5 * each.std() / math.sqrt(2000)


def test_final_values_are_weighted_draws_of_the_target() -> None:
    run = annealed(PATH, random_walk, REFERENCE.sample((20_000,)), LINEAR)
    weights = run.log_weights.softmax(0)
    ess = estimate_of(run.log_weights).ess
    assert ((weights @ run.values - MEAN).abs() < 4.5 * SCALE / ess.sqrt()).all()
    variance = weights @ (run.values - MEAN).square()
    assert ((variance - SCALE**2).abs() < 4.5 * SCALE**2 * (2 / ess).sqrt()).all()


def test_values_that_the_target_forbids_have_no_weight() -> None:
    path = geometric_path(REFERENCE.log_prob, lambda x: REFERENCE.log_prob(x).masked_fill(x[..., 0] < 0, -torch.inf))
    found = estimate_of(annealed(path, random_walk, REFERENCE.sample((2000,)), LINEAR).log_weights)
    assert abs(found.value + math.log(2)) < 4 * found.standard_error
    found = estimate_of(annealed(path, lambda x, *_: x, REFERENCE.sample((2000,)), LINEAR).log_weights)
    assert abs(found.value + math.log(2)) < 4 * found.standard_error


# Ladders


def test_an_adaptive_ladder_loses_equal_shares() -> None:
    draws = REFERENCE.sample((2000,))
    coarse, fine = (adaptive_ladder(PATH, random_walk, draws, target=target) for target in (0.9, 0.99))
    for ladder in (coarse, fine):
        assert ladder[0] == 0
        assert ladder[-1] == 1
        assert (ladder.diff() > 0).all()
    assert 2 < len(fine) / len(coarse) < 5  # the variance of a step goes with its square: about sqrt(10)
    values = REFERENCE.sample((20_000,))
    step = PATH(values)(fine[1]) - PATH(values)(fine[0])
    assert 0.985 < (estimate_of(step).ess / 20_000) < 0.995
    found = estimate_of(annealed(PATH, random_walk, REFERENCE.sample((500,)), fine).log_weights)
    assert abs(found.value - LOG_Z) < 4 * found.standard_error
    assert found.ess > 200


def test_a_ladder_to_the_reference_itself_is_one_step() -> None:
    path = geometric_path(REFERENCE.log_prob, REFERENCE.log_prob)
    assert adaptive_ladder(path, random_walk, REFERENCE.sample((10,))).tolist() == [0, 1]


@pytest.mark.parametrize("ladder", [[0.0, 0.5], [0.1, 1.0], [0.0, 0.7, 0.5, 1.0], [0.0], [0.5, 0.0]])
def test_a_ladder_that_does_not_go_all_the_way(ladder: list[float]) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        annealed(PATH, random_walk, REFERENCE.sample((5,)), torch.tensor(ladder))


def test_ladder_errors() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        adaptive_ladder(PATH, random_walk, REFERENCE.sample((5,)), target=1.0)
    with pytest.raises(RuntimeError, match="after 3 steps"):
        adaptive_ladder(PATH, random_walk, REFERENCE.sample((50,)), target=0.999, max_temperatures=3)


# Restricted Boltzmann machines


def rbm(*batch: int) -> RBM:
    machine = RBM.from_tensors(0.8 * randn(0, *batch, 20, 12), randn(1, *batch, 20), randn(2, *batch, 12))
    v = machine.gibbs_step(machine.reference().sample((500,)), num_steps=50)
    machine.update_offsets(v, 1.0)
    return machine


def test_the_path_is_that_of_tempered_machines() -> None:
    machine = rbm()
    path, v = machine.annealing_path(), torch.randint(2, (50, 20)).double()
    for beta in (torch.tensor(b, dtype=torch.float64) for b in (0.0, 0.3, 1.0)):
        difference = path(v)(beta) + machine.tempered(beta)(v)
        torch.testing.assert_close(difference, difference[:1].expand(50))
    torch.testing.assert_close(path(v)(torch.tensor(0.0)), machine.reference().log_prob(v))
    torch.testing.assert_close(path(v)(torch.tensor(1.0)), -machine(v))
    beta = torch.tensor(0.4, dtype=torch.float64)
    torch.manual_seed(1)
    moved = path.move(v, machine, beta)
    torch.manual_seed(1)
    assert torch.equal(moved, machine.tempered(beta).gibbs_step(v))


@pytest.mark.parametrize("batch", [(), (3,)])
def test_log_z_of_a_machine_from_both_sides(batch: tuple[int, ...]) -> None:
    machine = rbm(*batch)
    path, exact = machine.annealing_path(torch.Generator().manual_seed(0)), machine.log_partition()
    ladder = torch.linspace(0, 1, 100, dtype=torch.float64)
    forward = annealed(path, path.move, machine.reference().sample((200,)), ladder)
    low = estimate_of(forward.log_weights)
    draws = machine.gibbs_step(forward.values, num_steps=200)
    high = estimate_of(annealed(path, path.move, draws, ladder.flip(0)).log_weights, reciprocal=True)
    for found in (low, high):
        assert found.value.shape == batch
        assert ((found.value - exact).abs() < 4 * found.standard_error).all()
        assert (found.standard_error < 0.05).all()


def test_one_step_brackets_the_log_z_of_a_machine() -> None:
    machine = rbm()
    path, exact = machine.annealing_path(), machine.log_partition()
    ladder = torch.linspace(0, 1, 5, dtype=torch.float64)
    draws = machine.gibbs_step(machine.reference().sample((4000,)), num_steps=200)
    low = annealed(path, path.move, machine.reference().sample((4000,)), ladder).log_weights.mean()
    high = -annealed(path, path.move, draws, ladder.flip(0)).log_weights.mean()
    assert low < exact < high


# Estimates


def test_estimates_of_weights() -> None:
    weights = torch.rand(50, 3, dtype=torch.float64)
    found = estimate_of(weights.log() + 2000.0)
    torch.testing.assert_close(found.value, weights.mean(0).log() + 2000.0)
    torch.testing.assert_close(found.standard_error, weights.std(0) / weights.mean(0) / math.sqrt(50))
    torch.testing.assert_close(found.ess, weights.sum(0).square() / weights.square().sum(0))
    torch.testing.assert_close(found.standard_error, ((50 / found.ess - 1) / 49).sqrt())
    torch.testing.assert_close(estimate_of(weights.log(), reciprocal=True).value, -weights.mean(0).log())


def test_estimates_of_few_and_impossible_weights() -> None:
    assert estimate_of(torch.tensor([-3.0]))[:2] == (-3.0, math.inf)
    found = estimate_of(torch.full((4,), -torch.inf))
    assert found == (-math.inf, math.inf, 0)
    found = estimate_of(torch.tensor([0.0, -torch.inf, 0.0, -torch.inf]))
    assert found.value == pytest.approx(math.log(0.5))
    assert found.ess == 2
    for shape in ((), (0, 3)):
        with pytest.raises(ValueError, match="at least 1"):
            estimate_of(torch.zeros(shape))
