"""A table of Pyro models with their arguments, and what Monte Carlo tests need."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import OrderedTransform
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

import pyro_ebm
from pyro_ebm import EnergyDistribution, NeuralEnergy, QuadraticEnergy, energy

Oracle = Callable[[dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class ModelCase:
    """A model with its arguments.

    `make()` builds them in torch's default dtype. `oracle` maps unconstrained values by site to the log density and the
    constrained values, by hand, where Pyro's own potential cannot: improper sites, and supports that move.
    """

    name: str
    make: Callable[[], Callable[..., Any]]
    arguments: Callable[[], tuple[Any, ...]] = tuple
    keywords: Callable[[], dict[str, Any]] = dict
    oracle: Oracle | None = None
    latents: dict[str, tuple[int, ...]] = field(default_factory=dict)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Python numbers become tensors of this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def data(seed: int, *shape: int) -> Tensor:
    """Normal numbers in the default dtype, the same in each up to rounding."""
    draws = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return draws.to(torch.get_default_dtype())


# Models


def conjugate(x: Tensor, prior_scale: float = 10.0) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, prior_scale))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def conjugate_posterior(x: Tensor, prior_scale: float = 10.0) -> tuple[float, float]:
    """Mean and standard deviation of `mu`."""
    precision = len(x) + prior_scale**-2
    return float(x.sum()) / precision, precision**-0.5


SCHOOLS_Y = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
SCHOOLS_SIGMA = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def schools() -> tuple[Tensor, Tensor]:
    return torch.tensor(SCHOOLS_Y), torch.tensor(SCHOOLS_SIGMA)


def nested_plates(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("group", y.shape[0], dim=-2):
        group_effect = pyro.sample("group_effect", dist.Normal(mu, 1.0))
        with pyro.plate("unit", y.shape[1], dim=-1):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
            pyro.sample("y", dist.Normal(group_effect, scale), obs=y)


def sequential_plates(y: Tensor) -> None:
    for i in pyro.plate("steps", len(y)):
        z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
        pyro.sample(f"y_{i}", dist.Normal(z, 0.5), obs=y[i])


def correlated(y: Tensor) -> None:
    size = y.shape[-1]
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones(size)).to_event(1))
    corr = pyro.sample("corr", dist.LKJCholesky(size, 2.0))
    tril = scale.unsqueeze(-1) * corr
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(size), scale_tril=tril), obs=y)


def gaussian_process(x: Tensor, y: Tensor) -> None:
    length = pyro.sample("length", dist.LogNormal(0.0, 0.5))
    covariance = torch.exp(-0.5 * ((x.unsqueeze(-1) - x) / length) ** 2) + 0.1 * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def proportions(y: Tensor) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 0.5])))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Categorical(p), obs=y)


def robust_regression(x: Tensor, y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    nu = pyro.sample("nu", dist.Gamma(2.0, 0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.StudentT(nu, x @ weight + bias, sigma), obs=y)


def make_neural_prior() -> Callable[..., None]:
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(-2))
    for index, parameter in enumerate(net.parameters()):
        parameter.data = data(100 + index, *parameter.shape)
    base = dist.Normal(torch.zeros(2), 1.5).to_event(1)
    prior = EnergyDistribution(NeuralEnergy(net, event_shape=(2,)).requires_grad_(False), base)

    def model(x: Tensor) -> None:
        with pyro.plate("items", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 0.7).to_event(1), obs=x)

    return model


def make_factors() -> Callable[..., None]:
    attract = energy(lambda a, b: (a - b) ** 2, event_shape=[(), ()])

    def model() -> None:
        with pyro.plate("pairs", 3):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(1.0, 2.0))
            pyro_ebm.factor("attract", attract, a, b)
        pyro.factor("small", -0.1 * a.square().sum())

    return model


def improper(y: Tensor) -> None:
    log_scale = pyro.sample("log_scale", dist.ImproperUniform(constraints.real, (), ()))
    loc = pyro.sample("loc", dist.ImproperUniform(constraints.positive, (), (2,)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, log_scale.exp()).to_event(1), obs=y)


def improper_by_hand(free: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    values = {"log_scale": free["log_scale"], "loc": free["loc"].exp()}
    likelihood = torch.distributions.Normal(values["loc"], values["log_scale"].exp())
    return likelihood.log_prob(data(9, 5, 2).to(free["loc"])).sum() + free["loc"].sum(), values


def constrained() -> None:
    pyro.sample("positive", dist.Gamma(2.0, 1.0))
    pyro.sample("above", dist.Pareto(1.0, 3.0))
    pyro.sample("unit", dist.Beta(2.0, 3.0))
    pyro.sample("interval", dist.Uniform(torch.tensor([-1.0, 0.0]), torch.tensor([2.0, 5.0])).to_event(1))
    pyro.sample("simplex", dist.Dirichlet(torch.tensor([[2.0, 1.0, 3.0, 1.0], [1.0, 1.0, 1.0, 1.0]])).to_event(1))
    pyro.sample("corr_cholesky", dist.LKJCholesky(4, 1.5))
    ordered = dist.TransformedDistribution(dist.Normal(0.0, 1.0).expand([3]).to_event(1), OrderedTransform())
    pyro.sample("ordered", ordered)


def moving_support(y: Tensor) -> None:
    upper = pyro.sample("upper", dist.Gamma(3.0, 1.0))
    with pyro.plate("items", len(y)):
        x = pyro.sample("x", dist.Uniform(0.0, upper))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def moving_support_by_hand(free: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    upper, fraction = free["upper"].exp(), free["x"].sigmoid()
    x = upper * fraction
    log_prob = torch.distributions.Gamma(3.0 * torch.ones_like(upper), 1.0).log_prob(upper) + free["upper"]
    log_prob = log_prob + (fraction.log() + (1 - fraction).log()).sum()  # the density 1 / upper cancels its Jacobian
    likelihood = torch.distributions.Normal(x, torch.ones_like(upper))
    return log_prob + likelihood.log_prob(data(10, 4).to(x)).sum(), {"upper": upper, "x": x}


def masked_and_scaled(y: Tensor, mask: Tensor, *, weight: float) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        with poutine.mask(mask=mask):
            pyro.sample("masked", dist.Normal(mu, 1.0), obs=y)
        with poutine.scale(scale=weight):
            pyro.sample("scaled", dist.Normal(mu, 2.0), obs=y)
        pyro.sample("masked_distribution", dist.Normal(mu, 3.0).mask(mask), obs=y)
    with poutine.mask(mask=False):
        pyro.sample("off", dist.Normal(mu, 1.0), obs=torch.tensor(3.0))


MASK = (True, False, True, True, False)


def make_reparametrised() -> Callable[..., None]:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            affine = torch.distributions.AffineTransform(1.0, 2.0)
            phi = pyro.sample("phi", dist.TransformedDistribution(dist.Normal(0.0, 1.0), affine))
            pyro.sample("y", dist.Normal(theta + phi, 1.0), obs=y)

    return poutine.reparam(model, config={"theta": LocScaleReparam(0.3), "phi": TransformReparam()})


class BayesianLinear(PyroModule):
    """A regression with a random weight, a learned bias and a fixed scale."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](size, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, size]).to_event(2))
        self.linear.bias.data = data(31, 1)

    def forward(self, x: Tensor, y: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.8), constraint=constraints.positive)
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)


