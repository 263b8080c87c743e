"""Raveling `{site: tensor}` to one vector and back."""

import pytest
import torch
from cases import randn
from torch import Size
from torch.func import vmap

from pyro_ebm._core.ravel import Raveler

SHAPES = {"scalar": Size([]), "vector": Size([3]), "matrix": Size([2, 4]), "one": Size([1]), "none": Size([0])}
LEADS = [(), (1,), (5,), (4, 5)]


def _sites(lead: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name: randn(i, *lead, *shape) for i, (name, shape) in enumerate(SHAPES.items())}


def test_dim() -> None:
    assert Raveler(SHAPES).dim == 1 + 3 + 8 + 1
    assert Raveler({"scalar": Size([])}).dim == 1
    assert Raveler({}).dim == 0


@pytest.mark.parametrize("lead", LEADS, ids=str)
def test_round_trip(lead: tuple[int, ...]) -> None:
    raveler, sites = Raveler(SHAPES), _sites(lead)
    flat = raveler.ravel(sites)
    assert flat.shape == (*lead, raveler.dim)
    back = raveler.unravel(flat)
    assert list(back) == list(SHAPES)
    for name, value in sites.items():
        assert torch.equal(back[name], value)
    assert torch.equal(raveler.ravel(back), flat)


def test_sites_lie_in_the_order_given() -> None:
    shapes = {"b": Size([2]), "a": Size([])}
    flat = Raveler(shapes).ravel({"a": torch.tensor(3.0), "b": torch.tensor([1.0, 2.0]), "other": torch.zeros(9)})
    assert flat.tolist() == [1.0, 2.0, 3.0]


def test_rows_are_chains() -> None:
    raveler, sites = Raveler(SHAPES), _sites((5,))
    flat = raveler.ravel(sites)
    for chain in range(5):
        assert torch.equal(flat[chain], raveler.ravel({name: value[chain] for name, value in sites.items()}))


def test_a_matrix_is_laid_out_by_rows() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    assert Raveler({"m": Size([2, 3])}).ravel({"m": matrix.T.contiguous().T}).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_under_vmap() -> None:
    raveler, sites = Raveler(SHAPES), _sites((5,))
    flat = vmap(raveler.ravel)(sites)
    assert torch.equal(flat, raveler.ravel(sites))
    back = vmap(raveler.unravel)(flat)
    assert all(torch.equal(back[name], sites[name]) for name in SHAPES)


def test_gradients_pass_both_ways() -> None:
    raveler, sites = Raveler(SHAPES), _sites((2,))
    flat = raveler.ravel({name: value.requires_grad_() for name, value in sites.items()})
    weights = randn(9, 2, raveler.dim)
    (flat * weights).sum().backward()
    for name, weight in raveler.unravel(weights).items():
        assert torch.equal(sites[name].grad, weight)
    flat = weights.requires_grad_()
    sum(value.square().sum() for value in raveler.unravel(flat).values()).backward()
    torch.testing.assert_close(flat.grad, 2 * weights.detach())


def test_no_sites_make_an_empty_round_trip() -> None:
    assert Raveler({}).unravel(torch.zeros(4, 0)) == {}
