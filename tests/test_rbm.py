"""Restricted Boltzmann machines against enumeration, and their Gibbs steps by invariance."""

import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import randn
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pyro_ebm import MCMC, RBM, EnergyDistribution, EnergyShapeError, Gibbs, TreewidthError, belief_propagation
from pyro_ebm._core.protocols import HasAnnealingPath, HasGibbsStep, HasLogPartition, HasReference

DATA = Path(__file__).parents[2] / "shared" / "data" / "exact_lattice"
has_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the reference answers in ../shared/data/exact_lattice")


def states(size: int) -> Tensor:
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * size).reshape(-1, size)


def machine(num_visible: int = 5, num_hidden: int = 3, *batch: int, scale: float = 1.0, seed: int = 0) -> RBM:
    """A machine with everything at random, offsets too."""
    return RBM.from_tensors(
        nn.Parameter(scale * randn(seed, *batch, num_visible, num_hidden)),
        nn.Parameter(randn(seed + 1, *batch, num_visible)),
        nn.Parameter(randn(seed + 2, *batch, num_hidden)),
        visible_offset=randn(seed + 3, *batch, num_visible).sigmoid(),
        hidden_offset=randn(seed + 4, *batch, num_hidden).sigmoid(),
    )


def probabilities(rbm: RBM) -> Tensor:
    """Of all visible states, by the definition of the joint energy with its offsets."""
    return (-rbm(states(rbm.event_shape[0]))).softmax(0).detach()


def exact_draws(rbm: RBM, num: int) -> Tensor:
    return states(rbm.event_shape[0])[torch.multinomial(probabilities(rbm), num, replacement=True)]


# The energy


def test_the_free_energy_sums_the_hidden_units_out() -> None:
    rbm, v, h = machine(), states(5), states(3)
    joint = rbm.joint_energy(v.unsqueeze(1), h)
    torch.testing.assert_close(rbm(v), -(-joint).logsumexp(1))
    torch.testing.assert_close(rbm.log_partition(), (-joint).flatten().logsumexp(0))
    torch.testing.assert_close(rbm.hidden_probabilities(v), (-joint).softmax(1) @ h)
    torch.testing.assert_close(rbm.visible_probabilities(h), (-joint).softmax(0).mT @ v)
    torch.testing.assert_close(rbm.reconstruct(v), rbm.visible_probabilities(rbm.hidden_probabilities(v)))


def test_the_joint_energy_is_the_centred_one_up_to_a_constant() -> None:
    rbm, v, h = machine(), states(5).unsqueeze(1), states(3)
    dv, dh = v - rbm.visible_offset, h - rbm.hidden_offset
    centred = -((dv @ rbm.weight) * dh).sum(-1) - dv @ rbm.visible_bias - dh @ rbm.hidden_bias
    difference = rbm.joint_energy(v, h) - centred
    torch.testing.assert_close(difference, difference[0, 0].expand_as(difference))


def test_a_batch_is_a_stack_of_machines() -> None:
    rbm = machine(5, 3, 2, 4)
    assert rbm.log_partition().shape == rbm.batch_shape == (2, 4)
    v = torch.randint(2, (7, 2, 4, 5)).double()
    for i in range(2):
        for j in range(4):
            one = machine()
            one.load_state_dict({name: each[i, j] for name, each in rbm.state_dict().items()})
            torch.testing.assert_close(one.log_partition(), rbm.log_partition()[i, j])
            torch.testing.assert_close(one(v[:, i, j]), rbm(v)[:, i, j])
            torch.testing.assert_close(one.hidden_probabilities(v[:, i, j]), rbm.hidden_probabilities(v)[:, i, j])
    assert rbm.gibbs_step(v).shape == v.shape
    assert rbm.reference().batch_shape == (2, 4)
    assert rbm.graph().batch_shape == (2, 4)


@pytest.mark.usefixtures("_no_checks")
def test_log_z_under_vmap_over_parameters() -> None:
    one, many = machine(), machine(5, 3, 6)
    stacked = dict(many.state_dict())
    log_z = vmap(lambda state: functional_call(LogZ(one), {f"rbm.{k}": s for k, s in state.items()}, ()))(stacked)
    torch.testing.assert_close(log_z, many.log_partition())


