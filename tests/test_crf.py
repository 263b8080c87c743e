"""CRFs as Pyro distributions: shapes, conditioning, and models that learn or sample what they are made of."""

import copy
import pickle
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import parametrize, randn
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from torch import Tensor

from pyro_ebm import MCMC, NUTS, EnergyShapeError, LinearChainCRF, TreeCRF
from pyro_ebm.distributions import StructuredDistribution
from pyro_ebm.graphs.trees.forest import Forest

LENGTHS = torch.tensor([4, 2, 1])
PARENTS = [-1, 0, 0, -1]


class Case:
    """A way to make a CRF of four labels with three values, of unary scores `(*batch, 4, 3)` and a matrix."""

    def __init__(
        self, name: str, make: Callable[[Tensor, Tensor], StructuredDistribution], padded: bool = False
    ) -> None:
        self.name, self.make, self.padded = name, make, padded


CASES = [
    Case("chain", LinearChainCRF),
    Case("padded chain", lambda u, p: LinearChainCRF(u, p, lengths=LENGTHS), padded=True),
    Case("ends", lambda u, p: LinearChainCRF(u, p, initial=randn(8, 3), final=randn(9, 3))),
    Case("tree", lambda u, p: TreeCRF(u, p, PARENTS)),
]


def all_labels(num: int = 4) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(3)] * num).reshape(-1, num)


def parameters(*batch: int) -> tuple[Tensor, Tensor]:
    return randn(0, *batch, 4, 3), randn(1, 3, 3)


@parametrize(CASES)
@pytest.mark.parametrize("sample_shape", [(), (5,), (2, 5)])
def test_shapes(case: Case, sample_shape: tuple[int, ...]) -> None:
    crf = case.make(*parameters(3))
    assert (crf.batch_shape, crf.event_shape, crf.num_states) == ((3,), (4,), 3)
    draws = crf.sample(sample_shape)
    assert draws.shape == (*sample_shape, 3, 4)
    assert crf.support.check(draws).all()
    assert crf.log_prob(draws).shape == (*sample_shape, 3)
    assert crf.marginals.shape == (3, 4, 3)
    assert crf.mode.shape == (3, 4)
    assert crf.entropy().shape == crf.log_partition().shape == (3,)
    assert crf.log_prob(torch.zeros(4).long()).shape == (3,)
    assert not crf.has_enumerate_support
    assert "num_states=3, batch_shape=(3,), event_shape=(4,)" in repr(crf)


@parametrize(CASES)
def test_probabilities_sum_to_one_over_what_counts(case: Case) -> None:
    crf = case.make(*parameters(3))
    padding = 3.0 ** (4 - LENGTHS) if case.padded else 1.0
    total = crf.log_prob(all_labels().unsqueeze(1)).exp().sum(0) / padding
    torch.testing.assert_close(total, torch.ones_like(total))
    probabilities = crf.log_prob(all_labels().unsqueeze(1)).exp() / padding
    torch.testing.assert_close(
        crf.entropy(), torch.special.entr(probabilities * padding).sum(0) / padding, rtol=1e-9, atol=1e-9
    )


@parametrize(CASES)
@pytest.mark.parametrize("batch_shape", [(3,), (2, 3), (4, 2, 3)])
def test_expanding_repeats(case: Case, batch_shape: tuple[int, ...]) -> None:
    crf = case.make(*parameters(3))
    expanded = crf.expand(batch_shape)
    assert type(expanded) is type(crf)
    assert crf.batch_shape == (3,)
    draws = expanded.sample((6,))
    assert draws.shape == (6, *batch_shape, 4)
    torch.testing.assert_close(expanded.log_prob(draws), crf.log_prob(draws))
    assert torch.equal(expanded.mode, crf.mode.expand(*batch_shape, 4))
    torch.testing.assert_close(expanded.marginals, crf.marginals.expand(*batch_shape, 4, 3))
    assert expanded.entropy().shape == expanded.log_partition().shape == batch_shape
    twice = expanded.expand((5, *batch_shape))
    assert twice.sample().shape == (5, *batch_shape, 4)


def test_what_is_expanded_within_the_batch_has_draws_of_its_own() -> None:
    unary = 10 * torch.nn.functional.one_hot(torch.tensor([[0, 0], [1, 1], [2, 2]]), 3).double()
    crf = LinearChainCRF(unary.unsqueeze(1), torch.zeros(3, 3)).expand((2, 3, 1000))
    draws = crf.sample()
    assert draws.shape == (2, 3, 1000, 2)
    assert (draws.double().mean((0, 2, 3)) - torch.arange(3)).abs().max() < 0.01
    free = LinearChainCRF(torch.zeros(1, 2, 2), torch.zeros(2, 2)).expand((1000,)).sample().double()
    assert 0.4 < free.mean() < 0.6
    with pytest.raises(EnergyShapeError, match="index the parameters by the plate's indices"):
        crf.expand((2, 4, 1000))


