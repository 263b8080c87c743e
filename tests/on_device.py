"""On a device that is not the host: nothing mixes with the host's tensors, no step waits, results are the host's."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import ENERGIES, EnergyCase, parametrize, randn
from kernel_cases import generator, standard_normal
from objective_cases import PAIR_NAMES, PAIRS, ObjectiveCase, data, distribution
from pretend_device import DEVICE, WAITS, DeviceTensor
from torch import Generator, Tensor
from torch.utils import _pytree as pytree

import pyro_ebm
from pyro_ebm import MCMC, NUTS, RBM, ChEES, Energy, Funnel, Gibbs
from pyro_ebm._core import randomness
from pyro_ebm._core.program import program
from pyro_ebm._core.program.cuda_graph import Body, CudaGraphProgram
from pyro_ebm._core.program.traced_step import TracedStep
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.local_algorithms import elliptical_slice_algorithm
from pyro_ebm.mcmc.run import Run
from pyro_ebm.mcmc.settings import RunSettings


@pytest.fixture(autouse=True)
def _hosts_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers of the device are the host's; no compiler knows it."""

    def unknown(traced: TracedStep) -> Any:
        raise NotImplementedError("no compiler knows this device")

    monkeypatch.setattr(randomness, "Generator", lambda device: Generator())
    monkeypatch.setattr(program, "_inductor", unknown)


def to_device(tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.to(DEVICE), tree)


def to_host(tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.cpu(), tree)


def test_the_device_tells_what_it_is_for() -> None:
    here, there = torch.arange(3.0), torch.arange(3.0, device=DEVICE)
    assert there.device == DEVICE
    assert torch.equal((there * torch.tensor(2.0)).cpu(), 2 * here)  # one number of the host's may take part
    with pytest.raises(RuntimeError, match=r"add: got tensors of the device with tensors .* of the host"):
        here + there
    with pytest.raises(RuntimeError, match="indices of the device for values of the host"):
        here[there.long()]
    with pytest.raises(TypeError, match="got a tensor of a device"):
        there.numpy()
    WAITS.clear()
    there.add_(1)
    assert not WAITS
    assert float(there.sum()) == 6
    assert WAITS == {"_local_scalar_dense": 1}


SAMPLERS: dict[str, Callable[[], Algorithm]] = {
    name: lambda kernel=kernel, options=options: kernel(Funnel(3), **options).algorithm()
    for name, kernel, options in [
        ("nuts", pyro_ebm.NUTS, {}),
        ("hmc", pyro_ebm.HMC, {}),
        ("hmc_num_steps", pyro_ebm.HMC, {"num_steps": 3}),
        ("chees", pyro_ebm.ChEES, {}),
        ("mala", pyro_ebm.MALA, {}),
        ("langevin", pyro_ebm.Langevin, {}),
        ("underdamped", pyro_ebm.UnderdampedLangevin, {}),
        ("barker", pyro_ebm.Barker, {}),
        ("random_walk", pyro_ebm.RandomWalk, {}),
        ("mclmc", pyro_ebm.MCLMC, {}),
        ("adjusted_mclmc", pyro_ebm.AdjustedMCLMC, {}),
        ("sgld", pyro_ebm.SGLD, {"step_size": 0.1}),
        ("preconditioned_sgld", pyro_ebm.SGLD, {"step_size": 0.1, "preconditioned": True}),
    ]
} | {"elliptical_slice": elliptical_slice_algorithm}


DISCRETE: dict[str, Callable[[Energy], Any]] = {
    "gibbs": Gibbs,
    "gibbs_with_gradients": pyro_ebm.GibbsWithGradients,
    "discrete_langevin": pyro_ebm.DiscreteLangevin,
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_tick_neither_waits_nor_mixes(name: str) -> None:
    position = torch.randn(3, 4, dtype=torch.float64, generator=generator(0))
    settings = RunSettings(num_samples=4, warmup_steps=4)
    traced = assert_captured(lambda to: Run(SAMPLERS[name](), standard_normal, to(position), generator(1), settings))
    assert not [node for node in traced.graph.graph.nodes if node.op == "get_attr"]  # a copy, in each tick


@pytest.mark.parametrize("name", DISCRETE)
def test_nor_does_one_of_discrete_samplers(name: str) -> None:
    def run(to: Callable[[Any], Any]) -> Run:
        pyro.set_rng_seed(0)
        mcmc = MCMC(DISCRETE[name](to(RBM(4, 2).double())), 4, 4, num_chains=3, disable_progbar=True)
        target = mcmc._build((), {})
        return mcmc._make_run(target, target.initial_points(mcmc.kernel.init_strategy, 3), "no")

    assert_captured(run)


def assert_captured(make: Callable[[Callable[[Any], Any]], Run]) -> TracedStep:
    """A tick can be captured as a CUDA graph, and replayed; it says what it says on the host.

    Args:
        make: makes a run, of what is taken to where it is to be.

    Returns:
        The tick as it was traced.
    """
    waited = []

    def capture(body: Body) -> Body:
        WAITS.clear()
        body()
        body()
        waited.append(dict(WAITS))
        return body

    here, there = make(lambda it: it), make(lambda it: it.to(DEVICE))
    expected = program.EagerProgram(here._tick)(*stacked(first_arguments(here)))
    arguments = first_arguments(there)
    assert all(isinstance(leaf, DeviceTensor) for leaf in pytree.tree_leaves(arguments))
    traced = TracedStep(there._tick, *arguments)
    found = to_host(CudaGraphProgram(traced, traced.graph, capture)(*stacked(arguments)))
    assert waited == [{}]
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12, equal_nan=True)
    return traced


