"""A classifier as a density: labels and inputs by one network, and the loss of both."""

import pytest
import torch
from torch import Generator, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from pyro_ebm import (
    EnergyDistribution,
    EnergyShapeError,
    Exact,
    JointEnergy,
    NegativeLogLikelihood,
    NoiseContrastive,
    QuadraticEnergy,
    SemiSupervised,
    fit,
)


def classifier(seed: int = 0) -> JointEnergy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return JointEnergy(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)), (2,), 3)


def test_labels_are_conditioned_by_bayes() -> None:
    joint, x = classifier(), torch.randn(5, 4, 2)
    log_joint = torch.stack([-joint(x, torch.tensor(label)) for label in range(3)], -1)
    torch.testing.assert_close(joint.label_log_prob(x), log_joint - log_joint.logsumexp(-1, keepdim=True))
    torch.testing.assert_close(joint.marginal()(x), -log_joint.logsumexp(-1))
    assert torch.equal(joint.predict(x), log_joint.argmax(-1))
    labels = torch.tensor([2, 0, 1, 2])
    torch.testing.assert_close(joint.given(labels)(x), joint(x, labels))
    torch.testing.assert_close(joint.given(labels)(x[:, 0].unsqueeze(1))[:, 1], joint(x[:, 0], torch.tensor(0)))


def test_with_all_labels_it_is_the_likelihood_of_pairs() -> None:
    """Of `p(x, y) = base(x) exp(f(x)[y]) / Z`, with Z by quadrature."""
    joint, base = classifier(), Independent(Normal(torch.zeros(2), 1.0), 1)
    x, y = torch.randn(20, 2), torch.randint(3, (20,))
    distribution = EnergyDistribution(joint.marginal(), base, log_normalizer=Exact())
    loss, report = SemiSupervised(NegativeLogLikelihood())(distribution, (x, y))
    axis = torch.linspace(-8, 8, 321)
    grid = torch.cartesian_prod(axis, axis)
    log_z = torch.stack([base.log_prob(grid) - joint(grid, torch.tensor(k)) for k in range(3)]).logsumexp((0, 1))
    log_z = log_z + 2 * (axis[1] - axis[0]).log()
    pairs = base.log_prob(x) - joint(x, y) - log_z
    torch.testing.assert_close(loss, -pairs.mean(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(report["label_accuracy"], (joint.predict(x) == y).float().mean())


def test_the_unlabelled_count_for_the_inputs_alone() -> None:
    distribution = EnergyDistribution(
        classifier().marginal(), Independent(Normal(torch.zeros(2), 1.0), 1), log_normalizer=Exact()
    )
    x, y = torch.randn(20, 2), torch.full((20,), -1)
    inputs, _ = NegativeLogLikelihood()(distribution, x)
    loss, report = SemiSupervised(NegativeLogLikelihood())(distribution, (x, y))
    torch.testing.assert_close(loss, inputs)
    assert report["cross_entropy"] == 0
    y[:5] = 1
    loss, _ = SemiSupervised(NegativeLogLikelihood(), weight=0.5)(distribution, (x, y))
    cross = -classifier().label_log_prob(x[:5])[:, 1].mean()
    torch.testing.assert_close(loss, inputs + 0.5 * cross)


def test_inputs_without_labels_teach_labels() -> None:
    """Two well separated clusters with one label each, and a straight boundary that one label leaves open."""
    generator = Generator().manual_seed(0)
    label = torch.randint(2, (2000,), generator=generator)
    x = torch.randn(2000, 2, generator=generator) * torch.tensor([0.3, 2.0])
    x[:, 0] += 2.0 * label - 1
    known = torch.full((2000,), -1)
    for each in (0, 1):
        known[(label == each).nonzero()[:3, 0]] = each
    torch.manual_seed(0)
    joint = JointEnergy(nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 2)), (2,), 2)
    base = MultivariateNormal(x.mean(0), x.T.cov())
    fit(
        EnergyDistribution(joint.marginal(), base),
        (x, known),
        objective=SemiSupervised(NoiseContrastive(base)),
        num_steps=350,
        batch_size=500,
        learning_rate=2e-2,
        progress_bar=False,
        generator=generator,
    )
    assert float((joint.predict(x) == label).float().mean()) > 0.98


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="num_classes"):
        JointEnergy(nn.Linear(2, 1), (2,), 1)
    with pytest.raises(EnergyShapeError, match="4 outputs"):
        JointEnergy(nn.Linear(2, 3), (2,), 4).predict(torch.zeros(5, 2))
    objective, x = SemiSupervised(NegativeLogLikelihood()), torch.randn(5, 2)
    with pytest.raises(TypeError, match="pair"):
        objective(EnergyDistribution(classifier().marginal(), log_normalizer=Exact()), x)
    with pytest.raises(TypeError, match="label_log_prob"):
        objective(EnergyDistribution(QuadraticEnergy(torch.eye(2))), (x, torch.zeros(5)))
    with pytest.raises(ValueError, match="weight"):
        SemiSupervised(NegativeLogLikelihood(), weight=0.0)