def mixed_dtypes(y: Tensor) -> None:
    single = pyro.sample("single", dist.Normal(torch.zeros(2, dtype=torch.float32), 1.0).to_event(1))
    double = pyro.sample("double", dist.Gamma(torch.tensor(2.0, dtype=torch.float64), 1.0))
    pyro.sample("y", dist.Normal(single.double().sum(), double), obs=y)


MODELS = [
    ModelCase("conjugate normal", lambda: conjugate, lambda: (data(1, 6),), latents={"mu": ()}),
    ModelCase("keyword", lambda: conjugate, lambda: (data(1, 6),), lambda: {"prior_scale": 2.0}, latents={"mu": ()}),
    ModelCase("eight schools", lambda: eight_schools, schools, latents={"mu": (), "tau": (), "eta": (8,)}),
    ModelCase(
        "nested plates",
        lambda: nested_plates,
        lambda: (data(2, 3, 4),),
        latents={"mu": (), "group_effect": (3, 1), "scale": (3, 4)},
    ),
    ModelCase("sequential plates", lambda: sequential_plates, lambda: (data(3, 2),), latents={"z_0": (), "z_1": ()}),
    ModelCase(
        "LKJ and multivariate normal",
        lambda: correlated,
        lambda: (data(4, 5, 3),),
        latents={"scale": (3,), "corr": (3, 3)},
    ),
    ModelCase(
        "Gaussian process",
        lambda: gaussian_process,
        lambda: (torch.linspace(-1, 1, 4), data(5, 4)),
        latents={"length": ()},
    ),
    ModelCase("Dirichlet", lambda: proportions, lambda: (torch.tensor([0, 1, 1, 2]),), latents={"p": (3,)}),
    ModelCase(
        "StudentT regression",
        lambda: robust_regression,
        lambda: (data(6, 7, 2), data(7, 7)),
        latents={"weight": (2,), "bias": (), "sigma": (), "nu": ()},
    ),
    ModelCase("neural prior", make_neural_prior, lambda: (data(8, 3, 2),), latents={"z": (3, 2)}),
    ModelCase("factors", make_factors, latents={"a": (3,), "b": (3,)}),
    ModelCase(
        "improper",
        lambda: improper,
        lambda: (data(9, 5, 2),),
        oracle=improper_by_hand,
        latents={"log_scale": (), "loc": (2,)},
    ),
    ModelCase(
        "constrained",
        lambda: constrained,
        latents={
            "positive": (),
            "above": (),
            "unit": (),
            "interval": (2,),
            "simplex": (2, 4),
            "corr_cholesky": (4, 4),
            "ordered": (3,),
        },
    ),
    ModelCase(
        "moving support",
        lambda: moving_support,
        lambda: (data(10, 4),),
        oracle=moving_support_by_hand,
        latents={"upper": (), "x": (4,)},
    ),
    ModelCase(
        "masked and scaled",
        lambda: masked_and_scaled,
        lambda: (data(11, 5), torch.tensor(MASK)),
        lambda: {"weight": 2.5},
        latents={"mu": ()},
    ),
    ModelCase(
        "reparametrised",
        make_reparametrised,
        lambda: (data(12, 3),),
        latents={"mu": (), "tau": (), "theta_decentered": (3,), "phi_base": (3,)},
    ),
    ModelCase(
        "module", lambda: BayesianLinear(2), lambda: (data(13, 5, 2), data(14, 5)), latents={"linear.weight": (1, 2)}
    ),
]


