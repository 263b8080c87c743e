"""What a simple density near to data needs to know of them."""

import torch
from torch import Tensor

# A covariance needs so many data for each dim; with fewer, only variances are told.
_DATA_PER_DIM = 10


def mean_and_covariance(events: Tensor) -> tuple[Tensor, Tensor]:
    """Of flat events `(N, dim)`: the mean `(dim,)`, and the covariance `(dim, dim)`.

    With fewer than 10 data for each dim it is diagonal, the variances alone.
    """
    mean = events.mean(0)
    deviation = events - mean
    if len(events) >= _DATA_PER_DIM * events.shape[-1]:
        return mean, deviation.mT @ deviation / len(events)
    return mean, torch.diag_embed(deviation.square().mean(0))


def frequencies(data: Tensor, values: Tensor) -> Tensor:
    """Of each of K values in each element of data `(N, *event)`, one count added to each: `(*event, K)`."""
    dtype = data.dtype if data.is_floating_point() else torch.get_default_dtype()
    counts = (data.unsqueeze(-1) == values).to(dtype).sum(0) + 1
    return counts / counts.sum(-1, keepdim=True)
