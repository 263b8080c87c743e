"""Were frozen walkers near enough to the parameters that a run has drawn?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_ebm._core.errors import AnchorError
from pyro_ebm.distributions.energy_distribution import energy_distribution_of
from pyro_ebm.distributions.normalizers.normalizer import CanFreeze
from pyro_ebm.infer.enumeration import Enumerate
from pyro_ebm.infer.messengers import AtValues
from pyro_ebm.infer.model_target import ModelTarget

# So many draws are looked at, and so large a share of them may be too far.
_DRAWS = 50
_SHARE = 0.1


class _CheckWalkers(AtValues):
    """Runs a model at values, and asks frozen walkers of its energies whether they are good for them.

    Args:
        values: by site.

    Attributes:
        found: by site, what is wrong, or nothing.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self.found: dict[str, AnchorError | None] = {}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        energy = energy_distribution_of(msg["fn"])
        walkers: object = None if energy is None else energy.log_normalizer
        if energy is None or not isinstance(walkers, CanFreeze) or not walkers.is_frozen:
            return
        self.found[msg["name"]] = None
        try:
            walkers.check(energy.root)
        except AnchorError as error:
            self.found[msg["name"]] = error


def check_anchors(target: ModelTarget, position: Tensor) -> None:
    """Raise where a run has drawn parameters for which frozen walkers are no good.

    Args:
        target: what was sampled.
        position: the draws, unconstrained, `(chains, draws, dim)`.

    Raises:
        AnchorError: if they are no good at more than a tenth of 50 draws.
    """
    flat = position.flatten(0, 1)
    rows = torch.linspace(0, len(flat) - 1, min(_DRAWS, len(flat))).long()
    samples = target.constrain(flat[rows.to(flat.device)])
    failed: dict[str, list[AnchorError]] = {}
    for row in range(len(rows)):
        handler = _CheckWalkers({name: value[row] for name, value in samples.items()})
        # Where an energy depends on discrete sites, it is looked at for one value of them.
        with torch.no_grad(), pyro.validation_enabled(False), poutine.block(), Enumerate({}):
            target.run_model(handler)
        if not handler.found:
            return
        for name, error in handler.found.items():
            failed.setdefault(name, []).extend([] if error is None else [error])
    for name, errors in failed.items():
        if len(errors) > _SHARE * len(rows):
            raise AnchorError(
                f'at site "{name}", at {len(errors)} of {len(rows)} draws, which are kept, but of another posterior: '
                f"{errors[0]}"
            )
