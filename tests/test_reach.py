"""How far a draw goes from the one before it: autocorrelation times, and what is made of them."""

import math

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import randn
from kernel_cases import standard_errors
from torch import Tensor

from pyro_ebm import HMC, MALA, MCMC, Barker, DoubleWell, RandomWalk, UnderdampedLangevin
from pyro_ebm.infer.kernel import AdaptiveKernel
from pyro_ebm.mcmc.discrete_algorithms import mixed_algorithm
from pyro_ebm.mcmc.metric import DiagonalMetric
from pyro_ebm.mcmc.reach import Learns, Reach, autocorrelation_time


def autoregression(seed: int, correlation: float, chains: int, draws: int, dim: int = 1) -> Tensor:
    """Stationary, `(chains, draws, dim)`, with standard normal marginals: its time is `(1 + c) / (1 - c)`."""
    noise = math.sqrt(1 - correlation**2) * randn(seed, draws, chains, dim)
    x = [randn(seed + 1000, chains, dim)]
    for each in noise[1:]:
        x.append(correlation * x[-1] + each)
    return torch.stack(x, 1)


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.5, 0.9])
def test_the_time_of_an_autoregression(correlation: float) -> None:
    """The error bars are those of 20 independent estimates.

    Each is biased: by the mean that is taken from the draws, and the bias of autocovariances, together at most
    `2 τ² / n`; and by noise before Geyer's sum ends, which is at least as long as the pairs fall.
    """
    draws, time = 4000, (1 + correlation) / (1 - correlation)
    found = autocorrelation_time(autoregression(1, correlation, 4, draws, 20))
    assert found.shape == (20,)
    error = float(found.std()) / math.sqrt(20)
    assert float(found.mean()) == pytest.approx(time, abs=standard_errors(1) * error + 2 * time**2 / draws)


def test_it_is_the_sum_of_geyer() -> None:
    """By the definition, sum by sum."""
    draws = autoregression(2, 0.7, 3, 41, 2)
    for i in range(2):
        x = draws[..., i] - draws[..., i].mean(1, keepdim=True)
        covariances = [float((x[:, : 41 - t] * x[:, t:]).sum()) for t in range(41)]
        total, least = -1.0, math.inf
        for t in range(0, 40, 2):
            least = min(least, (covariances[t] + covariances[t + 1]) / covariances[0])
            if least <= 0:
                break
            total += 2 * least
        assert float(autocorrelation_time(draws)[i]) == pytest.approx(total)


def test_chains_in_different_modes_are_no_slower_for_it() -> None:
    draws = autoregression(3, 0.5, 4, 200, 3)
    apart = draws + 100 * torch.arange(4).double()[:, None, None]
    torch.testing.assert_close(autocorrelation_time(apart), autocorrelation_time(draws))


def test_a_coordinate_that_never_moves_tells_nothing() -> None:
    draws = autoregression(4, 0.9, 4, 200, 2)
    draws[..., 1] = 0.1  # whose mean is not quite that
    still = autocorrelation_time(draws)
    assert still[1] == 1
    assert still[0] > 5


def reach_of(steps: Tensor, learns: Learns = "num_steps", num_steps: int = 1) -> Reach:
    """One that was shown steps `(chains, ticks, dim)` in blocks, in coordinates twice as large."""
    reach = Reach(learns, num_steps, steps[:, 0])
    show(reach, steps)
    return reach


def show(reach: Reach, steps: Tensor) -> None:
    metric = DiagonalMetric(torch.full((steps.shape[2],), 2.0, dtype=torch.float64))
    for block in steps.transpose(0, 1).split(17):
        reach.record(torch.ones(block.shape[:2], dtype=torch.bool), block, metric)


def test_steps_are_as_many_as_chains_need() -> None:
    """3.6 times as many where draws have a time of nine; four times at most, and not beyond the bound, nor below."""
    slow, slower = (autoregression(5, correlation, 64, 64) for correlation in (0.8, 0.95))
    reach = reach_of(slow[:16])
    reach.renew()
    assert float(reach.value) == pytest.approx(float(autocorrelation_time(slow[:16]).max()) / 2.5)
    assert reach.num_steps == round(float(reach.value)) == 3  # seen for 64 draws only, a time of nine seems shorter
    reach = reach_of(slower[:16])
    reach.renew()
    assert reach.num_steps == 4
    for expected in (16, 32, 32):
        show(reach, autoregression(5, 0.9997, 16, reach._stretch * reach.num_steps))
        reach.renew()
        assert reach.num_steps == expected
    for expected in (3, 1):  # a draw of 32 independent steps is seen at four of them: too far apart by twelve times
        show(reach, randn(6, 16, reach._stretch * reach.num_steps + 3, 1))
        reach.renew()
        assert reach.num_steps == expected


def test_before_there_are_enough_draws_nothing_changes() -> None:
    reach = reach_of(autoregression(7, 0.95, 64, 63))
    reach.renew()
    assert float(reach.value) == 1
    reach.renew(window_ends=True)
    assert float(reach.value) > 1
    few = reach_of(autoregression(7, 0.95, 64, 19))
    few.renew(window_ends=True)
    assert float(few.value) == 1


