"""Runs larger than memory: draws on disk while chains run, files written part by part, and very many dimensions."""

import json
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor

import pyro_ebm.infer.arviz_files
import pyro_ebm.infer.mcmc
from pyro_ebm import HMC, MALA, MCMC, NUTS, ChEES, energy
from pyro_ebm.infer.kernel import Kernel
from pyro_ebm.infer.run_folder import RunFolder
from pyro_ebm.mcmc.buffers import MappedBuffers
from pyro_ebm.mcmc.run import Run

pytestmark = pytest.mark.filterwarnings("ignore::pyro_ebm._core.errors.SamplingWarning")


def bent(x: Tensor) -> Tensor:
    return 0.5 * x[..., 0].square() + (x[..., 1] - x[..., 0].square()).square() + x[..., 2].abs()


def make(kernel: type[Kernel] = NUTS, model: Any = None, **options: Any) -> MCMC:
    options = {"num_samples": 30, "warmup_steps": 12, "num_chains": 3, "compile": False} | options
    return MCMC(kernel(model or energy(bent, event_shape=(3,))), disable_progbar=True, **options)


def run(kernel: type[Kernel] = NUTS, *arguments: Tensor, **options: Any) -> MCMC:
    mcmc = make(kernel, **options)
    pyro.set_rng_seed(4)
    mcmc.run(*arguments)
    return mcmc


def same(first: MCMC, second: MCMC) -> None:
    """Bit for bit."""
    for warmup in (False, True):
        mine, other = (mcmc.recorded(warmup=warmup) for mcmc in (first, second))
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name].nan_to_num(), other[name].nan_to_num()) for name in mine)


# -- draws on disk ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "options"),
    [(NUTS, {}), (NUTS, {"save_warmup": True, "thinning": 2}), (ChEES, {"save_warmup": True}), (HMC, {"thinning": 3})],
)
def test_draws_on_disk_are_those_in_memory(kernel: type[Kernel], options: dict[str, Any], tmp_path: Path) -> None:
    whole, streamed = run(kernel, **options), run(kernel, **options, draws_to=tmp_path / "run")
    same(streamed, whole)
    for name, value in whole.get_samples(group_by_chain=True).items():
        assert torch.equal(streamed.get_samples(group_by_chain=True)[name], value)
    position = np.load(tmp_path / "run" / "draws" / "position.npy", mmap_mode="r")
    np.testing.assert_array_equal(position, whole.recorded()["position"].numpy())
    assert (tmp_path / "run" / "warmup").exists() == options.get("save_warmup", False)


def test_results_are_ones_own(tmp_path: Path) -> None:
    """What is done to results does not reach the disk, and those read later are unharmed."""
    mcmc = run(MALA, draws_to=tmp_path / "run")
    stats = mcmc.sample_stats()["lp"].clone()
    mcmc.sample_stats()["lp"].zero_()
    mcmc.get_samples()["x"].zero_()
    assert torch.equal(mcmc.sample_stats()["lp"], stats)
    assert np.load(tmp_path / "run" / "draws" / "position.npy").any()


def test_what_a_run_says_at_its_end_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    for folder in (None, tmp_path / "run"):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            mcmc = run(ChEES, draws_to=folder)
        mcmc.summary()
        seen.append(([str(each.message) for each in found], capsys.readouterr().out, str(mcmc.diagnostics())))
    assert seen[0] == seen[1]


# -- interruptions and crashes ---------------------------------------------------------------------------------------


