"""Which chains the warm-up takes for left behind, and when it aims at shorter steps."""

import math

import pytest
import torch
from cases import randn
from kernel_cases import generator, log_density_of
from torch import Tensor

from pyro_ebm import Funnel, GaussianMixture, QuadraticEnergy
from pyro_ebm.mcmc.chain_mass import ChainMass
from pyro_ebm.mcmc.hamiltonian_algorithms import nuts_algorithm
from pyro_ebm.mcmc.local_algorithms import langevin_algorithm
from pyro_ebm.mcmc.rejections import Rejections
from pyro_ebm.mcmc.run import Run
from pyro_ebm.mcmc.settings import RunSettings
from pyro_ebm.mcmc.step_size import DualAveraging
from pyro_ebm.mcmc.warmup import _stuck

NONE = [False] * 8


def mass_of(draws: Tensor, lp: Tensor, done: Tensor | None = None) -> ChainMass:
    """Of draws `(ticks, chains, dim)`, in blocks of unequal length."""
    done = torch.ones_like(lp, dtype=torch.bool) if done is None else done
    mass = ChainMass.start(draws[0])
    for block in (slice(0, 3), slice(3, 4), slice(4, len(lp))):
        if block.start < block.stop:
            mass = mass.update(done[block], lp[block], draws[block])
    return mass


def normal(seed: int, scale: Tensor, ticks: int = 40) -> tuple[Tensor, Tensor]:
    """Draws of chains `(ticks, chains, dim)` from normals of these standard deviations, with `-|x / scale|² / 2`."""
    standard = randn(seed, ticks, len(scale), 3)
    return standard * scale[:, None], -0.5 * standard.square().sum(-1)


def test_moments_are_those_of_the_draws_that_count() -> None:
    draws, lp = normal(1, torch.arange(1.0, 9.0).double())
    done = torch.rand(lp.shape, generator=generator(2)) < 0.6
    mass = mass_of(draws, lp, done)
    for chain in range(8):
        own = draws[done[:, chain], chain]
        assert float(mass.num_draws[chain]) == len(own)
        torch.testing.assert_close(mass.mean[chain], own.mean(0))
        torch.testing.assert_close(mass.scatter[chain], (own - own.mean(0)).square().sum(0))
        torch.testing.assert_close(mass.lp[chain], lp[done[:, chain], chain].mean())
        assert mass.last_lp[chain] == lp[done[:, chain], chain][-1]


def test_a_chain_in_a_mode_without_mass_is_left_behind() -> None:
    draws, lp = normal(1, torch.ones(8).double())
    assert mass_of(draws, lp).left_behind().tolist() == NONE
    lp[:, 5] -= 30
    assert mass_of(draws, lp).left_behind().tolist() == [i == 5 for i in range(8)]
    assert mass_of(draws[:4], lp[:4]).left_behind().tolist() == NONE  # too few draws to judge by
    assert mass_of(draws[:, 3:6], lp[:, 3:6]).left_behind().tolist() == [False] * 3  # too few chains


def test_of_two_halves_the_one_without_mass_is() -> None:
    draws, lp = normal(1, torch.ones(8).double())
    lp[:, ::2] -= 1000
    assert mass_of(draws, lp).left_behind().tolist() == [True, False] * 4


def test_a_chain_that_has_come_to_the_others_is_not() -> None:
    draws, lp = normal(1, torch.ones(8).double())
    lp[:-1, 5] -= 1000
    assert mass_of(draws, lp).left_behind().tolist() == NONE


def test_a_mode_that_is_low_but_wide_is_not() -> None:
    """Its volume makes up for it: both modes have the same mass."""
    scale = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1e6, 1.0, 1.0], dtype=torch.float64)
    draws, lp = normal(1, scale)
    lp = lp - 3 * scale.log()
    assert float(lp[:, 5].max() - lp[:, 0].min()) < -20
    assert mass_of(draws, lp).left_behind().tolist() == NONE


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_chain_without_a_density_or_that_does_not_move_is(value: float) -> None:
    draws, lp = normal(1, torch.ones(8).double())
    lp[:, 2] = value
    draws[:, 6] = 1.5
    assert mass_of(draws, lp).left_behind().tolist() == [i in (2, 6) for i in range(8)]


def finish(run: Run) -> Run:
    while not run.finished:
        run.advance()
    return run


def test_modes_that_hold_their_share_keep_their_chains() -> None:
    """Two modes far apart: no chain is moved, for none has gone astray."""
    mixture = GaussianMixture(2, radius=20.0, scale=1.0, weights=[0.7, 0.3]).double()
    start = torch.cat([randn(1, 10, 2) - 20, randn(2, 6, 2) + 20])
    start[:, 1] = randn(3, 16)
    run = Run(nuts_algorithm(), log_density_of(mixture), start, generator(4), RunSettings(20, 200, compile="fast"))
    finish(run)
    assert int(run.warmup.moved.sum()) == 0
    assert (run.draws.draws()["position"][:, :, 0] > 0).all(1).tolist() == (start[:, 0] > 0).tolist()


