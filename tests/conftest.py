"""What every test starts from."""

import pyro
import pytest


@pytest.fixture(autouse=True)
def _fresh_pyro() -> None:
    """An empty parameter store and a fixed seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
