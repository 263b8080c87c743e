"""Random log-potentials for chains and trees, small enough to enumerate."""

from itertools import pairwise as neighbours
from itertools import product
from typing import Any

import torch
from cases import randn
from hypothesis import strategies as st
from torch import Tensor

Edge = tuple[int, int]


@st.composite
def chains(draw: Any, max_steps: int = 4, max_states: int = 3) -> tuple[Tensor, Tensor, Tensor | None]:
    """Unary and pairwise log-potentials and lengths, of all shapes that broadcast; some of them -inf."""
    steps, states = draw(st.integers(1, max_steps)), draw(st.integers(1, max_states))
    batch = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    own = tuple(size if draw(st.booleans()) else 1 for size in batch)
    form = draw(st.sampled_from(["matrix", "steps", "shared", "full"]))
    shapes = {"matrix": (), "steps": (steps - 1,), "shared": (*own, 1), "full": (*own, steps - 1)}
    seed = draw(st.integers(0, 10**6))
    scale = draw(st.sampled_from([0.1, 1.0, 30.0, 400.0]))
    unary = scale * randn(seed, *batch, steps, states)
    pairwise = scale * randn(seed + 1, *shapes[form], states, states)
    if draw(st.booleans()):
        unary[randn(seed + 2, *unary.shape) > 1.0] = -torch.inf
        pairwise[randn(seed + 3, *pairwise.shape) > 1.0] = -torch.inf
    lengths = None
    if draw(st.booleans()):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(0, steps + 1, batch, generator=generator)
    return unary, pairwise, lengths


@st.composite
def trees(draw: Any, max_nodes: int = 5, max_states: int = 3) -> tuple[Tensor, Tensor, list[int]]:
    """Unary and pairwise log-potentials, some of them -inf, and parents in any order."""
    nodes, states = draw(st.integers(1, max_nodes)), draw(st.integers(1, max_states))
    order = draw(st.permutations(range(nodes)))
    parents = [-1] * nodes
    for place, node in enumerate(order):
        above = draw(st.integers(-1, place - 1))
        parents[node] = -1 if above < 0 else order[above]
    batch = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    own = tuple(size if draw(st.booleans()) else 1 for size in batch)
    shape = draw(st.sampled_from([(), (nodes,), (*own, 1), (*own, nodes)]))
    seed, scale = draw(st.integers(0, 10**6)), draw(st.sampled_from([0.1, 1.0, 30.0]))
    unary = scale * randn(seed, *batch, nodes, states)
    pairwise = scale * randn(seed + 1, *shape, states, states)
    if draw(st.booleans()):
        unary[randn(seed + 2, *unary.shape) > 1.0] = -torch.inf
        pairwise[randn(seed + 3, *pairwise.shape) > 1.0] = -torch.inf
    return unary, pairwise, parents


def all_states(num: int, states: int) -> Tensor:
    """Every joint state, `(states ** num, num)`."""
    return torch.tensor(list(product(range(states), repeat=num)), dtype=torch.long).reshape(states**num, num)


def chain_edges(steps: int) -> list[Edge]:
    """The edges of a chain, to be numbered by the step that they lead from."""
    return list(neighbours(range(steps)))


def enumerated_scores(unary: Tensor, matrices: Tensor, edges: list[Edge]) -> tuple[Tensor, Tensor]:
    """All joint states of one graph and their scores, given a matrix for each edge."""
    values = all_states(*unary.shape)
    scores = sum((unary[node, values[:, node]] for node in range(len(unary))), unary.new_zeros(len(values)))
    for matrix, (first, second) in zip(matrices, edges, strict=True):
        scores = scores + matrix[values[:, first], values[:, second]]
    return values, scores


def singles(unary: Tensor, pairwise: Tensor, num_matrices: int) -> list[tuple[Tensor, Tensor]]:
    """Each batch element's unary log-potentials and matrices."""
    steps, states = unary.shape[-2:]
    pairwise = pairwise if pairwise.dim() > 2 else pairwise.unsqueeze(0)
    batch = torch.broadcast_shapes(unary.shape[:-2], pairwise.shape[:-3])
    unary = unary.expand(*batch, steps, states).reshape(batch.numel(), steps, states)
    pairwise = pairwise.expand(*batch, num_matrices, states, states).reshape(
        batch.numel(), num_matrices, states, states
    )
    return list(zip(unary, pairwise, strict=True))


def safe_logsumexp(scores: Tensor) -> Tensor:
    """Of the possible scores alone, so that gradients are zero elsewhere."""
    possible = scores[scores > -torch.inf]
    return possible.logsumexp(0) if len(possible) else scores.new_tensor(-torch.inf)


def chi_squared(draws: Tensor, values: Tensor, log_probs: Tensor) -> float:
    """The p-value of draws `(n, T)` under the probabilities of all values, rare ones pooled."""
    from scipy.stats import chi2

    states = int(values.max()) + 1
    weights = states ** torch.arange(values.shape[-1])
    order = (values * weights).sum(-1).argsort()
    expected = log_probs.exp()[order] * len(draws)
    counts = torch.bincount((draws * weights).sum(-1), minlength=len(values)).to(expected)
    counts = torch.zeros(len(values)).to(expected) + counts[(values * weights).sum(-1)[order]]
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    assert counts[expected == 0].sum() == 0
    kept = wanted > 0
    statistic = ((observed - wanted).square() / wanted)[kept].sum()
    return float(chi2.sf(float(statistic), max(int(kept.sum()) - 1, 1)))