class Stop:
    """Interrupts runs after some blocks."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = -1
        advance = Run.advance

        def interrupted(run: Run) -> None:
            if self.left == 0:
                self.left = -1
                raise KeyboardInterrupt
            self.left -= 1
            advance(run)

        patch.setattr(Run, "advance", interrupted)


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Stop:
    return Stop(monkeypatch)


@pytest.mark.parametrize(("how", "after"), [("folder", 3), ("folder", 40), ("state", 30), ("file", 40)])
def test_an_interrupted_run_goes_on_in_a_new_object(how: str, after: int, stop: Stop, tmp_path: Path) -> None:
    whole = run(save_warmup=True)
    stop.left = after
    first = run(save_warmup=True, draws_to=tmp_path / "run")
    assert stop.left == -1
    state = first.state_dict()
    if how == "file":
        torch.save(state, tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        assert not any(key.startswith("buffer.") for key in state["run"]["draws"])
    pyro.set_rng_seed(99)
    second = make(save_warmup=True, draws_to=tmp_path / "run")
    if how != "folder":
        second.load_state_dict(state)
    second.resume()
    same(second, whole)
    third = make(save_warmup=True, draws_to=tmp_path / "run")  # to look at a run that is over
    third.resume()
    same(third, whole)
    assert third.run_time >= second.run_time > 0


@pytest.mark.parametrize("blocks", [0, 3])
def test_two_runs_at_once_do_not_share_a_folder(blocks: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = run()
    errors: list[OSError] = []
    advance = Run.advance

    def meddled_with(self: Run) -> None:
        if len(errors) == 0 and (count := next(counter)) >= blocks:
            second = make(draws_to=tmp_path / "run")
            with pytest.raises(OSError) as caught:
                second.run() if count == 0 else second.resume()
            errors.append(caught.value)
        advance(self)

    counter = iter(range(100))
    monkeypatch.setattr(Run, "advance", meddled_with)
    first = run(draws_to=tmp_path / "run")
    same(first, whole)
    assert isinstance(errors[0], BlockingIOError) or blocks == 0
    third = make(draws_to=tmp_path / "run")
    third.resume()
    same(third, whole)


def test_a_new_run_waits_for_no_other(tmp_path: Path) -> None:
    """One that has its folder, and nothing in it yet, keeps it."""
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.claim(0)
    with pytest.raises(BlockingIOError, match="at this moment"):
        second.claim(0)
    first.unlock()
    second.claim(0)


def test_a_moved_folder_goes_on(stop: Stop, tmp_path: Path) -> None:
    whole = run()
    stop.left = 40
    run(draws_to=tmp_path / "here")
    os.rename(tmp_path / "here", tmp_path / "there")
    second = make(draws_to=tmp_path / "there")
    second.resume()
    same(second, whole)


def test_a_run_kept_in_memory_goes_on_on_disk(stop: Stop, tmp_path: Path) -> None:
    whole = run()
    stop.left = 40
    first = run()
    second = make(draws_to=tmp_path / "run")
    second.load_state_dict(first.state_dict())
    second.resume()
    same(second, whole)
    assert (tmp_path / "run" / "draws" / "position.npy").exists()


def python(code: str, **arguments: Any) -> subprocess.CompletedProcess[str]:
    """A fresh process, with the imports of this file's tests."""
    prelude = "import json, os, sys, warnings; sys.path.insert(0, os.path.dirname(sys.argv[1]))\n" + (
        "import torch, pyro; warnings.simplefilter('ignore'); torch.set_num_threads(1)\n"
        "from test_streaming import *\narguments = json.loads(sys.argv[2])\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(code), __file__, json.dumps(arguments, default=str)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_killed_process_loses_what_came_after_the_last_save(tmp_path: Path) -> None:
    code = """
    pyro_ebm.infer.mcmc._SAVE_SECONDS = -1.0
    keep, kept = MCMC._keep, 0

    def killing(mcmc):
        global kept
        kept += 1
        if kept == arguments["saves"]:
            run = mcmc._require_run()
            assert not run.warming_up and not run.finished
            for _ in range(3):  # draws that no saved state knows of
                run.advance()
            os._exit(7)
        keep(mcmc)

    MCMC._keep = killing
    run(draws_to=arguments["folder"])
    """
    killed = python(code, folder=tmp_path / "run", saves=30)
    assert killed.returncode == 7, killed.stderr
    whole, again = run(), make(draws_to=tmp_path / "run")
    again.resume()
    same(again, whole)


# -- files that ArviZ reads ------------------------------------------------------------------------------------------


X = torch.linspace(-1.0, 2.0, 15).reshape(5, 3)


def nested(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(1.0).expand([2]).to_event(1))
    with pyro.plate("unit", 3):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.deterministic("doubled", 2 * effect)
        with pyro.plate("item", 5, dim=-2):
            pyro.sample("x", dist.Normal(effect, scale.sum()), obs=x)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyro_ebm.infer.arviz_files, "_PART_BYTES", 20000)


def agree(found: Any, expected: Any) -> None:
    assert set(found.groups()) == set(expected.groups())
    for name in expected.groups():
        xr.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
        assert found[name].sizes == expected[name].sizes
        for variable in expected[name].variables:
            assert found[name][variable].dims == expected[name][variable].dims
            assert found[name][variable].dtype.kind == expected[name][variable].dtype.kind
        attrs = [dict(data[name].attrs) for data in (found, expected)]
        for each in attrs:
            del each["created_at"]
            each["unnormalized_sites"] = list(each.get("unnormalized_sites", ()))
        assert attrs[0] == attrs[1]


