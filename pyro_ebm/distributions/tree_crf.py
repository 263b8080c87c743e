"""`TreeCRF`: labels of the nodes of a tree, each of which depends on its parent's and its children's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Size, Tensor

from pyro_ebm.distributions.structured import StructuredDistribution, clamped
from pyro_ebm.energies import TableEnergy
from pyro_ebm.graphs import FactorGraph
from pyro_ebm.graphs.trees import decoding as tree_decoding
from pyro_ebm.graphs.trees import sampling as tree_sampling
from pyro_ebm.graphs.trees import tree
from pyro_ebm.graphs.trees.forest import Forest


class TreeCRF(StructuredDistribution):
    """The conditional random field `p(z) = exp(Σ_n u_n(z_n) + Σ_n p_n(z_parent(n), z_n)) / Z` on a tree or a forest.

    As is usual for CRFs it takes *scores*, log-potentials, which are negative energies; -inf forbids. They may be
    learned or sampled, and depend on covariates in any way. A pass has as many steps as the tree is deep.

    Args:
        unary: scores of each node's labels, `(*batch, N, K)`.
        pairwise: scores of a node's parent's label and its own, broadcastable to `(*batch, N, K, K)`; what it has at
            roots is ignored, and one matrix `(K, K)` may serve all edges.
        parents: the number of each node's parent, `(N,)`, -1 for a root, in any order; or a `Forest` made of it.
        validate_args: whether values are checked; torch's default.

    Attributes:
        unary: as given; `pairwise` likewise.
        forest: the edges.

    Raises:
        EnergyShapeError: if the shapes do not fit.
        ValueError: if the parents make no forest.

    >>> import torch
    >>> crf = TreeCRF(torch.zeros(5, 4, 3), torch.eye(3), parents=[-1, 0, 0, 1])
    >>> crf.batch_shape, crf.event_shape, crf.sample((10,)).shape, crf.marginals.shape
    (torch.Size([5]), torch.Size([4]), torch.Size([10, 5, 4]), torch.Size([5, 4, 3]))
    """

    def __init__(
        self,
        unary: Tensor,
        pairwise: Tensor,
        parents: Tensor | Sequence[int] | Forest,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.unary, self.pairwise = unary, pairwise
        self.forest = parents if isinstance(parents, Forest) else Forest.from_parents(parents)
        potentials = tree.tree_potentials(unary, pairwise, self.forest)
        super().__init__(potentials.batch_shape, Size(unary.shape[-2:-1]), unary.shape[-1], validate_args=validate_args)

    def _score(self, value: Tensor) -> Tensor:
        return tree.score(value, self.unary, self.pairwise, self.forest)

    def _log_partition(self) -> Tensor:
        return tree.log_partition(self.unary, self.pairwise, self.forest)

    def _marginals(self) -> Tensor:
        return tree.marginals(self.unary, self.pairwise, self.forest)

    def _mode(self) -> Tensor:
        return tree_decoding.mode(self.unary, self.pairwise, self.forest)

    def _entropy(self) -> Tensor:
        return tree.entropy(self.unary, self.pairwise, self.forest)

    def _sample(self, sample_shape: Size) -> Tensor:
        return tree_sampling.sample(self.unary, self.pairwise, self.forest, sample_shape)

    @property
    def graph(self) -> FactorGraph:
        """The same as a `FactorGraph` over one array of labels `"z"`, `(N,)`, for whatever graphs can do."""
        potentials = tree.tree_potentials(self.unary, self.pairwise, self.forest)
        graph = FactorGraph()
        z = graph.variable("z", num_states=self.num_states, shape=self.event_shape)
        graph.factor(TableEnergy(-potentials.unary, arity=1), z[:])
        children = self.forest.children
        if len(children):
            edges = torch.stack([self.forest.parents[children], children], -1)
            graph.factor(TableEnergy(-potentials.pairwise_at(children), arity=2), z[edges])
        return graph

    def condition(self, value: Tensor, observed: Tensor) -> TreeCRF:
        """The distribution of all labels given some; see `StructuredDistribution.condition`."""
        unary = clamped(self.unary, value, observed)
        return TreeCRF(unary, self.pairwise, self.forest, validate_args=self._validate_args)