def test_draws_are_seen_after_each_quarter_of_their_steps() -> None:
    steps = autoregression(8, 0.9, 64, 700)
    reach = reach_of(steps, num_steps=10)
    kept = reach._draws.draws()["position"]
    torch.testing.assert_close(kept, 2 * steps[:, 2::3][:, : kept.shape[1]])
    assert kept.shape[1] == int(64 * 10 / 3)


def test_trajectories_grow_as_long_as_that_pays() -> None:
    """Twice as long, they are worth three times as much; twice as long again, not."""
    reach = reach_of(autoregression(9, 0.9, 64, 64), "trajectory_length")
    reach.renew()
    assert (float(reach.value), reach.num_steps) == (2, 1)
    show(reach, autoregression(9, 0.7, 64, 128))
    reach.renew()
    longer = float(reach.value)
    assert 3 < longer < 4
    show(reach, autoregression(9, 0.7, 64, 256))
    reach.renew()
    assert float(reach.value) == 2
    show(reach, autoregression(9, 0.7, 64, 512))  # what was found too long is not tried again
    reach.renew()
    assert float(reach.value) == 2
    reach.begin_window()
    assert float(reach.value) == 1
    show(reach, autoregression(9, 0.9, 64, 64))
    reach.renew()
    assert float(reach.value) == 2
    show(reach, autoregression(9, 0.9, 64, 50))
    reach.renew(window_ends=True)  # no stretch is left to try more
    assert float(reach.value) <= 2


@pytest.mark.parametrize("chains", [1, 2, 4, 16])
def test_what_no_length_helps_gets_short_trajectories(chains: int) -> None:
    """Be there ever so few chains to tell: doubling the length doubles the price."""
    for seed in range(8):
        reach = reach_of(autoregression(seed, 0.9, chains, 64), "trajectory_length")
        for stretch in (128, 256, 256, 256, 256):
            reach.renew()
            show(reach, autoregression(100 + seed, 0.9, chains, stretch))
        reach.renew()
        assert float(reach.value) < 3


def test_of_large_positions_a_part_is_kept() -> None:
    draws = randn(9, 100, 64, 1000)
    reach = reach_of(draws)
    kept = reach._draws.draws()["position"]
    assert kept.shape == (64, 64, 64)
    assert torch.equal(kept[..., 0], 2 * draws[:64, :, 0])
    assert torch.equal(kept[..., -1], 2 * draws[:64, :, -1])


def test_what_learns_nothing_keeps_nothing() -> None:
    reach = Reach(None, 7, randn(1, 5, 3))
    show(reach, randn(10, 5, 200, 3))
    reach.renew(window_ends=True)
    assert (float(reach.value), reach.num_steps) == (1, 7)
    assert reach._draws.draws() == {}


KERNELS = [MALA, Barker, RandomWalk, UnderdampedLangevin]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_between_wells_draws_go_further(kernel: type[AdaptiveKernel]) -> None:
    """Draws are right, and 2.5 are worth an independent one: the bound is for twice as many."""
    torch.manual_seed(0)
    energy = DoubleWell(2, 5.0 if kernel is RandomWalk else 2.5).double()  # it moves further than local dynamics do
    sizes, usual = [], kernel(energy).algorithm().num_steps
    for given in ({}, {"num_steps": usual}):
        mcmc = MCMC(kernel(energy, **given), 300, 300, num_chains=16, disable_progbar=True)
        mcmc.run()
        (draws,) = mcmc.get_samples(group_by_chain=True).values()
        sizes.append(min(float(az.ess(draws[..., i].numpy())) for i in range(2)))
        assert ("num_steps" in mcmc.attrs) == (not given)
        for i in range(2):
            for values, expected in ((draws[..., i], 0.0), (draws[..., i].square(), float(energy.variance[i]))):
                error = float(az.mcse(values.numpy()))
                assert abs(float(values.mean()) - expected) < standard_errors(8 * len(KERNELS)) * error
        assert int(mcmc._require_run().draws.transitions.min()) >= 300 * mcmc.attrs.get("num_steps", usual)
    assert sizes[0] > max(1.2 * sizes[1], 16 * 300 / 6)


def test_where_the_metric_is_given_too() -> None:
    torch.manual_seed(0)
    kernel = MALA(DoubleWell(2, 2.5).double(), adapt_mass_matrix=False)
    mcmc = MCMC(kernel, 50, 300, num_chains=16, disable_progbar=True, save_warmup=True)
    mcmc.run()
    assert mcmc.attrs["num_steps"] > 20
    assert next(iter(mcmc.warmup_draws()[0].values())).shape[:2] == (16, 300)


def test_in_a_normal_density_they_go_as_far_as_usual() -> None:
    torch.manual_seed(0)
    for kernel, expected in ((MALA, {"num_steps": 10}), (HMC, {"trajectory_length": math.pi / 2})):
        mcmc = MCMC(kernel(normal_model), 50, 200, num_chains=8, disable_progbar=True)
        mcmc.run()
        assert {name: mcmc.attrs[name] for name in expected} == pytest.approx(expected)


def normal_model() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))


def test_longer_trajectories_are_not_learned_of_discrete_elements() -> None:
    hmc, mala = (mixed_algorithm(each(None).algorithm(), num_discrete=2) for each in (HMC, MALA))
    assert hmc.learns is None
    assert mala.learns == "num_steps"
