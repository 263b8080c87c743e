"""Training: it learns what it should, resumes bit for bit, follows its own generator, and each part is public."""

import copy
import itertools
import os
import signal
from pathlib import Path

import matplotlib
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Generator, Tensor, nn
from torch.distributions import constraints
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyro_ebm import (
    DenoisingScoreMatching,
    EnergyDistribution,
    EnergyShapeError,
    EnergySupportError,
    Exact,
    NegativeLogLikelihood,
    NoiseContrastive,
    PersistentWalkers,
    QuadraticEnergy,
    Renewal,
    ScoreMatching,
    StandardizedEnergy,
    StepTooLargeError,
    Training,
    TrainingWarning,
    energy,
    fit,
    fitted_base,
    plot_history,
    spin,
    tilted,
)

matplotlib.use("Agg")


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def network(inputs: int = 2, *, seed: int = 0, outputs: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, 16), nn.SiLU(), nn.Linear(16, outputs))


def two_modes(count: int, seed: int = 0) -> Tensor:
    """Two Gaussians of scale 0.3 at (±1, 0) times 10, shifted by 100: data in units of their own."""
    generator = seeded(seed)
    sign = torch.randint(2, (count,), generator=generator) * 2.0 - 1
    values = 0.3 * torch.randn(count, 2, generator=generator)
    values[:, 0] += sign
    return 10 * values + 100


def same(first: Training, second: Training) -> bool:
    """Whether two trainings are in the same state, bit for bit."""

    def flat(node: object) -> list[object]:
        if isinstance(node, dict):
            return list(itertools.chain(*[flat(node[key]) for key in sorted(node, key=str)]))
        return list(itertools.chain(*map(flat, node))) if isinstance(node, (list, tuple)) else [node]

    pairs = zip(flat(first.state_dict()), flat(second.state_dict()), strict=True)
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) if isinstance(a, Tensor) else _equal(a, b) for a, b in pairs)


def _equal(a: object, b: object) -> bool:
    return a == b or (a != a and b != b)


# What is learned


def test_two_lines_learn_two_modes() -> None:
    """By the exact density of the mixture: a Gaussian is 0.53 nats off."""
    net, data = network(seed=1), two_modes(4000)
    learned = fit(
        net,
        data,
        num_steps=300,
        batch_size=256,
        num_walkers=300,
        learning_rate=5e-2,
        progress_bar=False,
        generator=seeded(0),
    )
    test = two_modes(2000, seed=1)
    parts = dist.Normal(torch.tensor([[90.0, 100.0], [110.0, 100.0]]), 3.0).to_event(1)
    truth = (parts.log_prob(test.unsqueeze(1)).logsumexp(-1) - torch.tensor(2.0).log()).mean()
    exact = EnergyDistribution(
        learned.distribution.energy, learned.distribution.base, log_normalizer=Exact(center=100.0, scale=10.0)
    )
    with torch.no_grad():
        assert float(truth - exact.log_prob(test).mean()) < 0.05
        true_log_z = float(exact.log_prob(test[0]) - learned.distribution.unnormalized_log_prob(test[0]))
    found = learned.log_partition
    assert found is not None
    assert abs(float(found.value) + true_log_z) < 4 * float(found.standard_error) + 0.01
    assert {"loss", "energy_gap", "ess", "log_partition", "log_partition_error"} <= learned.history.keys()
    assert all(len(values) == 300 for values in learned.history.values())
    assert len(learned.plot()) == len(learned.history)


@pytest.mark.parametrize("states", [2, 3])
def test_finite_supports(states: int) -> None:
    """By the frequencies of all pairs, which are far from independent: two equal elements."""
    first = torch.randint(states, (3000,), generator=seeded(0))
    other = torch.randint(states, (3000,), generator=seeded(1))
    data = torch.stack([first, torch.where(torch.rand(3000, generator=seeded(2)) < 0.9, first, other)], -1).float()
    support = constraints.boolean if states == 2 else constraints.integer_interval(0, states - 1)
    learned = fit(
        network(),
        data,
        support=support,
        num_steps=200,
        batch_size=256,
        num_walkers=500,
        learning_rate=3e-2,
        progress_bar=False,
        generator=seeded(3),
    ).distribution
    exact = EnergyDistribution(learned.energy, learned.base, log_normalizer=Exact())
    joint = torch.cartesian_prod(torch.arange(float(states)), torch.arange(float(states)))
    frequency = (data.unsqueeze(1) == joint).all(-1).float().mean(0)
    with torch.no_grad():
        assert float((exact.log_prob(joint).exp() - frequency).abs().max()) < 4 * (0.5 * 0.5 / 500) ** 0.5