def test_many_divergences_raise_the_target() -> None:
    """In a funnel, and in no normal."""
    settings = RunSettings(20, 400, compile="fast")
    reached = {}
    for name, energy in (("funnel", Funnel(5, 3.0).double()), ("normal", Funnel(5, 0.01).double())):
        run = Run(nuts_algorithm(), log_density_of(energy), randn(1, 16, 5), generator(2), settings)
        reached[name] = float(finish(run).warmup.target)
    assert reached["normal"] == pytest.approx(0.8)
    assert 0.82 < reached["funnel"] <= 0.99


def test_divergences_with_much_longer_steps_than_usual_do_not_count() -> None:
    """One transition in five tries a step ten times as long, and diverges; of the others one does at first."""
    long = torch.arange(50) % 5 == 4
    step_size = torch.where(long, 10.0, 1.0).double()[:, None].expand(50, 4)
    done, diverging = torch.ones(50, 4, dtype=torch.bool), long[:, None].repeat(1, 4)
    diverging[0, 0] = True
    target, everywhere = torch.tensor(0.8).double(), torch.ones(4, dtype=torch.bool)
    few = Rejections.start(randn(1, 4, 5)).update(done, step_size, diverging)
    assert few.judged.tolist() == [40] * 4
    assert few.diverged.tolist() == [1, 0, 0, 0]
    assert few.raised(target, everywhere) == target  # one is no more than a few
    diverging[1:4, 1] = True
    many = few.update(done, step_size, diverging)
    assert many.diverged.tolist() == [2, 3, 0, 0]
    assert float(many.raised(target, everywhere)) == pytest.approx(1 - 0.002 * (8 * 40 / 5) * 0.2)
    most = many.update(done, step_size, diverging | (torch.arange(50) % 4 == 0)[:, None])
    assert float(most.raised(target, everywhere)) == pytest.approx(1 - 0.1 * 0.2)
    assert many.raised(target, torch.tensor([True, False, True, True])) == target


def test_a_chain_that_diverges_wherever_it_goes_raises_no_target() -> None:
    done, step_size = torch.ones(20, 4, dtype=torch.bool), torch.ones(20, 4).double()
    diverging = torch.arange(4).expand(20, 4) == 2
    counts = Rejections.start(randn(1, 4, 5)).update(done, step_size, diverging)
    assert counts.diverged.tolist() == [0, 0, 20, 0]
    assert float(counts.raised(torch.tensor(0.8), torch.ones(4, dtype=torch.bool))) == pytest.approx(0.8)


def target_after(chains: list[int], blocks: int, target: float = 0.8) -> float:
    """The target after a hundred blocks, at the end of some of which these of eight chains are stuck."""
    stuck = torch.zeros(8, dtype=torch.bool)
    stuck[chains] = True
    counts = Rejections.start(randn(1, 8, 5))
    for block in range(100):
        counts = counts.look(stuck & (block < blocks))
    return float(counts.raised(torch.tensor(target, dtype=torch.float64), torch.ones(8, dtype=torch.bool)))


def test_chains_that_are_stuck_for_long_raise_the_target() -> None:
    """One of two thousand looks is usual."""
    assert target_after([3], 1) == 0.8  # no more than one
    assert target_after([3], 2) == pytest.approx(1 - 0.5 * 0.2)
    assert target_after([2, 3], 45) == pytest.approx(1 - 0.5 * 0.2)
    assert target_after([3], 60) == 0.8  # it is lost
    assert target_after([2, 3], 45, target=0.985) == pytest.approx(0.99)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_in_a_normal_density_no_chain_is_stuck(dtype: torch.dtype) -> None:
    """Nor is it by the rounding of one library's exponential, which differs from another's by the last digit."""
    log_density = log_density_of(QuadraticEnergy.from_moments(torch.zeros(5).to(dtype), torch.eye(5).to(dtype)))
    algorithm = langevin_algorithm(metropolis=True, target_accept_prob=0.574, num_steps=10)
    for seed in range(4):
        start = randn(seed, 4, 5).to(dtype)
        run = Run(algorithm, log_density, start, generator(seed), RunSettings(10, 300, compile="fast"))
        stuck = looks = 0
        while not run.finished:
            run.advance()
            rejections = run.warmup._rejections
            stuck, looks = max(stuck, int(rejections.stuck.sum())), max(looks, int(rejections.looks))
        assert stuck == 0
        assert float(run.warmup.target) == pytest.approx(0.574)
    adaptation = DualAveraging.start(torch.tensor(0.3).to(dtype), 4)
    below = torch.nextafter(adaptation.step_sizes, torch.zeros(4).to(dtype))
    assert not bool(_stuck(adaptation._replace(step_sizes=below)).any())
    assert bool(_stuck(adaptation._replace(step_sizes=0.5 * below)).all())
