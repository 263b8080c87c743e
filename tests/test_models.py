"""Named models against closed forms, transfer matrices and dense algebra."""

import json
import math
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch

from pyro_ebm import ICAR, GaussianMRF, GraphError, Ising, Potts, SpinGlass, TableEnergy

DATA = Path(__file__).parents[2] / "shared" / "data" / "exact_lattice"
has_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the reference answers in ../shared/data/exact_lattice")


def reference(name):
    if not DATA.is_dir():
        return []
    return json.loads((DATA / "lattice_reference.json").read_text())[name]


def double(value):
    return torch.tensor(value, dtype=torch.float64)


@has_data
@pytest.mark.parametrize("case", [c for c in reference("ising_free") if c["L"] <= 12], ids=str)
def test_ising_free(case):
    g = Ising((case["L"],) * 2, double(case["K"]), double(case["h"]) if case["h"] else None)
    assert math.isclose(g.log_partition().item(), case["logZ"], rel_tol=1e-8)


@has_data
@pytest.mark.parametrize("case", [c for c in reference("ising_torus_kaufman") if c["L"] <= 8], ids=str)
def test_ising_torus(case):
    coupling = double(case["K"]).requires_grad_()
    log_z = Ising((case["L"],) * 2, coupling, periodic=True).log_partition()
    (bonds,) = torch.autograd.grad(log_z, coupling, create_graph=True)
    (variance,) = torch.autograd.grad(bonds, coupling)
    assert math.isclose(log_z.item(), case["logZ"], rel_tol=1e-8)
    assert math.isclose(bonds.item() / (2 * case["L"] ** 2), case["mean_bond"], rel_tol=1e-8)
    assert math.isclose(variance.item(), case["var_sum_bonds"], rel_tol=1e-8)


@has_data
@pytest.mark.parametrize("case", [c for c in reference("potts_free") if c["q"] ** c["L"] <= 4**7], ids=str)
def test_potts_free(case):
    g = Potts((case["L"],) * 2, case["q"], double(case["K"]))
    assert math.isclose(g.log_partition().item(), case["logZ"], rel_tol=1e-8)


@has_data
@pytest.mark.parametrize("name", ["spinglass_field10", "spinglass_gauss6", "spinglass_pm10"])
def test_spin_glass(name):
    answer = {key: torch.from_numpy(np.atleast_1d(value)) for key, value in np.load(DATA / f"{name}.npz").items()}
    shape = answer["mean_spin"].shape
    coupling = torch.cat([answer["Jv"].flatten(), answer["Jh"].flatten()]).double()
    g = Ising(shape, coupling, answer["h"].double().flatten())
    torch.testing.assert_close(g.log_partition(), answer["logZ"].squeeze(), rtol=1e-8, atol=0)
    mean = g.marginals().mean("x")
    # The means of the reference are differences of log Z, and good to 3e-8: so spins are clamped to both values too.
    torch.testing.assert_close(mean, answer["mean_spin"], rtol=0, atol=5e-8)
    for at in [(0, 0), (shape[0] - 1, 2), (3, 4)]:
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[at] = True
        up, down = (g.condition(x=(torch.full(shape, s).double(), mask)).log_partition() for s in (1.0, -1.0))
        torch.testing.assert_close(mean[at], torch.tanh((up - down) / 2), rtol=1e-8, atol=0)
    torch.testing.assert_close(-g(g.mode()), answer["max_logp"].squeeze().double(), rtol=1e-8, atol=0)


def test_couplings_go_with_the_edges_of_a_networkx_graph():
    graph = nx.random_regular_graph(3, 10, seed=1)
    coupling, field = torch.randn(15, dtype=torch.float64), torch.randn(10, dtype=torch.float64)
    g = Ising(graph, coupling, field)
    spins = torch.cartesian_prod(*[double([-1.0, 1.0])] * 10)
    numbers = {node: k for k, node in enumerate(graph.nodes)}
    expected = spins @ field
    for weight, (one, other) in zip(coupling, graph.edges, strict=True):
        expected = expected + weight * spins[:, numbers[one]] * spins[:, numbers[other]]
    torch.testing.assert_close(-g(spins), expected)
    torch.testing.assert_close(g.log_partition(), expected.logsumexp(0))


