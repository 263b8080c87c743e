"""The quickstart trains and generates: its first steps, which meet the same code as all the others."""

import sys
from pathlib import Path

import pyro
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import quickstart


@pytest.mark.parametrize("learn_energy", [True, False])
def test_it_trains(learn_energy: bool) -> None:
    pyro.set_rng_seed(0)
    train_images, _ = quickstart.digits()
    program = quickstart.train(train_images, "short", learn_energy=learn_energy, num_iterations=2)
    assert all(bool(p.isfinite().all()) for p in program.decoder.parameters())