@parametrize(CASES)
def test_masking_copying_and_pickling(case: Case) -> None:
    crf = case.make(*parameters(3))
    values = crf.sample()
    keep = torch.tensor([True, False, True])
    assert torch.equal(crf.mask(keep).log_prob(values), torch.where(keep, crf.log_prob(values), 0))
    assert crf.to_event(1).log_prob(values).shape == ()
    for other in (copy.deepcopy(crf), pickle.loads(pickle.dumps(crf)), pickle.loads(pickle.dumps(crf.expand((2, 3))))):
        torch.testing.assert_close(other.log_prob(values).sum(), crf.log_prob(values).expand(other.batch_shape).sum())
    assert crf.log_prob(values).dtype == torch.float64
    assert case.make(*(each.float() for each in parameters(3))).log_partition().dtype in (torch.float32, torch.float64)


@parametrize(CASES)
def test_labels_observed_in_part(case: Case) -> None:
    crf = case.make(*parameters(3))
    value = torch.tensor([[0, 1, 2, 0], [2, 2, 0, 0], [1, 0, 0, 0]])
    observed = torch.tensor([[True, False, True, False], [False, True, False, False], [False] * 4])
    found = crf.log_prob_partial(value, observed)
    labels = all_labels()
    for i in range(3):
        agrees = ((labels == value[i]) | ~observed[i]).all(-1)
        single = crf.log_prob(labels.unsqueeze(1))[:, i]
        expected = single[agrees].logsumexp(0) - single.logsumexp(0)
        torch.testing.assert_close(found[i], expected, rtol=1e-9, atol=1e-9)
    conditional = crf.condition(value, observed)
    assert (torch.where(observed, conditional.sample((20,)) == value, True)).all()
    everything = torch.ones(3, 4, dtype=torch.bool)
    torch.testing.assert_close(crf.log_prob_partial(value, everything), crf.log_prob(value))


