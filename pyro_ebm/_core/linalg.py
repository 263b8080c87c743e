"""Factors, inverses and determinants of many matrices at once, of which some may have none."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_ebm._core.replacing import Replacing

Result = TypeVar("Result")


def nan_cholesky() -> Replacing:
    """Makes Cholesky factors of matrices that have none NaN, in place of raising for all; for graphs, and so few calls.

    One chain at a point without a density must not end the others.
    """
    return Replacing(_FACTORS)


def nan_failures() -> Replacing:
    """Likewise factors, inverses, solutions and determinants."""
    return Replacing(_FUNCTIONS)


def each_alone(function: Callable[[Tensor], Result], x: Tensor) -> Result:
    """Evaluate a function of a batch; where matrices of some of its elements fail, theirs become NaN, and no others."""
    try:
        return function(x)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        with nan_failures():
            return function(x)


def _cholesky(*args: Any, **kwargs: Any) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(*args, **kwargs)
    return _nan_where((info != 0)[..., None, None], factor)


def _old_cholesky(matrix: Tensor, upper: bool = False) -> Tensor:
    return _cholesky(matrix, upper=upper)


def _inverse(matrix: Tensor) -> Tensor:
    inverse, info = torch.linalg.inv_ex(matrix)
    return _nan_where((info != 0)[..., None, None], inverse)


def _solution(matrix: Tensor, right: Tensor, *, left: bool = True) -> Tensor:
    """By the factors of the matrix, since torch's gradient solves other equations with it, which may raise."""
    factors, pivots, info = torch.linalg.lu_factor_ex(matrix)
    is_vector = right.dim() == 1 or (right.dim() == matrix.dim() - 1 and right.shape == matrix.shape[:-1])
    columns = right.unsqueeze(-1) if is_vector else right
    solution = torch.linalg.lu_solve(factors, pivots, columns, left=left)
    solution = _nan_where((info != 0)[..., None, None], solution)
    return solution.squeeze(-1) if is_vector else solution


def _sign_and_log_determinant(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """As for solutions."""
    factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    diagonal = factors.diagonal(dim1=-2, dim2=-1)
    exchanges = pivots != torch.arange(1, matrix.shape[-1] + 1, device=matrix.device)
    sign = diagonal.sign().prod(-1) * (1 - 2 * (exchanges.sum(-1) % 2)).to(matrix.dtype)
    return sign, diagonal.abs().log().sum(-1)


def _slogdet(matrix: Tensor) -> Any:
    return torch.return_types.linalg_slogdet(_sign_and_log_determinant(matrix))  # type: ignore[attr-defined]


def _logdet(matrix: Tensor) -> Tensor:
    sign, log_determinant = _sign_and_log_determinant(matrix)
    return _nan_where(sign < 0, log_determinant)


def _nan_where(failed: Tensor, value: Tensor) -> Tensor:
    return torch.where(failed, torch.nan, value)


_FACTORS: dict[Any, Any] = {
    torch.linalg.cholesky: _cholesky,
    **dict.fromkeys((torch.cholesky, Tensor.cholesky), _old_cholesky),
}
_FUNCTIONS: dict[Any, Any] = {
    **_FACTORS,
    **dict.fromkeys((torch.linalg.inv, torch.inverse, Tensor.inverse), _inverse),
    torch.linalg.solve: _solution,
    **dict.fromkeys((torch.linalg.slogdet, torch.slogdet, Tensor.slogdet), _slogdet),
    **dict.fromkeys((torch.logdet, Tensor.logdet), _logdet),
}