def test_spins_have_a_flat_base() -> None:
    data = torch.where(torch.rand(500, 3, generator=seeded(0)) < 0.8, 1.0, -1.0)
    learned = fit(network(3), data, support=spin, num_steps=5, num_walkers=50, progress_bar=False)
    assert learned.distribution.base is None
    assert learned.distribution.sample((7,)).abs().eq(1).all()


def test_an_energy_is_trained_as_it_is() -> None:
    """Score matching of a Gaussian is solved by the inverse of the data's second moments."""
    data = torch.randn(2000, 2, generator=seeded(0)) @ torch.tensor([[1.0, 0.5], [0.0, 0.7]])
    precision = nn.Parameter(torch.eye(2))
    learned = fit(
        QuadraticEnergy(precision),
        data,
        objective=ScoreMatching(),
        num_steps=300,
        batch_size=2000,
        learning_rate=0.05,
        progress_bar=False,
    )
    right = (data.mT @ data / 2000).inverse()
    found = (precision + precision.mT).detach() / 2
    torch.testing.assert_close(found, right, atol=0.02, rtol=0.02)
    assert learned.log_partition is None


def test_what_an_objective_learns_is_trained() -> None:
    """Log Z by noise-contrastive estimation, of an energy whose log Z is known, in its own optimum."""
    data = 2 * torch.randn(4000, 1, generator=seeded(0))
    objective = NoiseContrastive()
    precision = nn.Parameter(torch.tensor([[1.0]]))
    model = EnergyDistribution(QuadraticEnergy(precision))
    fit(
        model,
        data,
        objective=objective,
        num_steps=400,
        batch_size=256,
        learning_rate=0.02,
        progress_bar=False,
        generator=seeded(1),
    )
    log_z = 0.5 * torch.log(2 * torch.pi / precision.detach().squeeze())
    assert float(objective.log_partition.detach()) == pytest.approx(float(log_z), abs=0.1)
    assert objective.noise.mean is not None
    # The noise is fitted to all of the data, not to the first minibatch.
    torch.testing.assert_close(objective.noise.mean, data.mean(0), atol=1e-4, rtol=1e-4)


def test_the_loop_by_hand_is_the_same() -> None:
    data, net = two_modes(500), network()
    by_fit = fit(copy.deepcopy(net), data, num_steps=60, num_walkers=64, progress_bar=False, generator=seeded(5))
    walkers = PersistentWalkers(64, num_steps=1, num_trackers=8)
    distribution = tilted(net, data, log_normalizer=walkers)
    training = Training(
        distribution,
        NegativeLogLikelihood(),
        data,
        num_steps=60,
        learning_rate=1e-2,
        averaged_share=0.25,
        generator=seeded(5),
    )
    renewal = Renewal()
    for _ in range(training.num_steps):
        training.step()
        renewal(training)
    assert same(training, by_fit.training) is False  # whose parameters are the averages by now
    assert training.history["loss"] == by_fit.history["loss"]
    training.use_average()
    x = data[:20]
    torch.testing.assert_close(
        distribution.unnormalized_log_prob(x), by_fit.distribution.unnormalized_log_prob(x), rtol=1e-5, atol=1e-5
    )


# What is random


class Noisy(nn.Module):
    """A network with randomness of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.2), nn.SiLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def made(data: object, *, num_steps: int = 12) -> Training:
    net = network() if not isinstance(data, DataLoader) else network(seed=3)
    distribution = tilted(net, two_modes(400), log_normalizer=PersistentWalkers(40))
    return Training(
        distribution, NegativeLogLikelihood(), data, num_steps=num_steps, batch_size=64, generator=seeded(0)
    )


class Rows(Dataset[Tensor]):
    """A dataset that is random itself."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Tensor:
        return two_modes(100)[index] + 0.1 * torch.randn(2)


SOURCES = {
    "tensor": lambda: two_modes(150),
    "dataset": Rows,
    "loader": lambda: DataLoader(TensorDataset(two_modes(150)), batch_size=32, shuffle=True),
    "loader with a generator": lambda: DataLoader(two_modes(150), batch_size=32, shuffle=True, generator=seeded(9)),
}