def test_a_learned_coupling_gets_the_gradient_of_log_z():
    coupling = torch.nn.Parameter(double(0.3))
    g = Ising((3, 3), coupling)
    data = g.sample((5,))["x"]
    loss = g(data).mean() + g.log_partition()
    loss.backward()
    pairs = (data[:, 1:] * data[:, :-1]).sum((-1, -2)) + (data[..., 1:] * data[..., :-1]).sum((-1, -2))
    model = torch.autograd.functional.jacobian(lambda k: Ising((3, 3), k).log_partition(), double(0.3))
    torch.testing.assert_close(coupling.grad, model - pairs.mean())


def test_potts_of_two_labels_is_ising():
    field = torch.randn(12, 2, dtype=torch.float64)
    potts = Potts((3, 4), 2, double(0.8), field)
    ising = Ising((3, 4), double(0.4), (field[:, 1] - field[:, 0]) / 2)
    torch.testing.assert_close(potts.marginals()["x"], ising.marginals()["x"])


def test_spin_glass_repeats_by_its_generator():
    one, other = (SpinGlass((4, 4), disorder="sign", generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one.coupling, other.coupling)
    assert set(one.coupling.tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(one.log_partition(), Ising((4, 4), one.coupling).log_partition())
    full = SpinGlass(nx.complete_graph(6), scale=6**-0.5, beta=2.0, field=0.1)
    torch.testing.assert_close(
        full.log_partition(), Ising(nx.complete_graph(6), 2 * full.coupling, 0.2).log_partition()
    )
    with pytest.raises(ValueError, match="disorder"):
        SpinGlass((2, 2), disorder="poisson")


def test_gaussian_mrf_has_the_laplacian_as_precision():
    weights = torch.rand(40, dtype=torch.float64) + 0.1
    graph = nx.grid_2d_graph(5, 5)
    for (one, other), weight in zip(graph.edges, weights.tolist(), strict=True):
        graph[one][other]["weight"] = weight
    g = GaussianMRF(graph, weights, double(0.3), double(0.5))
    precision = torch.from_numpy(nx.laplacian_matrix(graph).toarray()) + 0.3 * torch.eye(25, dtype=torch.float64)
    covariance = torch.linalg.inv(precision)
    torch.testing.assert_close(g.marginals().variance("x"), covariance.diagonal())
    torch.testing.assert_close(g.marginals().mean("x"), covariance.sum(-1) * 0.5)
    batch = GaussianMRF((3, 3), double([0.5, 2.0]).unsqueeze(-1), double(1.0))
    assert batch.log_partition().shape == (2,)


def test_icar_is_the_pseudoinverse_of_the_laplacian():
    graph = nx.connected_watts_strogatz_graph(30, 4, 0.3, seed=0)
    g = ICAR(graph).double()
    inverse = torch.linalg.pinv(torch.from_numpy(nx.laplacian_matrix(graph).toarray()).double(), hermitian=True)
    expected = inverse.diagonal() + 1e-6  # the sum has a variance of its own, (0.001 n)² / n²
    torch.testing.assert_close(g.marginals().variance("x"), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(g.scaling_factor, expected.log().mean().exp(), rtol=1e-6, atol=0)
    islands = ICAR(nx.disjoint_union(nx.path_graph(3), nx.path_graph(2)))
    draws = islands.sample((1000,))["x"]
    assert draws[:, :3].sum(-1).abs().max() < 0.02
    assert draws[:, 3:].sum(-1).abs().max() < 0.02


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Ising((0, 3), 1.0), "positive sizes"),
        (lambda: Ising((), 1.0), "positive sizes"),
        (lambda: Ising(nx.path_graph(3), 1.0, periodic=True), "periodic"),
        (lambda: Ising((3, 3), torch.ones(7)), r"batch shape \(7,\) for 12 scopes"),
        (lambda: Potts((2, 2), 3, 1.0, torch.zeros(2)), "expected the same"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(GraphError, match=message):
        build()


def test_an_element_twice_in_a_scope():
    g = Potts((3,), 2, 1.0)
    with pytest.raises(GraphError, match='element 1 of "x" twice in scope 0'):
        g.factor(TableEnergy(torch.zeros(2, 2)), g["x"][torch.tensor([[1, 1], [0, 1]])])