# Priors that are the same density, written in two ways

PRECISION = ((2.0, 0.6), (0.6, 1.0))


def gaussian_priors() -> dict[str, Any]:
    """A Gaussian as an energy and as Pyro's distribution."""
    precision = torch.tensor(PRECISION)
    return {
        "energy": EnergyDistribution(QuadraticEnergy(precision, torch.zeros(2))),
        "distribution": dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision),
    }


# Monte Carlo


def z_limit(num_comparisons: int, failure: float = 1e-4) -> float:
    """How many standard errors the largest of some normal deviations exceeds with probability `failure` at most."""
    return NormalDist().inv_cdf(1 - failure / (2 * num_comparisons))


def moments(draws: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of `(chains, draws, *shape)`, and their Monte Carlo errors: both `(2, size)`."""
    columns = draws.double().flatten(2).unbind(-1) if draws.dim() > 2 else [draws.double()]
    columns = [column.numpy() for column in columns]
    values = np.array([[c.mean() for c in columns], [c.std() for c in columns]])
    errors = np.array([[az.mcse(c, method=m) for c in columns] for m in ("mean", "sd")], dtype=float)
    return values, errors


def check_moments(draws: Tensor, mean: Any, sd: Any, error: Any = 0.0) -> None:
    """Draws `(chains, draws, *shape)` agree with a mean and a standard deviation, which have errors of their own."""
    values, errors = moments(draws)
    expected = np.stack(np.broadcast_arrays(np.ravel(mean), np.ravel(sd)))
    deviation = np.abs(values - expected) / np.sqrt(errors**2 + np.asarray(error) ** 2)
    assert deviation.max() < z_limit(deviation.size), (values, expected, deviation)


def check_mixing(draws: Tensor, limit: float = 1.02) -> None:
    """R-hat of draws `(chains, draws, *shape)` is near one."""
    columns = draws.double().flatten(2).unbind(-1) if draws.dim() > 2 else [draws.double()]
    assert max(float(az.rhat(column.numpy())) for column in columns) < limit


def unconstrain(support: Any, value: Tensor) -> Tensor:
    """A constrained value, mapped to the reals by torch's own bijection."""
    return biject_to(support).inv(value)


def unconstrained_by_site(target: Any, values: dict[str, Tensor]) -> Tensor:
    """Constrained values `(*lead, *shape)` by site to one unconstrained `(*lead, dim)`."""
    return target.raveler.ravel({n: s.transform.inv(values[n]) for n, s in target.structure.latents.items()})
