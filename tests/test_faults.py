"""Densities with walls, plateaus and funnels, and models that raise: each has a clear outcome."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import randn
from models import check_moments, default_dtype
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyro_ebm import HMC, MALA, MCMC, NUTS, Funnel, NeuralEnergy, SamplingWarning, energy
from pyro_ebm._core.linalg import each_alone
from pyro_ebm._core.program import CompiledFunction, program
from pyro_ebm._core.program.lowering import UnsupportedError
from pyro_ebm.infer.kernel import Kernel
from pyro_ebm.infer.target import build_target


def box(x: Tensor) -> Tensor:
    """Flat, with hard walls: no gradient says where they are."""
    return torch.where(x.abs().amax(-1) < 5, 0.0, torch.inf)


@pytest.mark.parametrize("kernel", [NUTS, HMC, MALA])
def test_a_plateau_between_hard_walls(kernel: type[Kernel]) -> None:
    pyro.set_rng_seed(0)
    mcmc = MCMC(kernel(energy(box, event_shape=(2,))), 600, 300, num_chains=16, disable_progbar=True)
    with pytest.warns(SamplingWarning, match="not finite"):
        mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    assert bool((draws.abs() < 5).all())
    check_moments(draws, 0.0, 10 / 12**0.5)


def test_a_funnel_is_flagged() -> None:
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(Funnel(10, 3.0).double()), 500, 500, num_chains=8, disable_progbar=True)
    with pytest.warns(SamplingWarning, match="divergent transitions in"):
        mcmc.run()
    assert mcmc.attrs["target_accept_prob"] > 0.85


def test_a_model_that_raises_keeps_the_draws_so_far() -> None:
    """One that branches, and so runs chain by chain; Python's errors are the user's to see."""
    calls = [0]

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if z.abs() > 100:
            pyro.factor("never", torch.tensor(0.0))
        calls[0] += 1
        if calls[0] > 1500:
            raise OverflowError("the model gave up")

    mcmc = MCMC(HMC(model, num_steps=2), 1000, 20, num_chains=2, disable_progbar=True)
    with pytest.warns(SamplingWarning, match="chain by chain"), pytest.raises(OverflowError, match="gave up"):
        mcmc.run()
    kept = mcmc.get_samples(group_by_chain=True)["z"]
    assert 10 < kept.shape[1] < 1000
    assert bool(kept.isfinite().all())
    calls[0] = -10_000  # mended: the run goes on from there
    mcmc.resume()
    went_on = mcmc.get_samples(group_by_chain=True)["z"]
    assert went_on.shape == (2, 1000)
    assert torch.equal(went_on[:, : kept.shape[1]], kept)


@pytest.mark.parametrize("compile", [False, True])
def test_the_next_run_sees_replaced_parameters(compile: bool) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(0.0))

        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * (x - self.shift).square().sum(-1)

    with default_dtype(torch.float64):
        net = Shifted()
        target = NeuralEnergy(net, (2,)).requires_grad_(False)
        mcmc = MCMC(NUTS(target), 300, 200, num_chains=8, disable_progbar=True, compile=compile)
        pyro.set_rng_seed(0)
        for shift in (0.0, 10.0):
            net.shift = nn.Parameter(torch.tensor(shift), requires_grad=False)
            mcmc.run()
            check_moments(mcmc.get_samples(group_by_chain=True)["x"], shift, 1.0)


def _matrix(x: Tensor) -> Tensor:
    """`(*lead, 2)` to `(*lead, 2, 2)`, singular where both numbers are the same."""
    first, second = x.unbind(-1)
    return torch.stack([torch.stack([first, second], -1), torch.stack([second, first], -1)], -2)


MATRIX_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "cholesky": lambda a: torch.linalg.cholesky(a).square().sum((-2, -1)),
    "old_cholesky": lambda a: a.cholesky(upper=True).square().sum((-2, -1)),
    "inv": lambda a: torch.linalg.inv(a)[..., 0, 0],
    "inverse": lambda a: a.inverse()[..., 0, 0],
    "power": lambda a: a.matrix_power(-2)[..., 0, 0],
    "solve": lambda a: torch.linalg.solve(a, a.new_tensor([[1.0], [2.0]])).sum((-2, -1)),
    "solve_vector": lambda a: torch.linalg.solve(a, a[..., 0] + 1).sum(-1),
    "solve_right": lambda a: torch.linalg.solve(a, a + 1, left=False).sum((-2, -1)),
    "slogdet": lambda a: torch.linalg.slogdet(a).logabsdet,
    "logdet": lambda a: a.logdet(),
}


def _refuse(*_: object) -> None:
    raise UnsupportedError("everything")


@pytest.mark.parametrize("rung", ["eager", "traced", "C"])
@pytest.mark.parametrize("as_model", [False, True], ids=["energy", "model"])
@pytest.mark.parametrize("name", MATRIX_FUNCTIONS)
def test_a_matrix_without_an_answer_is_its_own_chains(
    name: str, as_model: bool, rung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradient of the other chains are as if it were not there."""

    def cost(x: Tensor) -> Tensor:
        return MATRIX_FUNCTIONS[name](_matrix(x))

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        pyro.factor("cost", -cost(x))

    density = build_target(model if as_model else energy(cost, event_shape=(2,)), (), {}).log_density
    points = torch.tensor([[2.0, 1.0], [1.0, 1.0], [3.0, -0.5]]).double()
    good = torch.tensor([True, False, True])
    evaluate = density
    if rung != "eager":
        if rung == "traced":
            monkeypatch.setattr(program, "write_source", _refuse)
        evaluate = CompiledFunction(density, points[good][[0, 1, 0]], patient=False)
        assert evaluate._program.rung == rung
    value, gradient = evaluate(points)
    assert not value[1].isfinite() or not gradient[1].isfinite().all()
    expected = density(points[good])
    torch.testing.assert_close((value[good], gradient[good]), expected)


def test_answers_are_torchs_where_there_are_any() -> None:
    """By the same functions that stand in for torch's where a matrix fails, vectors and signs included."""
    some, singular = randn(3, 20, 3, 3), torch.zeros(1, 3, 3).double()
    for function in (
        torch.linalg.slogdet,
        torch.logdet,
        lambda a: torch.inverse(input=a),
        lambda a: torch.linalg.matrix_power(input=a, n=-3),
        lambda a: torch.matrix_power(a, 2),
        lambda a: torch.linalg.slogdet(A=a + 1j * a).logabsdet,
        lambda a: torch.linalg.solve(a, a[..., 0]),
        lambda a: torch.linalg.solve(A=a, B=a.new_ones(3)),
        lambda a: torch.linalg.inv(a[:, None].expand(-1, 2, -1, -1)),
    ):
        expected = function(some)
        found = each_alone(lambda a: (torch.linalg.inv(a), function(a))[1], torch.cat([some, singular]))
        without = [each[:-1] for each in pytree.tree_leaves(found)]
        torch.testing.assert_close(without, pytree.tree_leaves(expected), equal_nan=True)
