"""What every test starts from."""

import pyro
import pytest
import torch

torch.set_num_threads(1)  # the tensors are small: threads would wait for one another


@pytest.fixture(autouse=True)
def _fresh_pyro() -> None:
    """An empty parameter store and a fixed seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
