"""Index tensors made inside of a function that torch.func transforms."""

import numpy as np
import torch
from torch import Tensor


def concrete(index: Tensor) -> Tensor:
    """The tensor beneath the wrappers of `torch.func.grad` and `vmap`, which it does not depend on.

    Raises:
        ValueError: if it depends on what is mapped over.
    """
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(index):
        if functorch.is_batchedtensor(index):
            raise ValueError("got an index that depends on a sampled value, expected one that is the same for all.")
        index = functorch.get_unwrapped(index)
    return index


def to_numpy(index: Tensor) -> np.ndarray:
    """The same, as an array on the host."""
    with torch._C._DisableFuncTorch():
        array: np.ndarray = concrete(index).cpu().numpy()
        return array


def true_entries(mask: Tensor) -> Tensor:
    """The numbers of the true entries of a mask, `(n,)`: a constant, where nonzero would be part of the program."""
    return torch.from_numpy(np.flatnonzero(to_numpy(mask))).to(mask.device)


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor is in the hands of `torch.func.grad` or `vmap`."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return wrapped
