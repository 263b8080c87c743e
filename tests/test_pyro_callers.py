"""A draw that Pyro throws away costs nothing and lies in the support; every other draw is a true one."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import harmonic
from pyro import poutine
from pyro.infer import NUTS, SVI, Importance, Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoNormal,
    init_to_feasible,
    init_to_generated,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_ebm import DoubleWell, Energy, EnergyDistribution, energy
from pyro_ebm._core.errors import EnergySupportError


class Recording:
    """A sampler that gives a number no other path gives, and counts its draws."""

    def __init__(self) -> None:
        self.shapes: list[Size] = []

    def __call__(self, d: EnergyDistribution, sample_shape: Size) -> Tensor:
        self.shapes.append(sample_shape)
        return torch.full(d.shape(sample_shape), 0.125)


def site_with(sampler: Recording, event_shape: tuple[int, ...] = (2,)) -> Callable[[], Tensor]:
    def model() -> Tensor:
        z = pyro.sample(
            "z", EnergyDistribution(energy(harmonic if event_shape else torch.square, event_shape), sampler=sampler)
        )
        pyro.sample("x", dist.Normal(z, 1.0).to_event(len(event_shape)), obs=torch.zeros(event_shape))
        return z

    return model


@pytest.mark.parametrize(
    ("strategy", "event_shape", "true_draws"),
    [
        (init_to_uniform, (2,), 0),
        (init_to_feasible, (2,), 0),
        (init_to_value(values={"z": torch.ones(2)}), (2,), 0),
        (init_to_generated(generate=lambda: init_to_uniform), (2,), 0),
        (init_to_median, (2,), 0),  # Pyro falls back to a feasible point
        (init_to_median, (), 1),
        (init_to_mean, (), 1),
        (init_to_sample, (2,), 1),
    ],
)
def test_initialisation_draws_only_where_the_draw_is_used(
    strategy, event_shape: tuple[int, ...], true_draws: int
) -> None:
    sampler = Recording()
    model = site_with(sampler, event_shape)
    guide = AutoNormal(model, init_loc_fn=strategy, init_scale=1e-6)
    z = guide()["z"]
    assert len(sampler.shapes) == true_draws
    assert torch.allclose(z, torch.full(event_shape, 0.125), atol=1e-4) == (true_draws > 0)

    NUTS(model, init_strategy=strategy).setup(0)
    assert len(sampler.shapes) == 2 * true_draws


def test_true_draws_elsewhere() -> None:
    sampler = Recording()
    model = site_with(sampler)
    assert (poutine.trace(model).get_trace().nodes["z"]["value"] == 0.125).all()
    assert len(sampler.shapes) == 1
    assert (Predictive(model, num_samples=3)()["z"] == 0.125).all()
    assert len(sampler.shapes) == 4
    assert (Predictive(model, num_samples=3, parallel=True)()["z"] == 0.125).all()
    assert len(sampler.shapes) == 5
    Importance(model, num_samples=4).run()
    assert len(sampler.shapes) == 9
    assert (EnergyDistribution(DoubleWell(1), sampler=sampler)() == 0.125).all()  # as pyro.sample calls it


def test_a_guide_draws_for_every_particle() -> None:
    sampler = Recording()

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide() -> None:
        log_z = torch.tensor(2 * torch.pi).log()  # a guide must know its density
        pyro.sample("z", EnergyDistribution(energy(harmonic, (2,)), log_normalizer=log_z, sampler=sampler))

    SVI(model, guide, pyro.optim.Adam({}), Trace_ELBO(num_particles=3)).step()
    assert len(sampler.shapes) == 3


ENERGIES: dict[str, Callable[[], tuple[Energy, dist.Distribution | None]]] = {
    "real": lambda: (energy(harmonic, (2,)), None),
    "positive": lambda: (energy(harmonic, (2,), support=constraints.positive), None),
    "interval": lambda: (energy(harmonic, (2,), support=constraints.interval(3.0, 4.0)), None),
    "simplex": lambda: (energy(harmonic, (3,), support=constraints.simplex), None),
    "cholesky": lambda: (energy(lambda x: x.sum((-1, -2)), (3, 3), support=constraints.corr_cholesky), None),
    "base": lambda: (energy(torch.square, ()), dist.Gamma(torch.ones(3), 1.0)),
    "boolean": lambda: (energy(harmonic, (40,), support=constraints.boolean), None),
    "integers": lambda: (energy(harmonic, (40,), support=constraints.integer_interval(3, 5)), None),
    "counts": lambda: (energy(torch.square, (), support=constraints.nonnegative_integer), None),
    "one hot": lambda: (energy(harmonic, (3,), support=constraints.one_hot), dist.OneHotCategorical(torch.ones(3) / 3)),
}


@pytest.mark.parametrize("name", ENERGIES)
def test_what_is_given_for_a_shape_has_it_and_lies_in_the_support(name: str) -> None:
    e, base = ENERGIES[name]()
    sampler = Recording()
    seen = []

    def model() -> None:
        with pyro.plate("data", 3):
            d = EnergyDistribution(e, base, sampler=sampler)
            z = pyro.sample("z", d)
        seen.append((d.expand((3,)), z))

    Predictive(model, {"z": torch.zeros(1, 3, *e.event_shape)})()
    for d, z in seen[:2]:
        assert z.shape == d.shape()
        assert d.support.check(z).all()
    assert len(seen) == 3
    assert not sampler.shapes


def test_where_no_point_is_known_the_sampler_is_called() -> None:
    no_draws = EnergyDistribution(energy(harmonic, (3,), support=constraints.one_hot))
    with pytest.raises(EnergySupportError, match=r"cannot find a point of .*Give a base"):
        Predictive(lambda: pyro.sample("z", no_draws), num_samples=1)()
    draws = EnergyDistribution(no_draws.energy, sampler=lambda d, shape: torch.eye(3)[0].expand(d.shape(shape)))
    assert Predictive(lambda: pyro.sample("z", draws), num_samples=2)()["z"].tolist() == [[1, 0, 0]] * 2


def test_a_model_with_energies_runs_inside_another_models_sampler() -> None:
    """What matters is who asks for the innermost draw, be it inside a sampler or an inference of its own."""
    inner = Recording()

    def sampler(d: EnergyDistribution, sample_shape: Size) -> Tensor:
        return Predictive(site_with(inner), num_samples=1)()["z"][0].expand(d.shape(sample_shape))

    draws = EnergyDistribution(DoubleWell(2), sampler=sampler).sample((3,))
    assert (draws == 0.125).all()
    assert len(inner.shapes) == 1
