"""Factors, inverses and determinants of many matrices at once, of which some may have none."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_ebm._core.replacing import Replacing

Result = TypeVar("Result")


def nan_cholesky() -> Replacing:
    """Makes Cholesky factors NaN for the matrices that have none, in place of raising for all: what graphs need.

    One chain at a point without a density must not end the others.
    """
    return Replacing(_FACTORS)


def each_alone(function: Callable[..., Result], *args: Any) -> Result:
    """Evaluate a function; where a matrix has no factor, inverse, solution or determinant, again, with NaN for it.

    So matrices of some chains end no others. Whatever else fails is raised, such as eigenvalues that do not converge,
    and `torch.linalg.lu_factor`.
    """
    try:
        return function(*args)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        with Replacing(_FUNCTIONS):
            return function(*args)


def _cholesky(matrix: Tensor, *, upper: bool = False) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix, upper=upper)
    return _nan_where((info != 0)[..., None, None], factor)


def _old_cholesky(matrix: Tensor, upper: bool = False) -> Tensor:
    return _cholesky(matrix, upper=upper)


def _inverse(matrix: Tensor) -> Tensor:
    inverse, info = torch.linalg.inv_ex(matrix)
    return _nan_where((info != 0)[..., None, None], inverse)


def _power(matrix: Tensor, n: int) -> Tensor:
    power: Tensor = torch.linalg.matrix_power(_inverse(matrix) if n < 0 else matrix, abs(n))
    return power


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


def _stand_in(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """One of ours under torch's names of arguments; torch's own for complex matrices, and for results written to."""

    def call(*args: Any, **kwargs: Any) -> Any:
        matrices = [*args, *(kwargs[name] for name in _NAMES if name in kwargs)]
        if kwargs.get("out") is not None or any(isinstance(each, Tensor) and each.is_complex() for each in matrices):
            return theirs(*args, **kwargs)
        return ours(*matrices, **{name: value for name, value in kwargs.items() if name not in (*_NAMES, "out")})

    return call


_NAMES = ("A", "input", "B")
_FACTORS: dict[Any, Any] = {
    torch.linalg.cholesky: _stand_in(torch.linalg.cholesky, _cholesky),
    **{each: _stand_in(each, _old_cholesky) for each in (torch.cholesky, Tensor.cholesky)},
}
_FUNCTIONS: dict[Any, Any] = {
    **_FACTORS,
    **{each: _stand_in(each, _inverse) for each in (torch.linalg.inv, torch.inverse, Tensor.inverse)},
    **{each: _stand_in(each, _power) for each in (torch.linalg.matrix_power, torch.matrix_power, Tensor.matrix_power)},
    torch.linalg.solve: _stand_in(torch.linalg.solve, _solution),
    **{each: _stand_in(each, _slogdet) for each in (torch.linalg.slogdet, torch.slogdet, Tensor.slogdet)},
    **{each: _stand_in(each, _logdet) for each in (torch.logdet, Tensor.logdet)},
}