def test_ctrl_c_loses_nothing(tmp_path: Path) -> None:
    def interrupt(training: Training) -> None:
        if training.num_done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    def made() -> Training:
        model = EnergyDistribution(QuadraticEnergy(nn.Parameter(torch.eye(2))))
        return Training(model, ScoreMatching(), two_modes(200), num_steps=9, batch_size=64, generator=seeded(0))

    path, handler = tmp_path / "state.pt", signal.getsignal(signal.SIGINT)
    first = made()
    with pytest.warns(TrainingWarning, match="interrupted after 5 of 9 steps"):
        first.run(callbacks=[interrupt], save_to=path, progress_bar=False)
    assert first.num_done == 5
    assert signal.getsignal(signal.SIGINT) is handler
    resumed, whole = made(), made()
    resumed.load(path)
    for each in (resumed, whole):
        each.run(progress_bar=False)
    assert same(resumed, whole)


@pytest.mark.parametrize("source", SOURCES)
def test_an_interrupted_run_goes_on_bit_for_bit(source: str, tmp_path) -> None:
    straight = made(SOURCES[source]())
    straight.run(progress_bar=False)

    def interrupt(training: Training) -> None:
        if training.num_done == 7:
            raise KeyboardInterrupt

    interrupted = made(SOURCES[source]())
    with pytest.raises(KeyboardInterrupt):
        interrupted.run(callbacks=[interrupt], save_to=tmp_path / "state.pt", save_every=4, progress_bar=False)
    torch.manual_seed(999)  # whatever happens to the global generator
    resumed = made(SOURCES[source]())
    resumed.load(tmp_path / "state.pt")
    assert resumed.num_done == 4
    resumed.run(progress_bar=False)
    assert same(straight, resumed)
    other = made(SOURCES[source]())
    assert not same(straight, other)


def test_what_an_objective_has_learned_is_resumed(tmp_path) -> None:
    def made() -> Training:
        model = EnergyDistribution(QuadraticEnergy(nn.Parameter(torch.eye(2))))
        return Training(model, NoiseContrastive(), two_modes(200), num_steps=9, batch_size=64, generator=seeded(0))

    straight = made()
    straight.run(progress_bar=False)
    part = made()
    part.run(callbacks=[lambda training: training.num_done == 5], save_to=tmp_path / "state.pt", progress_bar=False)
    resumed = made()
    resumed.load(tmp_path / "state.pt")
    resumed.run(progress_bar=False)
    assert same(straight, resumed)
    assert float(straight.objective.log_partition.detach()) != 0


def test_a_family_of_noise_levels_is_trained() -> None:
    class Smoothed(nn.Module):
        """Gaussians, the wider the more noise."""

        def __init__(self) -> None:
            super().__init__()
            self.log_variance = nn.Parameter(torch.tensor(1.0))

        def forward(self, sigma: Tensor) -> EnergyDistribution:
            variance = self.log_variance.exp() + sigma**2
            return EnergyDistribution(energy(lambda x: 0.5 * (x.square() / variance).sum(-1), event_shape=(2,)))

    family, data = Smoothed(), 2 * torch.randn(4000, 2, generator=seeded(0))
    training = Training(
        family, DenoisingScoreMatching([0.5, 1.0]), data, num_steps=300, learning_rate=0.02, generator=seeded(1)
    )
    training.run(progress_bar=False)
    # By the data's own variance; the noise in it leaves an error of 0.02 or so.
    weight = nn.Parameter(torch.zeros(()))
    by_hand = Training(
        lambda sigma: EnergyDistribution(energy(lambda x: weight * x.square().sum(-1), event_shape=(2,))),
        DenoisingScoreMatching([0.5, 1.0]),
        data,
        parameters=[weight],
    )
    by_hand.step()
    assert float(weight.detach()) > 0
    assert float(family.log_variance.detach().exp()) == pytest.approx(float(data.square().mean()), rel=0.1)


def test_fit_resumes(tmp_path) -> None:
    path, data = tmp_path / "state.pt", two_modes(300)

    def run(**options):
        return fit(
            network(),
            data,
            num_steps=9,
            num_walkers=40,
            progress_bar=False,
            generator=seeded(1),
            save_every=4,
            **options,
        )

    def stop(training: Training) -> bool:
        return training.num_done == 6

    whole = run()
    part = run(save_to=path, callbacks=[stop])
    assert part.training.num_done == 6
    with pytest.raises(FileExistsError, match="resume=True"):
        run(save_to=path)
    resumed = run(save_to=path, resume=True)
    assert resumed.history["loss"] == whole.history["loss"]
    assert same(resumed.training, whole.training)
    assert torch.equal(resumed.distribution.log_prob(data).detach(), whole.distribution.log_prob(data).detach())
    assert torch.equal(resumed.log_partition.value, whole.log_partition.value)


