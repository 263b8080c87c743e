"""Effect handlers that run a model at given latent values.

Light enough for the inside of a sampler, and safe under vmap.
"""

from collections.abc import Container, Mapping
from typing import Any

from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_ebm.infer.coordinates import Coordinates, unconstrained
from pyro_ebm.infer.structure import is_deterministic, is_subsample


class LogJoint(Messenger):  # type: ignore[misc]
    """Puts values to the latent sites by their coordinates, and adds up the log joint density, Jacobians included.

    Args:
        free: the coordinates of each latent site.
        coordinates: which these are.
        keep_apart: names of sites whose log probabilities are not added up.

    Attributes:
        total: the log density of the coordinates, `()`, but for what is kept apart.
        apart: log probabilities that are kept apart, scaled and masked, by site.
        values: the values, by site.
        last_site: the site reached last: where to look when the model fails.
    """

    moves_chains = True  # what distributions look for, to know what they are asked for

    def __init__(
        self,
        free: Mapping[str, Tensor],
        coordinates: Coordinates = unconstrained,
        keep_apart: Container[str] = (),
    ) -> None:
        super().__init__()
        self.free, self.coordinates, self.keep_apart = free, coordinates, keep_apart
        self.total: Tensor | float = 0.0
        self.apart: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}
        self.last_site: str | None = None

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if msg["done"] or msg["is_observed"] or name not in self.free:
            return
        transform = self.coordinates(msg["fn"], name)
        free = self.free[name]
        value = transform(free)
        self.total = self.total + transform.log_abs_det_jacobian(free, value).sum()
        self.values[name] = msg["value"] = value
        msg["done"] = True

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        self.last_site = msg["name"]
        if is_subsample(msg) or is_deterministic(msg):
            return
        log_prob = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
        log_prob = scale_and_mask(log_prob, msg["scale"], msg["mask"])
        if msg["name"] in self.keep_apart:
            self.apart[msg["name"]] = log_prob
        else:
            self.total = self.total + log_prob.sum()


class AtValues(Messenger):  # type: ignore[misc]
    """Puts constrained values to the latent sites.

    Args:
        values: a value for each latent site.
    """

    moves_chains = True

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class Pointwise(AtValues):
    """Puts constrained values to the latent sites, and collects what follows from them.

    Args:
        values: a value for each latent site.
        keep_apart: names of sites whose log probabilities are wanted, observed or not.

    Attributes:
        deterministics: values of `pyro.deterministic` sites.
        log_likelihood: log probabilities of the data, masked, not summed and not scaled.
        apart: those that are kept apart, likewise.
    """

    def __init__(self, values: Mapping[str, Tensor], keep_apart: Container[str] = ()) -> None:
        super().__init__(values)
        self.keep_apart = keep_apart
        self.deterministics: dict[str, Tensor] = {}
        self.log_likelihood: dict[str, Tensor] = {}
        self.apart: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if is_deterministic(msg):
            self.deterministics[name] = msg["value"]
            return
        datum = msg["is_observed"] and not msg["infer"].get("is_auxiliary")
        if is_subsample(msg) or not (datum or name in self.keep_apart):
            return
        log_prob = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
        kept = self.apart if name in self.keep_apart else self.log_likelihood
        kept[name] = scale_and_mask(log_prob, mask=msg["mask"])
