"""What every test starts from."""

from typing import Any

import pyro
import pytest
import torch

from pyro_ebm._core.program.lowering import HANDLERS, UnsupportedError

# What has a device of its own runs in a process of its own, by `test_device.py`; doctests would import it here.
collect_ignore = ["on_device.py", "pretend_device.py"]

torch.set_num_threads(1)  # the tensors are small: threads would wait for one another


@pytest.fixture(autouse=True)
def _fresh_pyro() -> None:
    """An empty parameter store and a fixed seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.fixture
def no_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A C program is given up for an operation that it does not know, such as a sort."""

    def refuse(lowering: Any, n: Any, result: Any) -> Any:
        raise UnsupportedError(n.target._schema.name)

    monkeypatch.setitem(HANDLERS, "*", refuse)