def test_a_run_follows_its_generator_alone() -> None:
    def run(global_seed: int, seed: int) -> list[float]:
        net = Noisy()
        net.load_state_dict(copy.deepcopy(state))
        pyro.set_rng_seed(global_seed)
        before = torch.random.get_rng_state()
        history = fit(
            net, two_modes(300), num_steps=6, num_walkers=40, progress_bar=False, generator=seeded(seed)
        ).history
        assert torch.equal(before, torch.random.get_rng_state())
        return history["loss"]

    state = Noisy().state_dict()
    assert run(0, 1) == run(5, 1)
    assert run(0, 1) != run(0, 2)


def test_the_global_seed_is_the_default() -> None:
    def run(seed: int) -> list[float]:
        pyro.set_rng_seed(seed)
        return fit(network(), two_modes(300), num_steps=4, num_walkers=40, progress_bar=False).history["loss"]

    assert run(0) == run(0)
    assert run(0) != run(1)


# The parts of a step


def test_the_learning_rate_warms_up_and_falls() -> None:
    data = torch.randn(50, 1)
    rates = []
    distribution = EnergyDistribution(QuadraticEnergy(nn.Parameter(torch.eye(1))))
    training = Training(distribution, ScoreMatching(), data, num_steps=40, learning_rate=0.1, warmup_steps=10)
    for _ in range(40):
        rates.append(training.current_learning_rate)
        training.step()
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[9] < 0.1
    assert rates[20] == pytest.approx(0.05)
    assert rates[-1] < 0.001


def test_averages_are_means_of_what_was() -> None:
    """With everything in the average, that of the first ten steps or so is nearly a plain mean: between extremes."""
    weight = nn.Parameter(torch.zeros(()))
    distribution = EnergyDistribution(energy(lambda x: 0.5 * x.square() * weight.exp(), event_shape=()))
    distribution.energy.register_parameter("weight", weight)
    training = Training(
        distribution, ScoreMatching(), 0.1 * torch.randn(100), num_steps=30, averaged_share=1.0, learning_rate=0.1
    )
    path = []
    for _ in range(30):
        training.step()
        path.append(float(weight.detach()))
    assert path[-1] > path[0]
    with training.averaged():
        assert path[0] < float(weight.detach()) < path[-1]
    assert float(weight.detach()) == path[-1]
    # By the rule: decay min(1 - 1/30, n / (n + 10)).
    mean = path[0]
    for number, value in enumerate(path[1:], start=1):
        decay = min(1 - 1 / 30, number / (number + 10))
        mean = decay * mean + (1 - decay) * value
    training.use_average()
    assert float(weight.detach()) == pytest.approx(mean, rel=1e-4)


def test_gradients_are_clipped() -> None:
    def first_step(norm: float) -> float:
        precision = nn.Parameter(torch.eye(1))
        training = Training(
            EnergyDistribution(QuadraticEnergy(precision)),
            ScoreMatching(),
            100 * torch.ones(10, 1),
            optimizer=torch.optim.SGD,
            max_gradient_norm=norm,
            learning_rate=1e-3,
            warmup_steps=0,
        )
        report = training.step()
        assert float(report["gradient_norm"]) > 1000
        return float(1 - precision.detach().squeeze())

    assert first_step(2.0) == pytest.approx(2e-3, rel=1e-3)
    assert first_step(4.0) == pytest.approx(4e-3, rel=1e-3)


def test_a_step_too_large_is_halved_once() -> None:
    def raises(allowed: int):
        left = [allowed]

        def objective(distribution, data):
            value = -distribution.log_prob(data).mean()
            moved = float(abs(precision.detach() - 1))
            if moved > 0.05 and left[0]:
                left[0] -= 1
                raise StepTooLargeError("too large")
            return value, {"loss": value.detach()}

        return objective

    for allowed in (1, 2):
        precision = nn.Parameter(torch.ones(()))
        model = EnergyDistribution(energy(lambda x: x.square(), event_shape=()))
        model.energy.register_parameter("precision", precision)
        model.energy.fn = lambda x, p=precision: x.square() * p
        training = Training(
            EnergyDistribution(model.energy, log_normalizer=Exact()),
            raises(allowed),
            torch.ones(10),
            learning_rate=0.2,
            warmup_steps=0,
            num_steps=1000,
        )
        training.step()
        after_one = abs(float(precision.detach()) - 1)
        assert after_one == pytest.approx(0.2, rel=1e-3)
        if allowed == 1:
            with pytest.warns(TrainingWarning, match=r"learning_rate=0\.1"):
                training.step()
            assert training.current_learning_rate == pytest.approx(0.1, rel=1e-3)
            assert training.num_done == 2
        else:
            with pytest.warns(TrainingWarning), pytest.raises(StepTooLargeError):
                training.step()


