"""Trees against enumeration, chains, and themselves in other batches and transformations."""

import pytest
import torch
from cases import randn
from hypothesis import given, settings
from structured_cases import Edge, chi_squared, enumerated_scores, safe_logsumexp, singles, trees
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ebm import EnergyShapeError
from pyro_ebm.graphs.chains import chain
from pyro_ebm.graphs.chains import decoding as chain_decoding
from pyro_ebm.graphs.trees import decoding as tree_decoding
from pyro_ebm.graphs.trees import sampling as tree_sampling
from pyro_ebm.graphs.trees import tree
from pyro_ebm.graphs.trees.forest import Forest

exact = settings(deadline=None, derandomize=True, max_examples=40)
PARENTS = [3, -1, 1, -1, 3]


def by_enumeration(unary: Tensor, pairwise: Tensor, parents: list[int]) -> list[tuple[Tensor, Tensor]]:
    """For each tree, all states and their scores."""
    edges: list[Edge] = [(parent, node) for node, parent in enumerate(parents) if parent >= 0]
    children = [node for _, node in edges]
    return [enumerated_scores(u, p[children], edges) for u, p in singles(unary, pairwise, len(parents))]


def close(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-9)


@exact
@given(trees())
def test_sum_product_and_max_product(case: tuple[Tensor, Tensor, list[int]]) -> None:
    unary, pairwise, parents = case
    forest = Forest.from_parents(parents)
    nodes, states = unary.shape[-2:]
    log_z, entropies = (f(unary, pairwise, forest) for f in (tree.log_partition, tree.entropy))
    found = tree.marginals(unary, pairwise, forest).reshape(-1, nodes, states)
    joint = tree.pairwise_marginals(unary, pairwise, forest).reshape(-1, nodes, states, states)
    modes = tree_decoding.mode(unary, pairwise, forest)
    best = tree.score(modes, unary, pairwise, forest).flatten()
    for i, (values, scores) in enumerate(by_enumeration(unary, pairwise, parents)):
        close(log_z.flatten()[i], safe_logsumexp(scores))
        close(best[i], scores.max())
        if scores.max() == -torch.inf:
            assert not found[i].any()
            continue
        probabilities = scores.softmax(0)
        one_hot = torch.nn.functional.one_hot(values, states).double()
        close(found[i], torch.einsum("n,nti->ti", probabilities, one_hot))
        close(entropies.flatten()[i], torch.special.entr(probabilities).sum())
        for node, parent in enumerate(parents):
            pair = torch.einsum("n,ni,nj->ij", probabilities, one_hot[:, parent], one_hot[:, node])
            close(joint[i, node], pair if parent >= 0 else torch.zeros_like(pair))


@exact
@given(trees())
def test_gradients(case: tuple[Tensor, Tensor, list[int]]) -> None:
    unary, pairwise, parents = case
    unary, pairwise = unary.requires_grad_(), pairwise.requires_grad_()
    found = tree.log_partition(unary, pairwise, Forest.from_parents(parents))
    expected = torch.stack([safe_logsumexp(scores) for _, scores in by_enumeration(unary, pairwise, parents)])
    total = torch.where(expected > -torch.inf, expected, 0.0).sum()
    if total.requires_grad:
        wanted = torch.autograd.grad(total, (unary, pairwise), allow_unused=True, materialize_grads=True)
        found_sum = torch.where(found > -torch.inf, found, 0.0).sum()
        gradients = torch.autograd.grad(found_sum, (unary, pairwise), allow_unused=True, materialize_grads=True)
        for gradient, want in zip(gradients, wanted, strict=True):
            close(gradient, want)


@pytest.mark.parametrize("shape", [(3, 3), (5, 3, 3), (2, 1, 3, 3), (2, 5, 3, 3)])
def test_derivatives_and_vmap(shape: tuple[int, ...]) -> None:
    forest, unary = Forest.from_parents(PARENTS), randn(0, 2, 5, 3).requires_grad_()
    pairwise = randn(1, *shape).requires_grad_()
    for function in (tree.log_partition, tree.entropy, tree.marginals, tree.pairwise_marginals):
        assert gradcheck(lambda u, p, f=function: f(u, p, forest), (unary, pairwise), fast_mode=True)
    assert gradgradcheck(lambda u, p: tree.log_partition(u, p, forest), (unary, pairwise), fast_mode=True)
    gradient = torch.func.grad(lambda p: tree.log_partition(unary.detach(), p, forest).sum())
    many = randn(2, 6, *shape)
    close(torch.func.vmap(gradient)(many), torch.stack([gradient(each) for each in many]))
    close(make_fx(gradient)(torch.zeros(shape).double())(many[0]), gradient(many[0]))


