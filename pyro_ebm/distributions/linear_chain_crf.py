"""`LinearChainCRF`: sequences of labels, each of which depends on its neighbours."""

from __future__ import annotations

import torch
from torch import Size, Tensor

from pyro_ebm.distributions.structured import StructuredDistribution, clamped
from pyro_ebm.energies import TableEnergy
from pyro_ebm.graphs import FactorGraph
from pyro_ebm.graphs.chains import chain
from pyro_ebm.graphs.chains import decoding as chain_decoding
from pyro_ebm.graphs.chains import sampling as chain_sampling
from pyro_ebm.graphs.chains.potentials import chain_potentials


class LinearChainCRF(StructuredDistribution):
    """The conditional random field `p(z) = exp(Σ_t u_t(z_t) + Σ_t p_t(z_{t-1}, z_t)) / Z`, exactly normalised.

    As is usual for CRFs it takes *scores*, log-potentials, which are negative energies; -inf forbids. They may be
    learned or sampled, and depend on covariates in any way, for instance as the output of a network. Log Z and its
    gradient take a forward and a backward pass, for all chains at once.

    Args:
        unary: scores of each step's labels, `(*batch, T, K)`.
        pairwise: scores of neighbouring labels, broadcastable to `(*batch, T - 1, K, K)`, indexed by the previous and
            the next label; one matrix `(K, K)` may serve all steps.
        lengths: numbers of steps, broadcastable to `(*batch,)`, at most T; what comes after is padding.
        mask: the same as a boolean tensor, `(*batch, T)`, false in padding.
        initial: scores of the first label, `(*batch, K)`.
        final: scores of the last label, `(*batch, K)`.
        validate_args: whether values are checked; torch's default.

    Attributes:
        unary: scores of labels, with `initial` and `final` in them; `pairwise` and `lengths` are as given.

    Raises:
        EnergyShapeError: if the shapes do not fit.
        ValueError: if padding is not at the end.

    References:
        Lafferty, McCallum, Pereira (2001), Conditional random fields: probabilistic models for segmenting and labeling
        sequence data.

    >>> import pyro
    >>> crf = LinearChainCRF(torch.zeros(5, 7, 3), torch.eye(3), lengths=torch.tensor([7, 5, 6, 2, 1]))
    >>> crf.batch_shape, crf.event_shape, crf.sample((10,)).shape, crf.marginals.shape
    (torch.Size([5]), torch.Size([7]), torch.Size([10, 5, 7]), torch.Size([5, 7, 3]))
    >>> def model(words, labels):
    ...     transition = pyro.sample("transition", pyro.distributions.Normal(torch.zeros(3, 3), 1.0).to_event(2))
    ...     with pyro.plate("sentence", len(words)):
    ...         pyro.sample("labels", LinearChainCRF(words, transition), obs=labels)
    """

    def __init__(
        self,
        unary: Tensor,
        pairwise: Tensor,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        initial: Tensor | None = None,
        final: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check = self._validate_args if validate_args is None else validate_args
        if mask is not None:
            lengths = _lengths(mask, lengths, check)
        if lengths is not None and check and not bool(((lengths >= 0) & (lengths <= unary.shape[-2])).all()):
            raise ValueError(
                f"LinearChainCRF: got lengths from {int(lengths.min())} to {int(lengths.max())}, expected numbers of "
                f"steps from 0 to {unary.shape[-2]}."
            )
        steps = torch.arange(unary.shape[-2], device=unary.device).unsqueeze(-1)
        if initial is not None:
            unary = unary + torch.where(steps == 0, initial.unsqueeze(-2), 0.0)
        if final is not None:
            last = torch.as_tensor(unary.shape[-2] if lengths is None else lengths, device=unary.device) - 1
            unary = unary + torch.where(steps == last[..., None, None], final.unsqueeze(-2), 0.0)
        self.unary, self.pairwise, self.lengths = unary, pairwise, lengths
        potentials = chain_potentials(unary, pairwise, lengths)
        super().__init__(
            potentials.batch_shape,
            Size(unary.shape[-2:-1]),
            unary.shape[-1],
            inside=potentials.mask,
            validate_args=validate_args,
        )

    @classmethod
    def from_hmm(
        cls,
        initial_logits: Tensor,
        transition_logits: Tensor,
        observation_logits: Tensor,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> LinearChainCRF:
        """The posterior over the states of a hidden Markov model, given what is observed.

        Its `log_partition()` is the log likelihood of the observations.

        Args:
            initial_logits: of the first state, `(*batch, K)`; normalised here.
            transition_logits: from the previous to the next state, broadcastable to `(*batch, T - 1, K, K)`; each row
                is normalised here.
            observation_logits: the log densities of each step's observation under each state, `(*batch, T, K)`.
            lengths: as for the class.
            mask: as for the class.
            validate_args: as for the class.

        >>> import pyro.distributions as dist
        >>> x = torch.randn(10)
        >>> posterior = LinearChainCRF.from_hmm(
        ...     torch.zeros(2), 3 * torch.eye(2), dist.Normal(torch.tensor([-1.0, 1.0]), 0.5).log_prob(x[:, None])
        ... )
        >>> hmm = dist.DiscreteHMM(torch.zeros(2), 3 * torch.eye(2), dist.Normal(torch.tensor([-1.0, 1.0]), 0.5))
        >>> torch.allclose(posterior.log_partition(), hmm.log_prob(x))
        True
        """
        return cls(
            observation_logits,
            transition_logits.log_softmax(-1),
            lengths=lengths,
            mask=mask,
            initial=initial_logits.log_softmax(-1),
            validate_args=validate_args,
        )

    def _score(self, value: Tensor) -> Tensor:
        return chain.score(value, self.unary, self.pairwise, self.lengths)

    def _log_partition(self) -> Tensor:
        return chain.log_partition(self.unary, self.pairwise, self.lengths)

    def _marginals(self) -> Tensor:
        return chain.marginals(self.unary, self.pairwise, self.lengths)

    def _mode(self) -> Tensor:
        return chain_decoding.mode(self.unary, self.pairwise, self.lengths)

    def _entropy(self) -> Tensor:
        return chain.entropy(self.unary, self.pairwise, self.lengths)

    def _sample(self, sample_shape: Size) -> Tensor:
        return chain_sampling.sample(self.unary, self.pairwise, sample_shape, self.lengths)

    @property
    def graph(self) -> FactorGraph:
        """The same as a `FactorGraph` over one array of labels `"z"`, `(T,)`, for whatever graphs can do.

        Padding has the label 0 in it, and counts nothing.
        """
        unary, _, mask = potentials = chain_potentials(self.unary, self.pairwise, self.lengths)
        pairwise = potentials.pairwise if mask is None else potentials.full_pairwise()
        if mask is not None:
            padding = torch.arange(self.num_states, device=unary.device).eq(0).to(unary.dtype).log()
            unary = torch.where(mask.unsqueeze(-1), unary, padding)
            pairwise = torch.where(mask[..., 1:, None, None], pairwise, 0.0)
        graph = FactorGraph()
        z = graph.variable("z", num_states=self.num_states, shape=self.event_shape)
        graph.factor(TableEnergy(-unary, arity=1), z[:])
        if self.event_shape[0] > 1:
            graph.factor(TableEnergy(-pairwise, arity=2), z[:-1], z[1:])
        return graph

    def condition(self, value: Tensor, observed: Tensor) -> LinearChainCRF:
        """The distribution of all labels given some; see `StructuredDistribution.condition`."""
        unary = clamped(self.unary, value, observed)
        return LinearChainCRF(unary, self.pairwise, lengths=self.lengths, validate_args=self._validate_args)

    @property
    def pairwise_marginals(self) -> Tensor:
        """The joint probabilities of each two neighbours' labels, `(*batch, T - 1, K, K)`; zero in padding."""
        joint = chain.pairwise_marginals(self.unary, self.pairwise, self.lengths)
        return joint.expand(*self.batch_shape, *joint.shape[-3:])

    def top_paths(self, num_paths: int) -> tuple[Tensor, Tensor]:
        """The most probable sequences, best first.

        Returns:
            Labels `(num_paths, *batch, T)`, and their log probabilities `(num_paths, *batch)` in nats, which are -inf
            where there are fewer possible sequences.
        """
        paths, scores = chain_decoding.top_paths(self.unary, self.pairwise, num_paths, self.lengths)
        log_probs = scores - self._log_partition().detach()
        lead = (num_paths, *[1] * (len(self.batch_shape) - len(self._own_shape)))
        paths = paths.reshape(*lead, *paths.shape[1:]).expand(num_paths, *self.batch_shape, *self.event_shape)
        return paths, log_probs.reshape(*lead, *log_probs.shape[1:]).expand(num_paths, *self.batch_shape)


def _lengths(mask: Tensor, lengths: Tensor | None, check: bool) -> Tensor:
    if lengths is not None:
        raise ValueError("LinearChainCRF: got both lengths and mask, expected one of them: they say the same.")
    if mask.dtype != torch.bool:
        raise ValueError(f"LinearChainCRF: got a mask of {mask.dtype}, expected torch.bool. Convert it: mask.bool().")
    lengths = mask.sum(-1)
    if check and not bool((mask == (torch.arange(mask.shape[-1], device=mask.device) < lengths.unsqueeze(-1))).all()):
        raise ValueError(
            "LinearChainCRF: got a mask with gaps, expected true for a sequence's steps, then false for padding. For "
            "labels that are not observed, use log_prob_partial(value, observed)."
        )
    return lengths