def test_padding() -> None:
    unary, pairwise = parameters(3)
    crf = LinearChainCRF(unary, pairwise, lengths=LENGTHS, final=randn(3, 3), initial=randn(4, 3))
    by_mask = LinearChainCRF(
        unary, pairwise, mask=torch.arange(4) < LENGTHS.unsqueeze(-1), final=randn(3, 3), initial=randn(4, 3)
    )
    value = crf.sample((7,))
    padded = torch.where(torch.arange(4) < LENGTHS.unsqueeze(-1), value, -100)
    torch.testing.assert_close(by_mask.log_prob(padded), crf.log_prob(value))
    for i, length in enumerate(LENGTHS.tolist()):
        alone = LinearChainCRF(unary[i, :length], pairwise, final=randn(3, 3), initial=randn(4, 3))
        torch.testing.assert_close(alone.log_prob(value[:, i, :length]), crf.log_prob(value)[:, i])
    paths, log_probs = crf.expand((2, 3)).top_paths(3)
    assert paths.shape == (3, 2, 3, 4)
    torch.testing.assert_close(crf.log_prob(paths), log_probs)
    torch.testing.assert_close(crf.pairwise_marginals.sum((-2, -1)), (torch.arange(1, 4) < LENGTHS[:, None]).double())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mask": torch.tensor([True, False, True, True])}, "got a mask with gaps"),
        ({"mask": torch.ones(4)}, "got a mask of torch.float32, expected torch.bool"),
        ({"mask": torch.ones(4).bool(), "lengths": torch.tensor(4)}, "got both lengths and mask"),
        ({"lengths": torch.tensor([5, 4, 1])}, "got lengths from 1 to 5, expected numbers of steps from 0 to 4"),
    ],
)
def test_what_is_no_padding(options: dict[str, Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        LinearChainCRF(*parameters(3), **options, validate_args=True)


def test_labels_outside_of_the_support() -> None:
    crf = LinearChainCRF(*parameters(3), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        crf.log_prob(torch.full((3, 4), 3))
    with pytest.raises(EnergyShapeError, match=r"expected \(\*sample, \*batch, \*event\)"):
        LinearChainCRF(*parameters(3), validate_args=False).log_prob(torch.zeros(3, 5))


def test_a_hidden_markov_model_is_one() -> None:
    initial, transition, observations = randn(0, 3), randn(1, 3, 3), randn(2, 5, 4)
    means = torch.linspace(-1, 1, 3).double()
    emission = dist.Normal(means, 0.7)
    posterior = LinearChainCRF.from_hmm(initial, transition, emission.log_prob(observations.unsqueeze(-1)))
    expected = torch.stack([
        (
            initial.log_softmax(-1)[path[..., 0]]
            + transition.log_softmax(-1)[path[..., :-1], path[..., 1:]].sum(-1)
            + dist.Normal(means[path], 0.7).log_prob(row).sum(-1)
        ).logsumexp(0)
        for row in observations
        for path in [all_labels()]
    ])  # fmt: skip
    torch.testing.assert_close(posterior.log_partition(), expected)
    padded = LinearChainCRF.from_hmm(
        initial, transition, emission.log_prob(observations.unsqueeze(-1)), lengths=torch.tensor([1, 2, 3, 4, 2])
    )
    first = (initial.log_softmax(-1) + emission.log_prob(observations[0, 0])).logsumexp(0)
    torch.testing.assert_close(padded.log_partition()[0], first)


# In models


def data() -> tuple[Tensor, Tensor]:
    unary = randn(5, 40, 4, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return unary, LinearChainCRF(unary, 2 * torch.eye(3).double()).sample()


def test_maximum_likelihood_by_svi_is_where_the_gradient_is_zero() -> None:
    unary, labels = data()

    def model() -> None:
        pairwise = pyro.param("pairwise", torch.zeros(3, 3).double())
        with pyro.plate("sequence", 40):
            pyro.sample("labels", LinearChainCRF(unary, pairwise), obs=labels)

    svi = SVI(model, AutoDelta(model), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(400):
        svi.step()
    pairwise = pyro.param("pairwise").detach().requires_grad_()
    LinearChainCRF(unary, pairwise).log_prob(labels).sum().backward()
    assert pairwise.grad is not None
    assert pairwise.grad.abs().max() < 1e-2


def test_subsampled_plates_and_masks() -> None:
    unary, labels = data()

    def model() -> None:
        with pyro.plate("sequence", 40, subsample_size=10) as index, pyro.poutine.mask(mask=index % 2 == 0):
            pyro.sample("labels", LinearChainCRF(unary[index], torch.eye(3).double()), obs=labels[index])

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["labels"]["log_prob"].shape == (10,)


def test_a_prior_over_labels_in_a_plate() -> None:
    crf = LinearChainCRF(torch.zeros(4, 2), 3 * torch.eye(2))

    def model() -> Tensor:
        with pyro.plate("sequence", 500):
            return pyro.sample("labels", crf)

    labels = model()
    assert labels.shape == (500, 4)
    assert len(labels.unique(dim=0)) > 2


@pytest.mark.parametrize("kind", ["tree", "partial", "long chain"])
def test_the_posterior_of_scores_by_batched_nuts(kind: str) -> None:
    """Against quadrature: one score is sampled, and its posterior is enumerated on a grid."""
    unary, labels = data()
    steps = 4
    if kind == "long chain":
        unary, labels, steps = randn(6, 3, 30, 8), torch.randint(8, (3, 30)), 30
    observed = randn(7, *labels.shape) > 0
    states = unary.shape[-1]

    def log_likelihood(strength: Tensor) -> Tensor:
        pairwise = strength * torch.eye(states, dtype=torch.float64)
        if kind == "tree":
            return TreeCRF(unary, pairwise, Forest.from_parents([-1, 0, 0, 1])).log_prob(labels)
        crf = LinearChainCRF(unary, pairwise)
        return crf.log_prob_partial(labels, observed) if kind == "partial" else crf.log_prob(labels)

    def model() -> None:
        strength = pyro.sample("strength", dist.Normal(torch.zeros((), dtype=torch.float64), 2.0))
        pairwise = strength * torch.eye(states, dtype=torch.float64)
        with pyro.plate("sequence", len(labels)):
            if kind == "tree":
                pyro.sample("labels", TreeCRF(unary, pairwise, [-1, 0, 0, 1]), obs=labels)
            elif kind == "partial":
                pyro.factor("labels", LinearChainCRF(unary, pairwise).log_prob_partial(labels, observed))
            else:
                pyro.sample("labels", LinearChainCRF(unary, pairwise), obs=labels)

    assert labels.shape[-1] == steps
    grid = torch.linspace(-4, 4, 401, dtype=torch.float64)
    logs = torch.stack([log_likelihood(s).sum() + dist.Normal(0.0, 2.0).log_prob(s) for s in grid])
    weights = logs.softmax(0)
    mean = (weights * grid).sum()
    sd = (weights * (grid - mean).square()).sum().sqrt()
    mcmc = MCMC(NUTS(model), num_samples=100, warmup_steps=60, num_chains=8, compile=False)
    mcmc.run()
    draws = mcmc.get_samples()["strength"]
    assert abs(float((draws.mean() - mean) / sd)) < 4 / 200**0.5
    assert abs(float(draws.std() / sd) - 1) < 4 / (2 * 200) ** 0.5


@parametrize(CASES)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_as_a_graph_it_is_the_same(case: Case, batch: tuple[int, ...]) -> None:
    crf = case.make(*parameters(*(len(LENGTHS),) if case.padded else batch))
    graph = crf.graph  # type: ignore[attr-defined]
    torch.testing.assert_close(graph.log_partition(), crf.log_partition())
    draws = crf.sample((4,))
    torch.testing.assert_close(-graph(draws), crf.score(draws))
    inside = torch.ones(4, dtype=torch.bool) if not case.padded else torch.arange(4) < LENGTHS[:, None]
    torch.testing.assert_close(graph.marginals()["z"] * inside.unsqueeze(-1), crf.marginals)