def test_draws_follow_the_probabilities() -> None:
    unary, pairwise = randn(0, 2, 5, 3), randn(1, 3, 3)
    pairwise[0, 1] = -torch.inf
    draws = tree_sampling.sample(
        unary, pairwise, Forest.from_parents(PARENTS), (50, 400), generator=torch.Generator().manual_seed(1)
    )
    assert draws.shape == (50, 400, 2, 5)
    for i, (values, scores) in enumerate(by_enumeration(unary, pairwise, PARENTS)):
        assert chi_squared(draws[..., i, :].reshape(-1, 5), values, scores.log_softmax(0)) > 1e-4 / 2


def test_a_chain_is_a_tree_and_its_roots_are_ignored() -> None:
    unary, pairwise = randn(0, 3, 7, 4), randn(1, 3, 6, 4, 4)
    forest = Forest.from_parents(range(-1, 6))
    padded = torch.cat([torch.full((3, 1, 4, 4), torch.nan, dtype=torch.float64), pairwise], -3)
    close(tree.log_partition(unary, padded, forest), chain.log_partition(unary, pairwise))
    close(tree.marginals(unary, padded, forest), chain.marginals(unary, pairwise))
    close(tree.entropy(unary, padded, forest), chain.entropy(unary, pairwise))
    assert torch.equal(tree_decoding.mode(unary, padded, forest), chain_decoding.mode(unary, pairwise))


def test_single_precision_on_a_large_tree() -> None:
    parents = torch.cat([torch.tensor([-1]), torch.arange(2000) // 2])
    unary, pairwise, forest = randn(0, 2001, 5), randn(1, 5, 5), Forest.from_parents(parents)
    assert len(forest.levels) == 11
    exactly = tree.log_partition(unary, pairwise, forest)
    assert abs(float(tree.log_partition(unary.float(), pairwise.float(), forest) / exactly) - 1) < 1e-6
    rounded = tree.marginals(unary.float(), pairwise.float(), forest).double()
    torch.testing.assert_close(rounded, tree.marginals(unary, pairwise, forest), rtol=1e-3, atol=1e-4)


def test_what_is_impossible() -> None:
    unary, forest = torch.full((3, 2), -torch.inf).requires_grad_(), Forest.from_parents([-1, 0, 1])
    log_z = tree.log_partition(unary, torch.zeros(2, 2), forest)
    assert log_z == -torch.inf
    assert not torch.autograd.grad(log_z, unary)[0].any()
    with pytest.raises(ValueError, match="nothing is possible"):
        tree_sampling.sample(unary, torch.zeros(2, 2), forest)


@pytest.mark.parametrize(
    ("parents", "match"),
    [
        ([1, 0, -1], "got 2 of 3 nodes that no root leads to, expected no cycle"),
        ([-1, 3], "got parent 3 of node 1, expected a number from -1 to 1"),
        ([-2, 0], "got parent -2 of node 0"),
        ([], r"expected integers \(N,\) with N > 0"),
        (torch.zeros(2), "torch.float32, expected integers"),
    ],
)
def test_what_is_not_a_forest(parents: list[int] | Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Forest.from_parents(parents)


def test_shapes_that_do_not_fit() -> None:
    forest = Forest.from_parents([-1, 0])
    with pytest.raises(EnergyShapeError, match="there are 2 parents"):
        tree.log_partition(torch.zeros(3, 2), torch.zeros(2, 2), forest)
    with pytest.raises(EnergyShapeError, match="insert a dim of one"):
        tree.log_partition(torch.zeros(3, 2, 2), torch.zeros(3, 2, 2), forest)
    with pytest.raises(EnergyShapeError, match="got states of shape"):
        tree.score(torch.zeros(3), torch.zeros(2, 2), torch.zeros(2, 2), forest)
