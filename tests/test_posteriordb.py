"""Reference posteriors, at the shipped defaults: `benchmarks/posteriordb/check.py` runs all, with every kernel."""

import argparse
import sys
from pathlib import Path

import pytest
import torch
from models import default_dtype

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "posteriordb"
sys.path.insert(0, str(ROOT / "benchmarks" / "posteriordb"))
from check import check  # noqa: E402
from models_of_posteriordb import POSTERIORS  # noqa: E402
from references import from_file  # noqa: E402

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the reference draws are not there: {DATA}")


# By four chains twice as many draws: of 1,000 the bound on R-hat is within what rounding on another processor changes.
@pytest.mark.parametrize(("kernel", "chains", "draws"), [("NUTS", 4, 2000), ("ChEES", 64, 1000)])
@pytest.mark.parametrize(
    "name",
    [
        "eight_schools-eight_schools_noncentered",
        "kidiq-kidscore_interaction",
        "low_dim_gauss_mix-low_dim_gauss_mix",
        "gp_pois_regr-gp_pois_regr",
    ],
)
def test_means_and_spreads_are_those_of_the_reference(name: str, kernel: str, chains: int, draws: int) -> None:
    assert_passes(name, kernel, chains, draws)


@pytest.mark.parametrize("kernel", ["HMC", "AdjustedMCLMC", "MALA", "Barker", "UnderdampedLangevin", "RandomWalk"])
def test_every_kernel_finds_its_way_in_a_funnel(kernel: str) -> None:
    """Draws that go as far as in a normal density have R-hats of 1.01 to 1.13 there."""
    assert_passes("gp_pois_regr-gp_pois_regr", kernel, 4, 2000)


def assert_passes(name: str, kernel: str, chains: int, draws: int) -> None:
    options = argparse.Namespace(kernel=kernel, chains=chains, draws=draws, warmup=1000, seed=0)
    with default_dtype(torch.float64):
        result = check(POSTERIORS[name], from_file(DATA / f"{name}.json"), options)
    assert result.passes, result
