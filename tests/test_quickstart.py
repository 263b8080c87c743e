"""The quickstart trains and generates: its first steps, which meet the same code as all the others."""

import sys
from pathlib import Path

import pyro
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import quickstart  # noqa: E402


def test_it_trains_and_generates() -> None:
    pyro.set_rng_seed(0)
    train_images, _ = quickstart.digits()
    for learn_energy in (True, False):
        program = quickstart.train(train_images, "short", learn_energy=learn_energy, num_iterations=2)
        assert all(bool(p.isfinite().all()) for p in program.decoder.parameters())
    assert bool(torch.as_tensor(quickstart.generate(program)).isfinite().all())