class LogZ(nn.Module):
    def __init__(self, rbm: RBM) -> None:
        super().__init__()
        self.rbm = rbm

    def forward(self) -> Tensor:
        return self.rbm.log_partition()


@pytest.fixture
def _no_checks():
    enabled = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    yield
    torch.distributions.Distribution.set_default_validate_args(enabled)


# Log Z


@has_data
@pytest.mark.parametrize("name", ["rbm_tiny", "rbm_small", "rbm_mnistlike", "rbm_pgmax_mnist_top18"])
def test_log_z_of_the_reference_machines(name: str) -> None:
    data = np.load(DATA / f"{name}.npz")
    weight, visible, hidden = (torch.from_numpy(data[key]).double() for key in ("W", "bv", "bh"))
    log_z = RBM.from_tensors(weight.mT, visible, hidden).log_partition()
    assert math.isclose(log_z.item(), data["logZ"].item(), rel_tol=1e-8)
    if weight.numel() < 1000:  # the smaller layer may be either
        torch.testing.assert_close(RBM.from_tensors(weight, hidden, visible).log_partition(), log_z)


def test_log_z_block_by_block_has_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    rbm = machine(9, 6, 2)
    inputs = list(rbm.parameters())
    whole = rbm.log_partition()
    gradients = torch.autograd.grad(whole.sum(), inputs, create_graph=True)
    curvature = torch.autograd.grad(gradients[0].square().sum(), inputs)
    monkeypatch.setattr("pyro_ebm.models.two_layers._BLOCK", 100)
    with torch.no_grad():
        torch.testing.assert_close(rbm.log_partition(), whole)
    parts = rbm.log_partition()
    torch.testing.assert_close(parts, whole)
    again = torch.autograd.grad(parts.sum(), inputs, create_graph=True)
    torch.testing.assert_close(again, gradients)
    torch.testing.assert_close(torch.autograd.grad(again[0].square().sum(), inputs), curvature)


def test_the_gradient_of_log_z_is_the_mean_of_the_energys() -> None:
    rbm = machine()
    rbm.log_partition().backward()
    got = [p.grad.clone() for p in rbm.parameters()]
    expected = torch.autograd.grad(-(probabilities(rbm) * rbm(states(5))).sum(), list(rbm.parameters()))
    torch.testing.assert_close(got, list(expected))


def test_large_layers_are_refused_with_the_alternatives() -> None:
    with pytest.raises(TreewidthError, match=r"at most 25 units.*annealed importance sampling"):
        RBM(30, 26).log_partition()


def test_a_distribution_with_log_z_is_normalised() -> None:
    rbm = machine()
    p = EnergyDistribution(rbm, log_normalizer=rbm.log_partition())
    assert p.is_normalized
    torch.testing.assert_close(p.log_prob(p.enumerate_support().double()).logsumexp(0), torch.zeros(()).double())


# The graph


def test_the_graph_is_the_same_machine() -> None:
    rbm, v, h = machine(), states(5).unsqueeze(1).expand(-1, 8, -1), states(3).expand(32, -1, -1)
    graph = rbm.graph()
    torch.testing.assert_close(graph({"v": v, "h": h}), rbm.joint_energy(v, h))
    torch.testing.assert_close(graph.log_partition(), rbm.log_partition())
    means = graph.marginals().mean("v")
    torch.testing.assert_close(means, probabilities(rbm) @ states(5))
    weak = machine(scale=0.1)
    approximate = belief_propagation(weak.graph())
    torch.testing.assert_close(approximate.log_partition, weak.log_partition(), rtol=1e-3, atol=0)