class _ArgumentsError(Exception):
    """Raised in the place of building a program."""


def first_arguments(run: Run) -> Any:
    """What the first tick of a run is given: the carry, x and the constants."""
    found: list[Any] = []

    def keep(*arguments: Any) -> Any:
        found.append(arguments)
        raise _ArgumentsError

    run._make_program = keep  # type: ignore[method-assign]
    with pytest.raises(_ArgumentsError):
        run.advance()
    return found[0]


def stacked(arguments: Any) -> Any:
    carry, x, constants = arguments
    return carry, pytree.tree_map(lambda leaf: leaf.unsqueeze(0), x), constants


def regression(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(x.new_ones(())))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ slope, noise), obs=y)


ROWS = (randn(1, 5, 2), randn(2, 5))
FIXED = {"step_size": 0.1, "adapt_step_size": False, "adapt_mass_matrix": False}  # or last digits would soon tell
# What is sampled, the model's arguments, and the kernel's.
MODELS: dict[str, Callable[[], tuple[Any, tuple[Tensor, ...], dict[str, Any]]]] = {
    "energy": lambda: (Funnel(3, 1.0).double(), (), {}),
    "model": lambda: (regression, ROWS, FIXED),
}


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize("kernel", [NUTS, ChEES, pyro_ebm.MALA], ids=lambda kernel: kernel.__name__)
@pytest.mark.parametrize("model", MODELS)
def test_draws_are_the_hosts(model: str, kernel: Any, compile: bool) -> None:
    target, arguments, settings = MODELS[model]()
    lengths = {"num_samples": 5, "warmup_steps": 6, "num_chains": 3}

    def run(target: Any, arguments: tuple[Tensor, ...], compile: bool) -> MCMC:
        pyro.set_rng_seed(2)
        mcmc = MCMC(kernel(target, **settings), **lengths, compile=compile, disable_progbar=True)
        mcmc.run(*arguments)
        return mcmc

    expected = run(target, arguments, False)
    moved = target.to(DEVICE) if isinstance(target, Energy) else target
    found = run(moved, to_device(arguments), compile)
    assert found.attrs["program"] == ("traced" if compile else "eager")
    draws, reference = found.get_samples(group_by_chain=True), expected.get_samples(group_by_chain=True)
    assert all(each.device == DEVICE for each in draws.values())
    torch.testing.assert_close(to_host(draws), reference, rtol=1e-6, atol=1e-8)
    assert all((each.std(1) > 0).all() for each in reference.values())
    assert found.to_arviz().posterior.sizes["draw"] == 5
    assert found.diagnostics().keys() == expected.diagnostics().keys()


def test_discrete_draws_are_the_hosts() -> None:
    draws = []
    for device in ("cpu", DEVICE):
        pyro.set_rng_seed(0)
        energy = RBM(4, 2).to(device)
        mcmc = MCMC(Gibbs(energy), num_samples=5, num_chains=3, disable_progbar=True)
        mcmc.run()
        draws.append(mcmc.get_samples(group_by_chain=True)["x"].cpu())
    assert torch.equal(*draws)


def test_a_run_that_was_saved_goes_on_there() -> None:
    def fresh() -> Run:
        start = torch.ones(3, 2, dtype=torch.float64, device=DEVICE)
        return Run(NUTS(Funnel(2)).algorithm(), standard_normal, start, generator(3), RunSettings(5, 20))

    whole, halted = fresh(), fresh()
    for _ in range(2):
        halted.advance()
    saved, resumed = to_host(halted.state_dict()), fresh()  # as a file keeps it
    resumed.load_state_dict(saved)
    for run in (whole, resumed):
        while not run.finished:
            run.advance()
    torch.testing.assert_close(to_host(whole.draws.draws()), to_host(resumed.draws.draws()), rtol=0, atol=0)


@parametrize(ENERGIES)
def test_energies_and_their_gradients(case: EnergyCase) -> None:
    values = case.values((2, *case.batch_shape))
    results = []
    for moved in (False, True):
        made = case.make()
        made, given = (made.to(DEVICE), to_device(values)) if moved else (made, values)
        given = tuple(each.requires_grad_(each.is_floating_point()) for each in given)
        out = made(*given)
        real = [each for each in given if each.requires_grad]
        gradients = torch.autograd.grad(out.sum(), real, allow_unused=True) if out.requires_grad else ()
        results.append(to_host([out.detach(), *(each for each in gradients if each is not None)]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


_BEYOND = {"cd-spin", "pcd-spin"}  # the pretended device has no sparse tensors
_WITHIN = [(pair, name) for pair, name in zip(PAIRS, PAIR_NAMES, strict=True) if name not in _BEYOND]


@pytest.mark.parametrize(("case", "domain"), [pair for pair, _ in _WITHIN], ids=[name for _, name in _WITHIN])
def test_objectives_and_their_gradients(case: ObjectiveCase, domain: str) -> None:
    results = []
    for moved in (False, True):
        trained, objective, seen = distribution(domain), case.make(), data(domain, 10)
        if moved:
            trained.energy.to(DEVICE)
            objective, seen = objective.to(DEVICE), seen.to(DEVICE)
        loss, _ = objective(trained, seen, generator=generator(1))
        loss.backward()
        gradients = [each.grad for each in trained.energy.parameters() if each.grad is not None]
        results.append(to_host([loss.detach(), *gradients]))
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-10)
