"""The examples of learning run from end to end: their first steps, which meet the same code as all the others."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import anomaly_detection
import energy_diffusion
import joint_energy_model
import learned_prior


@pytest.mark.parametrize(
    "example",
    [anomaly_detection, energy_diffusion, joint_energy_model, learned_prior],
    ids=lambda module: module.__name__,
)
def test_it_runs(example, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["example", "--output", str(tmp_path), "--steps", "20"])
    example.main()
    assert len(list(tmp_path.glob("*.png"))) >= 2
    assert str(tmp_path) in capsys.readouterr().out
