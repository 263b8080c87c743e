"""Linear chains against enumeration, and against themselves in other arithmetic, batches and transformations."""

import pytest
import torch
from cases import randn
from hypothesis import given, settings
from structured_cases import chain_edges, chains, chi_squared, enumerated_scores, safe_logsumexp, singles
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ebm import EnergyShapeError
from pyro_ebm.graphs.chains import chain
from pyro_ebm.graphs.chains import decoding as chain_decoding
from pyro_ebm.graphs.chains import sampling as chain_sampling
from pyro_ebm.graphs.chains.log_space import filter_in_log_space, log_partition_by_pairs
from pyro_ebm.graphs.chains.partition import LogPartition
from pyro_ebm.graphs.chains.potentials import chain_potentials

exact = settings(deadline=None, derandomize=True, max_examples=40)
LENGTHS = torch.tensor([5, 3, 0, 1])


def batch() -> tuple[Tensor, Tensor]:
    """Four chains of five steps and three states."""
    return randn(0, 4, 5, 3), randn(1, 3, 3)


def by_enumeration(unary: Tensor, pairwise: Tensor, lengths: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """For each chain, all paths and their scores."""
    steps = unary.shape[-2]
    each = singles(unary, pairwise, steps - 1)
    numbers = [steps] * len(each) if lengths is None else lengths.flatten().tolist()
    return [
        enumerated_scores(u[:n], p[: max(n - 1, 0)], chain_edges(n)) for n, (u, p) in zip(numbers, each, strict=True)
    ]


def close(first: Tensor, second: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(first, second, rtol=1e-10, atol=atol)


# Enumeration


@exact
@given(chains())
def test_log_partition_and_its_gradient(case: tuple[Tensor, Tensor, Tensor | None]) -> None:
    unary, pairwise, lengths = case
    unary, pairwise = unary.requires_grad_(), pairwise.requires_grad_()
    found = chain.log_partition(unary, pairwise, lengths)
    expected = torch.stack([safe_logsumexp(scores) for _, scores in by_enumeration(unary, pairwise, lengths)])
    close(found.flatten(), expected)
    weight = torch.where(found > -torch.inf, randn(2, *found.shape), 0.0)
    total, other = (
        (weight * torch.where(z > -torch.inf, z, 0.0)).sum() for z in (found, expected.reshape(found.shape))
    )
    if not other.requires_grad:
        return
    gradients = torch.autograd.grad(total, (unary, pairwise), materialize_grads=True)
    wanted = torch.autograd.grad(other, (unary, pairwise), allow_unused=True, materialize_grads=True)
    for gradient, want in zip(gradients, wanted, strict=True):
        close(gradient, want)


@exact
@given(chains())
def test_marginals_and_entropy(case: tuple[Tensor, Tensor, Tensor | None]) -> None:
    unary, pairwise, lengths = case
    steps, states = unary.shape[-2:]
    found = chain.marginals(unary, pairwise, lengths).reshape(-1, steps, states)
    joint = chain.pairwise_marginals(unary, pairwise, lengths).reshape(len(found), steps - 1, states, states)
    entropies = chain.entropy(unary, pairwise, lengths).flatten()
    for i, (values, scores) in enumerate(by_enumeration(unary, pairwise, lengths)):
        if safe_logsumexp(scores) == -torch.inf:
            assert not found[i].any()
            continue
        probabilities = scores.softmax(0)
        one_hot = torch.nn.functional.one_hot(values, states).double()
        length = values.shape[-1]
        close(found[i, :length], torch.einsum("n,nti->ti", probabilities, one_hot))
        close(
            joint[i, : max(length - 1, 0)],
            torch.einsum("n,nti,ntj->tij", probabilities, one_hot[:, :-1], one_hot[:, 1:]),
        )
        assert not found[i, length:].any()
        assert not joint[i, max(length - 1, 0) :].any()
        close(
            entropies[i],
            torch.special.entr(probabilities).sum(),
            atol=1e-9 * (1 + float(unary[unary > -torch.inf].abs().max())),
        )


@exact
@given(chains())
def test_the_best_paths(case: tuple[Tensor, Tensor, Tensor | None]) -> None:
    unary, pairwise, lengths = case
    paths, scores = chain_decoding.top_paths(unary, pairwise, 5, lengths)
    modes = chain_decoding.mode(unary, pairwise, lengths)
    close(chain.score(modes, unary, pairwise, lengths), scores[0])
    steps = unary.shape[-2]
    paths, scores = paths.reshape(5, -1, steps), scores.reshape(5, -1)
    for i, (values, all_scores) in enumerate(by_enumeration(unary, pairwise, lengths)):
        best = torch.cat([all_scores.sort(descending=True).values, torch.full((5,), -torch.inf)])[:5]
        close(scores[:, i], best)
        possible = scores[:, i] > -torch.inf
        found = paths[possible, i, : values.shape[-1]]
        assert len({tuple(path) for path in found.tolist()}) == len(found)
        assert not paths[:, i, values.shape[-1] :].any()


@exact
@given(chains())
def test_log_prob_sums_to_one(case: tuple[Tensor, Tensor, Tensor | None]) -> None:
    unary, pairwise, _ = case
    values = torch.cartesian_prod(*[torch.arange(unary.shape[-1])] * unary.shape[-2]).reshape(-1, unary.shape[-2])
    possible = chain.log_partition(unary, pairwise) > -torch.inf
    lead = values.reshape(-1, *[1] * possible.dim(), values.shape[-1])
    total = chain.log_prob(lead, unary, pairwise).exp().sum(0)
    close(total[possible], torch.ones_like(total[possible]))


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_draws_follow_the_probabilities(lengths: Tensor | None) -> None:
    unary, pairwise = batch()
    pairwise[0, 1] = unary[0, 2, 0] = -torch.inf
    draws = chain_sampling.sample(unary, pairwise, (50, 400), lengths, generator=torch.Generator().manual_seed(1))
    assert draws.shape == (50, 400, 4, 5)
    for i, (values, scores) in enumerate(by_enumeration(unary, pairwise, lengths)):
        length = values.shape[-1]
        assert not draws[..., i, length:].any()
        if length:
            found = draws[..., i, :length].reshape(-1, length)
            assert chi_squared(found, values, scores.log_softmax(0)) > 1e-4 / 8


def test_draws_are_repeatable() -> None:
    first, second = (
        chain_sampling.sample(*batch(), (3,), generator=torch.Generator().manual_seed(4)) for _ in range(2)
    )
    assert torch.equal(first, second)


# Derivatives and transformations


@pytest.mark.parametrize("shape", [(3, 3), (4, 3, 3), (4, 1, 3, 3), (4, 4, 3, 3)])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_derivatives_of_first_and_second_order(shape: tuple[int, ...], lengths: Tensor | None) -> None:
    unary, pairwise = batch()[0].requires_grad_(), randn(3, *shape).requires_grad_()
    for function in (chain.log_partition, chain.entropy, chain.marginals, chain.pairwise_marginals):
        assert gradcheck(lambda u, p, f=function: f(u, p, lengths), (unary, pairwise), fast_mode=True)
    assert gradgradcheck(lambda u, p: chain.log_partition(u, p, lengths), (unary, pairwise), fast_mode=True)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_vmap_equals_a_loop(lengths: Tensor | None) -> None:
    unary, pairwise = batch()
    many = randn(5, 6, 3, 3)
    for function in (chain.log_partition, chain.entropy, lambda *a: chain.marginals(*a).square().sum((-2, -1))):
        gradient = torch.func.grad(lambda p, f=function: f(unary, p, lengths).sum())
        close(torch.func.vmap(gradient)(many), torch.stack([gradient(each) for each in many]))
    per_chain = torch.func.grad(lambda u, p: chain.log_partition(u, p), argnums=(0, 1))
    found = torch.func.vmap(per_chain, in_dims=(0, None))(unary, pairwise)
    for gradient, *expected in zip(found, *(per_chain(each, pairwise) for each in unary), strict=True):
        close(gradient, torch.stack(expected))
    hessian = torch.func.vmap(
        torch.func.jacrev(torch.func.grad(lambda p: chain.log_partition(unary, p, lengths).sum()))
    )
    assert hessian(many).shape == (6, 3, 3, 3, 3)


@pytest.mark.parametrize("lengths", [None, LENGTHS, torch.tensor([20, 1, 13, 0])])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_what_is_traced_is_the_same(steps: int, lengths: Tensor | None) -> None:
    unary, pairwise = randn(0, 4, steps, 3), randn(1, 2, 1, 1, 3, 3)
    pairwise[0, 0, 0, 1] = -torch.inf
    if lengths is not None:
        lengths = lengths.clamp(max=steps)
    gradient = torch.func.grad_and_value(lambda u, p: chain.log_partition(u, p, lengths).sum(), argnums=(0, 1))
    traced = make_fx(gradient)(torch.zeros_like(unary), torch.zeros_like(pairwise))
    (found, value), (expected, other) = traced(unary, pairwise), gradient(unary, pairwise)
    close(value, other)
    close(found[0], expected[0])
    close(found[1], expected[1])


@exact
@given(chains(max_steps=6))
def test_three_ways_to_log_partition_agree(case: tuple[Tensor, Tensor, Tensor | None]) -> None:
    potentials = chain_potentials(*case)
    close(filter_in_log_space(potentials)[0], LogPartition.apply(*potentials)[0])
    if potentials.unary.shape[-2] > 1:
        close(log_partition_by_pairs(potentials), LogPartition.apply(*potentials)[0])


# Arithmetic


def test_single_precision_is_precise_on_long_chains() -> None:
    unary, pairwise = randn(0, 8, 500, 10), randn(1, 10, 10)
    found = [each.float().requires_grad_() for each in (unary, pairwise)]
    exactly = [each.requires_grad_() for each in (unary, pairwise)]
    value, expected = chain.log_partition(*found), chain.log_partition(*exactly)
    assert value.dtype == torch.float32
    assert float((value / expected - 1).detach().abs().max()) < 1e-6
    for first, second in zip(
        torch.autograd.grad(value.sum(), found), torch.autograd.grad(expected.sum(), exactly), strict=True
    ):
        assert float((first - second).norm() / second.norm()) < 3e-6


@pytest.mark.parametrize(
    ("scale", "dtype", "length"), [(1, torch.float32, 40), (80, torch.float64, 40), (900, None, 0)]
)
def test_the_arithmetic_is_the_cheapest_that_is_safe(scale: float, dtype: torch.dtype | None, length: int) -> None:
    unary = -scale * torch.linspace(0, 1, 4).repeat(2, 40, 1).requires_grad_()
    pairwise = torch.zeros(4, 4)
    log_z, alpha, _ = LogPartition.apply(*chain_potentials(unary, pairwise))
    assert len(alpha) == length
    assert dtype is None or alpha.dtype == dtype
    expected = 40 * torch.logsumexp(unary[0, 0], 0)
    torch.testing.assert_close(log_z, expected.expand(2))
    (gradient,) = torch.autograd.grad(log_z.sum(), unary)
    torch.testing.assert_close(gradient, unary.softmax(-1))


def test_mass_that_underflows_and_comes_back_is_not_lost() -> None:
    """A state that is 2,000 times less likely with each step, until all but it turns out to be impossible."""
    unary = torch.zeros(1, 30, 2)
    unary[:, :-1, 1] = -7.6
    unary[:, -1, 0] = -torch.inf
    pairwise = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    torch.testing.assert_close(chain.log_partition(unary, pairwise), torch.tensor([-7.6 * 29]))
    assert chain.marginals(unary, pairwise)[0, :, 1].min() == 1


def test_what_is_impossible_has_no_gradient() -> None:
    unary, pairwise = torch.full((2, 3, 2), -torch.inf).requires_grad_(), torch.zeros(2, 2).requires_grad_()
    log_z = chain.log_partition(unary, pairwise)
    assert log_z.tolist() == [-torch.inf] * 2
    for gradient in torch.autograd.grad(log_z.sum(), (unary, pairwise)):
        assert not gradient.any()
    with pytest.raises(ValueError, match="no path is possible"):
        chain_sampling.sample(unary, pairwise)


def test_padding_may_hold_anything() -> None:
    unary, pairwise = batch()
    full = pairwise.expand(4, 4, 3, 3).clone()
    expected = chain.log_partition(unary, pairwise, LENGTHS)
    for i, length in enumerate(LENGTHS.tolist()):
        unary[i, length:] = torch.nan
        full[i, max(length - 1, 0) :] = torch.nan
    unary, full = unary.requires_grad_(), full.requires_grad_()
    found = chain.log_partition(unary, full, LENGTHS)
    close(found, expected)
    for gradient in torch.autograd.grad(found.sum(), (unary, full)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        (((3,), (3, 3)), r"unary log-potentials of shape \(3,\), expected \(\*batch, T, K\)"),
        (((5, 3), (4, 4)), r"pairwise .* of shape \(4, 4\), expected .* \(\*batch, 4, 3, 3\)"),
        (((2, 5, 3), (2, 3, 3)), "insert a dim of one: pairwise.unsqueeze"),
        (((2, 5, 3), (3, 1, 3, 3)), "got batch shapes"),
    ],
)
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], tuple[int, ...]], match: str) -> None:
    with pytest.raises(EnergyShapeError, match=match):
        chain.log_partition(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
    with pytest.raises(EnergyShapeError, match="Pad them"):
        chain.score(torch.zeros(4), torch.zeros(5, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="expected a positive number"):
        chain_decoding.top_paths(torch.zeros(5, 3), torch.zeros(3, 3), 0)