def test_gibbs_runs_on_the_graph() -> None:
    rbm = machine()
    mcmc = MCMC(Gibbs(rbm.graph()), num_samples=50, warmup_steps=20, num_chains=200, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["v"].double()
    of_chains = draws.mean(1)
    error = of_chains.std(0) / math.sqrt(200)
    assert bool(((of_chains.mean(0) - probabilities(rbm) @ states(5)).abs() < 4.5 * error).all())


# Gibbs steps


def test_a_gibbs_step_leaves_the_density_invariant() -> None:
    rbm, num = machine(8, 4), 10_000
    v = rbm.gibbs_step(exact_draws(rbm, num), num_steps=3)
    all_states, p = states(8), probabilities(rbm)
    for function in (lambda x: x, lambda x: (x[:, :, None] * x[:, None, :]).flatten(1)):
        expected = p @ function(all_states)
        deviation = (p @ function(all_states).square() - expected.square()).clamp(min=1e-12).sqrt()
        z = (function(v).mean(0) - expected) * math.sqrt(num) / deviation
        assert z.abs().max() < 4.5  # of 72


def test_a_gibbs_step_by_chi_squared() -> None:
    """Joint states before and after against the transition matrix."""
    rbm, num = machine(3, 2), 20_000
    p, v, h = probabilities(rbm), states(3), states(2)
    joint = -rbm.joint_energy(v.unsqueeze(1), h).detach()
    transition = joint.softmax(1) @ joint.softmax(0).mT
    torch.testing.assert_close(p @ transition, p)
    places = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    before = exact_draws(rbm, num)
    after = rbm.gibbs_step(before, torch.Generator().manual_seed(0))
    pairs = (8 * (before @ places) + after @ places).long()
    observed, expected = pairs.bincount(minlength=64).double(), num * (p.unsqueeze(1) * transition).flatten()
    assert ((observed - expected).square() / expected).sum() < 113.5  # 63 degrees of freedom, 1e-4


def test_gibbs_steps_at_temperatures_of_their_own() -> None:
    rbm, num = machine(), 20_000
    beta = torch.tensor([0.3, 1.0], dtype=torch.float64).expand(num, 2)
    v = torch.randint(2, (num, 2, 5)).double()
    v = rbm.gibbs_step(v, num_steps=30, inverse_temperature=beta)
    joint = rbm.joint_energy(states(5).unsqueeze(1), states(3)).detach()
    for k, each in enumerate((0.3, 1.0)):
        mean = (-each * joint).logsumexp(1).softmax(0) @ states(5)
        error = (mean * (1 - mean) / num).sqrt()
        assert bool(((v[:, k].mean(0) - mean).abs() < 4.5 * error).all())


def test_draws_of_units_and_their_generator() -> None:
    rbm = machine()
    v, h = states(5)[[3, 20]].expand(20_000, 2, 5), states(3)[[1, 6]].expand(20_000, 2, 3)
    for draws, mean in (
        (rbm.sample_hidden(v), rbm.hidden_probabilities(v[0])),
        (rbm.sample_visible(h), rbm.visible_probabilities(h[0])),
    ):
        assert not draws.requires_grad
        assert bool(((draws.mean(0) - mean).abs() < 4.5 * (mean * (1 - mean) / 20_000).sqrt()).all())
    one, other = (rbm.gibbs_step(v, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, rbm.gibbs_step(v, torch.Generator().manual_seed(2)))


# Centring


def centred_gradients(rbm: RBM, data: Tensor) -> list[Tensor]:
    """Those of the mean log-likelihood, by Melchior and others' formula."""
    all_states, p = states(rbm.event_shape[0]), probabilities(rbm)

    def expectations(v: Tensor, weights: Tensor) -> list[Tensor]:
        h = rbm.hidden_probabilities(v).detach()
        dv, dh = v - rbm.visible_offset, h - rbm.hidden_offset
        return [torch.einsum("n,ni,nj->ij", weights, dv, dh), weights @ dv, weights @ dh]

    uniform = torch.full((len(data),), 1 / len(data), dtype=torch.float64)
    return [a - b for a, b in zip(expectations(data, uniform), expectations(all_states, p), strict=True)]


def test_autograd_gives_the_centred_gradient() -> None:
    rbm, data = machine(), states(5)[[1, 4, 4, 30]]
    (-rbm(data).mean() - rbm.log_partition()).backward()
    torch.testing.assert_close([p.grad for p in rbm.parameters()], centred_gradients(rbm, data))


def test_recentring_changes_no_energy() -> None:
    rbm, v = machine(5, 3, 2), torch.randint(2, (50, 2, 5)).double()
    energies, log_z, weight = rbm(v), rbm.log_partition(), rbm.weight.detach().clone()
    identities = [id(p) for p in rbm.parameters()]
    rbm.recenter(torch.full((2, 5), 0.9, dtype=torch.float64), torch.full((2, 3), 0.2, dtype=torch.float64))
    rbm.recenter(hidden_means=torch.full((2, 3), 0.3, dtype=torch.float64))
    torch.testing.assert_close(rbm(v), energies)
    torch.testing.assert_close(rbm.log_partition(), log_z)
    assert torch.equal(rbm.weight, weight)
    assert identities == [id(p) for p in rbm.parameters()]  # an optimiser still holds them
    rbm.update_offsets(v, 1.0)
    torch.testing.assert_close(rbm.visible_offset, v.mean(0))
    torch.testing.assert_close(rbm.hidden_offset, rbm.hidden_probabilities(v).mean(0).detach())
    before = rbm.visible_offset.clone()
    rbm.update_offsets(torch.ones(4, 2, 5), 0.25)
    torch.testing.assert_close(rbm.visible_offset, 0.75 * before + 0.25)
    torch.testing.assert_close(rbm(v), energies)


def test_recentring_a_machine_of_plain_tensors_leaves_them_alone() -> None:
    weight, visible, hidden = randn(0, 4, 2), randn(1, 4), randn(2, 2)
    kept = visible.clone()
    rbm = RBM.from_tensors(weight, visible, hidden)
    energies = rbm(states(4))
    rbm.recenter(torch.full((4,), 0.5), torch.full((2,), 0.5))
    torch.testing.assert_close(rbm(states(4)), energies)
    assert torch.equal(visible, kept)
    textbook = -states(4) @ visible - (1 + (hidden + states(4) @ weight).exp()).log().sum(-1)
    torch.testing.assert_close(energies, textbook)


# Construction


def test_the_first_machine_is_nearly_the_base_rates() -> None:
    means = torch.tensor([0.0, 0.1, 0.5, 1.0])
    rbm = RBM(4, 3, means=means, scale=0.0)
    expected = means.clamp(1e-3, 1 - 1e-3)
    assert torch.equal(rbm.visible_offset, means)
    torch.testing.assert_close(rbm.reference().mean, expected)
    torch.testing.assert_close(probabilities(rbm.double()).float() @ states(4).float(), expected)
    one, other = (RBM(4, 3, generator=torch.Generator().manual_seed(0)).weight for _ in range(2))
    assert torch.equal(one, other)
    assert [name for name, _ in rbm.named_parameters()] == ["weight", "visible_bias", "hidden_bias"]
    batch = RBM(4, 3, means=means, batch_shape=(2,))
    assert batch.weight.shape == (2, 4, 3)
    assert batch(torch.zeros(7, 2, 4)).shape == (7, 2)


def test_saved_copied_and_in_another_precision() -> None:
    rbm, v = machine(), states(5)
    for again in (pickle.loads(pickle.dumps(rbm)), copy.deepcopy(rbm)):
        assert torch.equal(again(v), rbm(v))
    loaded = RBM(5, 3).double()
    loaded.load_state_dict(rbm.state_dict())
    assert torch.equal(loaded(v), rbm(v))
    single = copy.deepcopy(rbm).float()
    for each in (single(v), single(v.long()), single(v.bool()), single.gibbs_step(v.bool()), single.log_partition()):
        assert each.dtype == torch.float32
    torch.testing.assert_close(single(v).double(), rbm(v), rtol=1e-5, atol=1e-5)


def test_protocols() -> None:
    rbm = machine()
    for protocol in (HasGibbsStep, HasReference, HasAnnealingPath, HasLogPartition):
        assert isinstance(rbm, protocol)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RBM(0, 3), ValueError, "at least 1"),
        (lambda: RBM(3, 2, means=torch.tensor([0.0, 1.0, 2.0])), ValueError, "above 1"),
        (lambda: RBM(3, 2, means=torch.zeros(2)), EnergyShapeError, "data.mean"),
        (lambda: RBM.from_tensors(torch.zeros(3), torch.zeros(3), torch.zeros(2)), EnergyShapeError, "V, H"),
        (lambda: RBM.from_tensors(torch.zeros(2, 3), torch.zeros(3), torch.zeros(2)), EnergyShapeError, "transpose"),
        (lambda: machine()(torch.zeros(4)), EnergyShapeError, "event shape"),
        (lambda: machine().update_offsets(states(5), 2.0), ValueError, "from 0 to 1"),
    ],
)
def test_errors(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()
