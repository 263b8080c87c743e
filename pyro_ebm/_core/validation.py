"""Checks of values cost a synchronisation and cannot run under vmap: they follow torch.distributions' own switch."""

from torch.distributions import Distribution


def validation_enabled() -> bool:
    """Whether `torch.distributions.Distribution.set_default_validate_args` asks for checks (Pyro sets it too)."""
    return Distribution._validate_args