@pytest.mark.parametrize(("warmup", "streams"), [(0, False), (11, True), (70, True)])
@pytest.mark.usefixtures("small_parts")
def test_a_netcdf_file_is_what_to_arviz_says(warmup: int, streams: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run" if streams else None
    mcmc = run(MALA, X, model=nested, warmup_steps=warmup, save_warmup=True, draws_to=folder, thinning=2)
    options: dict[str, Any] = {
        "coords": {"unit": ["a", "b", "c"]},
        "dims": {"scale": ["part"], "covariate": ["unit"]},
        "constant_data": {"covariate": torch.arange(3.0)},
        "prior": {"effect": torch.randn(40, 3), "x": torch.randn(40, 5, 3)},
        "posterior_predictive": {"x": torch.randn(3 * 30, 5, 3)},
    }
    mcmc.to_netcdf(tmp_path / "run.nc", **options)
    expected = mcmc.to_arviz(**options)
    assert len(expected.groups()) == (10 if warmup else 8)
    agree(az.from_netcdf(str(tmp_path / "run.nc")), expected)
    with xr.open_dataset(tmp_path / "run.nc", group="posterior") as posterior:
        assert posterior["doubled"].dims == ("chain", "draw", "unit")
        assert posterior["draw"].values.tolist() == list(range(30))
        assert not posterior["effect"]._in_memory  # it is lazy
        np.testing.assert_array_equal(posterior["effect"][:, 7], expected.posterior["effect"][:, 7])
    assert os.listdir(tmp_path) == (["run", "run.nc"] if streams else ["run.nc"]) or streams
    assert "effect" in az.summary(az.from_netcdf(str(tmp_path / "run.nc"))).to_string()


@pytest.mark.usefixtures("small_parts")
def test_only_what_is_asked_for(tmp_path: Path) -> None:
    mcmc = run(MALA, X, model=nested, save_params=["scale"], draws_to=tmp_path / "run")
    mcmc.to_netcdf(tmp_path / "run.nc", log_likelihood=False)
    agree(az.from_netcdf(str(tmp_path / "run.nc")), mcmc.to_arviz(log_likelihood=False))


def test_a_file_is_replaced_when_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mcmc = run(MALA, X, model=nested)
    file = tmp_path / "run.nc"
    file.write_text("old")
    with pytest.raises(ValueError, match="posterior_predictive"):
        mcmc.to_netcdf(file, posterior_predictive={"x": torch.zeros(5, 5, 3)})
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["run.nc"]
    mcmc.to_netcdf(file)
    agree(az.from_netcdf(str(file)), mcmc.to_arviz())
    with pytest.raises(OSError, match=r"missing.run\.nc"):
        mcmc.to_netcdf(tmp_path / "missing" / "run.nc")


@pytest.mark.usefixtures("small_parts")
def test_a_zarr_store_is_what_to_arviz_says(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    mcmc = run(MALA, X, model=nested, save_warmup=True, draws_to=tmp_path / "run")
    for _ in range(2):  # the second replaces the first
        mcmc.to_zarr(tmp_path / "run.zarr")
    tree = xr.open_datatree(str(tmp_path / "run.zarr"), engine="zarr", chunks=None)
    agree(az.InferenceData.from_datatree(tree), mcmc.to_arviz())


def test_zarr_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    mcmc = run(MALA)
    with pytest.raises(ImportError, match=r"to_zarr: got no zarr.*pip install pyro_ebm\[zarr\].*to_netcdf"):
        mcmc.to_zarr(tmp_path / "run.zarr")


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_no_run_overwrites_another(tmp_path: Path) -> None:
    mcmc = run(MALA, draws_to=tmp_path / "run")
    before = mcmc.get_samples()["x"].clone()
    for other in (mcmc, make(MALA, draws_to=str(tmp_path / "run"))):
        with pytest.raises(FileExistsError, match=r"not empty, expected a new folder.*resume\(\*args\)"):
            other.run()
    assert torch.equal(mcmc.get_samples()["x"], before)


def test_draws_of_another_run(tmp_path: Path) -> None:
    first, _ = (run(MALA, draws_to=tmp_path / name) for name in ("first", "second"))
    other = make(MALA, draws_to=tmp_path / "second")
    other.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"second.*holds another run.*Give the folder it wrote to"):
        other.resume()
    nowhere = make(MALA, draws_to=tmp_path / "third")
    nowhere.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"no file .*third.*expected the draws of the saved run"):
        nowhere.resume()
    in_memory = make(MALA)
    in_memory.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"draws are in a folder.*draws_to=folder"):
        in_memory.resume()
    memory_state = run(MALA)
    occupied = make(MALA, draws_to=tmp_path / "second")
    occupied.load_state_dict(memory_state.state_dict())
    with pytest.raises(FileExistsError, match="not empty"):
        occupied.resume()


