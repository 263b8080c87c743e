"""Products of many vectors with one matrix, or with one for each element of a batch."""

from torch import Tensor


def rows_times(rows: Tensor, matrix: Tensor) -> Tensor:
    """The products `xᵀ A`, with no copy of the matrices for each sample.

    Args:
        rows: x, `(*sample, *batch, n)`.
        matrix: A, `(*batch, n, m)`.

    Returns:
        `(*sample, *batch, m)`.

    >>> import torch
    >>> rows_times(torch.ones(5, 4, 2), torch.ones(4, 2, 3)).shape
    torch.Size([5, 4, 3])
    """
    batch = matrix.dim() - 2
    num_sample_dims = rows.dim() - 1 - batch
    if batch == 0:
        return rows @ matrix
    if num_sample_dims <= 0:
        return (rows.unsqueeze(-2) @ matrix).squeeze(-2)
    sample = rows.shape[:num_sample_dims]
    # What meets the same matrix becomes the rows of one product.
    together = rows.flatten(0, num_sample_dims - 1).movedim(0, -2)
    products = (together @ matrix).movedim(-2, 0)
    return products.reshape(*sample, *products.shape[1:])
