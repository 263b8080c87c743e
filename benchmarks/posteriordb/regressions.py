"""Linear regressions, in coordinates that are as the Stan programs have them: many are badly scaled or correlated."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from posterior import Data, Posterior, sites, vector
from pyro.distributions import constraints
from torch import Tensor

Design = Callable[[Data], list[Tensor]]
Arguments = Callable[[Data], tuple[Tensor, ...]]


def flat_regression(design: Tensor, y: Tensor) -> None:
    """A linear regression under flat priors.

    `y ~ Normal(X beta, sigma)`, `beta` and `sigma > 0` flat.

    Args:
        design: X, `(N, D)`.
        y: `(N)`.
    """
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), design.shape[-1:]))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(design @ beta, sigma), obs=y)


def kidscore(design: Tensor, kid_score: Tensor) -> None:
    """Scores of children: `kid_score ~ Normal(X beta, sigma)`, `beta` flat, `sigma ~ HalfCauchy(2.5)`.

    Args:
        design: X, `(N, D)`.
        kid_score: `(N)`.
    """
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), design.shape[-1:]))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("child", len(kid_score)):
        pyro.sample("kid_score", dist.Normal(design @ beta, sigma), obs=kid_score)


def blr(design: Tensor, y: Tensor) -> None:
    """`y ~ Normal(X beta, sigma)`, `beta_d ~ Normal(0, 10)`, `sigma ~ HalfNormal(10)`.

    Args:
        design: X, `(N, D)`.
        y: `(N)`.
    """
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([design.shape[-1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(design @ beta, sigma), obs=y)


def diamonds(design: Tensor, price: Tensor) -> None:
    """Log prices of diamonds, by centred columns that are nearly collinear.

    `price ~ Normal(Intercept + X b, sigma)`, `b ~ Normal(0, 1)`, `Intercept ~ StudentT(3, 8, 10)`,
    `sigma ~ HalfStudentT(3, 10)`.

    Args:
        design: X without the column of ones, centred, `(N, D)`.
        price: `(N)`.
    """
    b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([design.shape[-1]]).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    pyro.factor("sigma_prior", dist.StudentT(3.0, 0.0, 10.0).log_prob(sigma))
    with pyro.plate("diamond", len(price)):
        pyro.sample("price", dist.Normal(intercept + design @ b, sigma), obs=price)


def kilpisjarvi(x: Tensor, y: Tensor, alpha_prior: Tensor, beta_prior: Tensor) -> None:
    """Temperatures by year, where level and slope are correlated at -0.9999.

    `y ~ Normal(alpha + beta x, sigma)`, normal priors on `alpha` and `beta`, `sigma > 0` flat.

    Args:
        x: years, `(N)`.
        y: `(N)`.
        alpha_prior: mean and standard deviation, `(2)`.
        beta_prior: likewise.
    """
    alpha = pyro.sample("alpha", dist.Normal(*alpha_prior))
    beta = pyro.sample("beta", dist.Normal(*beta_prior))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("year", len(y)):
        pyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)


def _arguments(design: Design, outcome: str, transform: Callable[[Tensor], Tensor] = lambda y: y) -> Arguments:
    """A design with a column of ones before the others, and the outcome."""

    def arguments(data: Data) -> tuple[Tensor, ...]:
        columns = design(data)
        return torch.stack([torch.ones_like(columns[0]), *columns], -1), transform(vector(data[outcome]))

    return arguments


def _plain(*names: str) -> Design:
    return lambda data: [vector(data[name]) for name in names]


def _logs(*names: str) -> Design:
    return lambda data: [vector(data[name]).log() for name in names]


def _with_product(design: Design) -> Design:
    """Two columns, and their product."""

    def with_product(data: Data) -> list[Tensor]:
        first, second = design(data)
        return [first, second, first * second]

    return with_product


def _is_one_of(name: str, *levels: int) -> Design:
    """An indicator column for each level."""
    return lambda data: [(vector(data[name]) == level).double() for level in levels]


def _both(first: Design, second: Design) -> Design:
    return lambda data: first(data) + second(data)


def _standard_height(data: Data) -> list[Tensor]:
    height, male = vector(data["height"]), vector(data["male"])
    return [(height - height.mean()) / height.std(), male]


def _centred(data: Data) -> list[Tensor]:
    return [x - x.mean() for x in _plain("mom_hs", "mom_iq")(data)]


def _centred_at_references(data: Data) -> list[Tensor]:
    mom_hs, mom_iq = _plain("mom_hs", "mom_iq")(data)
    return [mom_hs - 0.5, mom_iq - 100.0]


def _standard(data: Data) -> list[Tensor]:
    return [(x - x.mean()) / (2 * x.std()) for x in _plain("mom_hs", "mom_iq")(data)]


def _bush(*names: str) -> Design:
    """Logs of the measures of a mesquite bush that are named, and its group."""

    def bush(data: Data) -> list[Tensor]:
        diam1, diam2, canopy_height, total_height, density = _logs(
            "diam1", "diam2", "canopy_height", "total_height", "density"
        )(data)
        area = diam1 + diam2
        measures = {"volume": area + canopy_height, "area": area, "shape": diam1 - diam2}
        measures |= {"height": total_height, "density": density, "group": vector(data["group"])}
        return [measures[name] for name in names]

    return bush


def _nes(data: Data) -> list[Tensor]:
    ideology, race, education, gender, income = _plain("real_ideo", "race_adj", "educ1", "gender", "income")(data)
    return [ideology, race, *_is_one_of("age_discrete", 2, 3, 4)(data), education, gender, income]


def _blr_arguments(data: Data) -> tuple[Tensor, ...]:
    return vector(data["X"]), vector(data["y"])


def _diamonds_arguments(data: Data) -> tuple[Tensor, ...]:
    design = vector(data["X"])[:, 1:]
    return design - design.mean(0), vector(data["Y"])


def _kilpisjarvi_arguments(data: Data) -> tuple[Tensor, ...]:
    priors = (vector([data["pmualpha"], data["psalpha"]]), vector([data["pmubeta"], data["psbeta"]]))
    return vector(data["x"]), vector(data["y"]), *priors


_COEFFICIENTS = sites("beta", "sigma")
_SIZES = ("diam1", "diam2", "canopy_height", "total_height", "density")


def _flat(design: Design, outcome: str, transform: Callable[[Tensor], Tensor] = lambda y: y) -> Posterior:
    return Posterior(flat_regression, _arguments(design, outcome, transform), _COEFFICIENTS)


def _kidscore(*names: str) -> Posterior:
    return Posterior(kidscore, _arguments(_plain(*names), "kid_score"), _COEFFICIENTS)


_INTERACTION = _arguments(_with_product(_plain("mom_hs", "mom_iq")), "kid_score")
_LOG_HEIGHT = _both(_logs("height"), _plain("male"))

REGRESSIONS: dict[str, Posterior] = {
    "diamonds-diamonds": Posterior(diamonds, _diamonds_arguments, sites("b", "Intercept", "sigma")),
    "earnings-earn_height": _flat(_plain("height"), "earn"),
    "earnings-log10earn_height": _flat(_plain("height"), "earn", torch.log10),
    "earnings-logearn_height": _flat(_plain("height"), "earn", torch.log),
    "earnings-logearn_height_male": _flat(_plain("height", "male"), "earn", torch.log),
    "earnings-logearn_interaction": _flat(_with_product(_plain("height", "male")), "earn", torch.log),
    "earnings-logearn_interaction_z": _flat(_with_product(_standard_height), "earn", torch.log),
    "earnings-logearn_logheight_male": _flat(_LOG_HEIGHT, "earn", torch.log),
    "kidiq-kidscore_interaction": Posterior(kidscore, _INTERACTION, _COEFFICIENTS),
    "kidiq-kidscore_momhs": _kidscore("mom_hs"),
    "kidiq-kidscore_momhsiq": _kidscore("mom_hs", "mom_iq"),
    "kidiq-kidscore_momiq": _kidscore("mom_iq"),
    "kidiq_with_mom_work-kidscore_interaction_c": _flat(_with_product(_centred), "kid_score"),
    "kidiq_with_mom_work-kidscore_interaction_c2": _flat(_with_product(_centred_at_references), "kid_score"),
    "kidiq_with_mom_work-kidscore_interaction_z": _flat(_with_product(_standard), "kid_score"),
    "kidiq_with_mom_work-kidscore_mom_work": _flat(_is_one_of("mom_work", 2, 3, 4), "kid_score"),
    "kilpisjarvi_mod-kilpisjarvi": Posterior(kilpisjarvi, _kilpisjarvi_arguments, sites("alpha", "beta", "sigma")),
    "mesquite-logmesquite": _flat(_both(_logs(*_SIZES), _plain("group")), "weight", torch.log),
    "mesquite-logmesquite_logva": _flat(_bush("volume", "area", "group"), "weight", torch.log),
    "mesquite-logmesquite_logvas": _flat(
        _bush("volume", "area", "shape", "height", "density", "group"), "weight", torch.log
    ),
    "mesquite-logmesquite_logvash": _flat(_bush("volume", "area", "shape", "height", "group"), "weight", torch.log),
    "mesquite-logmesquite_logvolume": _flat(_bush("volume"), "weight", torch.log),
    "mesquite-mesquite": _flat(_plain(*_SIZES, "group"), "weight"),
    **{f"nes{year}-nes": _flat(_nes, "partyid7") for year in (1972, 1976, 1980, 1984, 1988, 1992, 1996, 2000)},
    "sblrc-blr": Posterior(blr, _blr_arguments, _COEFFICIENTS),
    "sblri-blr": Posterior(blr, _blr_arguments, _COEFFICIENTS),
}