def test_nothing_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no run to go on with in .*nothing.*Call run"):
        make(draws_to=tmp_path / "nothing").resume()


def test_files_of_another_shape(tmp_path: Path) -> None:
    buffers = MappedBuffers(tmp_path)
    buffers.buffer("lp", (2, 3), torch.float32)
    state = buffers.state_dict()
    np.save(tmp_path / "lp.npy", np.zeros((2, 4), dtype=np.float32))
    with pytest.raises(ValueError, match=r"lp\.npy.*got shape \(2, 4\), expected \(2, 3\)"):
        MappedBuffers(tmp_path).load_state_dict(state)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"draws_to: got a folder that cannot be made.*file"):
        make(MALA, draws_to=tmp_path / "file" / "run").run()


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=r"GB free, expected room for \d+\.\d\d GB of draws"):
        make(MALA, num_samples=10**13, warmup_steps=10, draws_to=tmp_path / "run").run()

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    mcmc = make(MALA, draws_to=tmp_path / "other")
    pyro.set_rng_seed(4)
    with pytest.raises(OSError, match=r"no room for 0\.00 GB of draws"):
        mcmc.run()
    monkeypatch.undo()
    mcmc.resume()
    whole = run(MALA)
    same(mcmc, whole)


# -- memory ----------------------------------------------------------------------------------------------------------


def anonymous_mb() -> float:
    """Memory of this process that no file backs, which the system cannot take back."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1e3


def wide(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum((-1, -2))


LARGE = """
peak, advance = 0.0, Run.advance

def watched(run):
    global peak
    advance(run)
    peak = max(peak, anonymous_mb())

Run.advance = watched
model = energy(wide, event_shape=(100, 100))
before = anonymous_mb()
mcmc = run(MALA, model=model, num_samples=1500, warmup_steps=10, num_chains=4, draws_to=arguments["folder"])

import pyro_ebm.diagnostics.arviz_files as files
append = files._append

def watched_append(*args):
    global peak
    append(*args)
    peak = max(peak, anonymous_mb())

files._append = watched_append
mcmc.to_netcdf(arguments["file"])
print(peak - before)
"""

pytest_linux = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")


@pytest_linux
def test_draws_larger_than_what_a_run_takes(tmp_path: Path) -> None:
    """240 MB of draws, and a file of as much, by a process that grows by a fraction of that."""
    done = python(LARGE, folder=tmp_path / "run", file=tmp_path / "run.nc")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "draws" / "position.npy").stat().st_size > 240e6
    assert (tmp_path / "run.nc").stat().st_size > 240e6
    assert float(done.stdout) < 130
    with xr.open_dataset(tmp_path / "run.nc", group="posterior") as posterior:
        x = posterior["x"]
        assert x.shape == (4, 1500, 100, 100)
        position = np.load(tmp_path / "run" / "draws" / "position.npy", mmap_mode="r")
        for chain, draw in ((0, 0), (3, 1499), (2, 1234)):
            np.testing.assert_array_equal(x[chain, draw].values.ravel(), position[chain, draw])


@pytest_linux
@pytest.mark.parametrize(("kernel", "most_mb"), [("HMC", 400), ("NUTS", 1800)])
def test_a_million_dimensions(kernel: str, most_mb: float) -> None:
    """A position of two chains is 8 MB; a number for each pair of dimensions would be 4 TB.

    NUTS keeps 27 vectors for each chain, of its subtrees. Its trajectories diverge at once here: what they take does
    not depend on their length.
    """
    code = """
    import resource
    import pyro_ebm as ebm
    kernel = getattr(ebm, arguments["kernel"])(energy(wide, event_shape=(1000, 1000)), adapt_step_size=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mcmc = MCMC(kernel, 2, 1, num_chains=2, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["x"].shape == (4, 1000, 1000)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
    """
    done = python(code, kernel=kernel)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < most_mb