def test_callbacks_end_a_run() -> None:
    seen = []

    def callback(training: Training) -> bool:
        seen.append(training.num_done)
        return training.num_done == 3

    result = fit(network(), two_modes(100), num_steps=10, num_walkers=20, callbacks=[callback], progress_bar=False)
    assert seen == [1, 2, 3]
    assert result.training.num_done == 3


# Parts


def test_a_standardised_energy() -> None:
    inner = QuadraticEnergy(torch.eye(2))
    outer = StandardizedEnergy(inner, torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))
    x = torch.randn(5, 2)
    torch.testing.assert_close(outer(x), inner((x - torch.tensor([1.0, 2.0])) / torch.tensor([2.0, 4.0])))
    assert set(outer.state_dict()) >= {"location", "scale"}
    with pytest.raises(EnergyShapeError, match="broadcasts"):
        StandardizedEnergy(inner, torch.zeros(3), torch.ones(2))
    with pytest.raises(ValueError, match="positive"):
        StandardizedEnergy(inner, torch.zeros(2), torch.zeros(2))


def test_a_fitted_base() -> None:
    data = torch.randn(1000, 2, generator=seeded(0)) @ torch.tensor([[1.0, 0.5], [0.0, 0.7]]) + 3
    gaussian = fitted_base(data)
    ridge = 1e-3 * torch.eye(2) * data.var(0, correction=0).mean()
    torch.testing.assert_close(gaussian.mean, data.mean(0))
    torch.testing.assert_close(gaussian.covariance_matrix, data.T.cov(correction=0) + ridge, atol=1e-4, rtol=1e-4)
    images = torch.randn(50, 4, 4)
    images[:, 0] = 1.0  # does not vary
    assert fitted_base(images).event_shape == (4, 4)
    assert fitted_base(images).log_prob(images).isfinite().all()
    binary = (torch.rand(998, 3, generator=seeded(1)) < 0.2).float()
    torch.testing.assert_close(fitted_base(binary, constraints.boolean).mean, (binary.sum(0) + 1) / 1000)
    labels = torch.randint(3, (97, 4), generator=seeded(1))
    two = fitted_base(binary, constraints.integer_interval(0, 1))  # whose support is that of the energy
    torch.testing.assert_close(two.base_dist.probs[:, 1], fitted_base(binary, constraints.boolean).mean)
    probs = fitted_base(labels, constraints.integer_interval(0, 2)).base_dist.probs
    torch.testing.assert_close(probs[0], (torch.bincount(labels[:, 0], minlength=3) + 1) / 100)
    assert fitted_base(2 * binary - 1, spin) is None
    with pytest.raises(EnergySupportError, match="Give a base"):
        fitted_base(binary, constraints.positive)
    with pytest.raises(ValueError, match="alike"):
        fitted_base(torch.ones(5, 2))


def test_a_tilt_starts_at_zero() -> None:
    data = two_modes(200)
    model = tilted(network(), data)
    torch.testing.assert_close(model.log_prob(data), model.base.log_prob(data))
    skip = network(outputs=2)
    last = copy.deepcopy(skip[-1].state_dict())

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = skip

        def forward(self, x: Tensor) -> Tensor:
            return (self.net(x) + x).sum(-1)

    tilted(Sum(), data)  # not constant with a last layer of zero, which is then left as it was
    assert torch.equal(skip[-1].weight, last["weight"])


def test_what_is_wrong_is_said() -> None:
    data = torch.randn(20, 2)
    with pytest.raises(ValueError, match="something to train"):
        Training(EnergyDistribution(QuadraticEnergy(torch.eye(2))), ScoreMatching(), data)
    model = EnergyDistribution(QuadraticEnergy(nn.Parameter(torch.eye(2))))
    with pytest.raises(ValueError, match="positive"):
        Training(model, ScoreMatching(), data, num_steps=0)
    with pytest.raises(TypeError, match="DataLoader"):
        Training(model, ScoreMatching(), data.numpy())
    with pytest.raises(ValueError, match="as many"):
        Training(model, ScoreMatching(), (data, data[:3]))
    with pytest.raises(TypeError, match="Wrap a callable"):
        fit(lambda x: x.sum(-1), data)
    first = Training(model, ScoreMatching(), data, num_steps=5)
    with pytest.raises(ValueError, match="num_steps"):
        Training(model, ScoreMatching(), data, num_steps=6).load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="empty"):
        plot_history({})
