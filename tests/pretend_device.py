"""A device for machines without one: its tensors lie in host memory, and mix with the host's as little as a GPU's.

What a program does that it must not do on a GPU, this tells anywhere: it meets tensors of both sides in one operation,
or waits for the device. Random numbers come from the host's generators, so that results are those of a run on the host.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental import proxy_tensor
from torch.utils import _pytree as pytree

if torch.cuda.is_available():
    pytest.skip("there is a GPU, and torch knows one kind at a time", allow_module_level=True)
backend_registration = pytest.importorskip("torch.utils.backend_registration")
if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch has no devices made in Python", allow_module_level=True)


class _Backend(backend_registration._DummyBackendModule):  # type: ignore[misc, name-defined]
    """What torch asks of an accelerator: this one has no random numbers, and is not one to be taken by default."""

    def is_available(self) -> bool:
        return False

    def device_count(self) -> int:
        return 0


backend_registration._setup_privateuseone_for_python_backend("pretend", backend_module=_Backend())
DEVICE = torch.device("pretend", 0)
# How many times the host waited for the device, by what for.
WAITS: Counter[str] = Counter()

# What may take tensors of both sides: copies, and indices, which torch brings to where the values are.
_COPIES, _INDEXING = {"_to_copy", "copy_"}, {"index", "index_put", "index_put_", "_index_put_impl_"}
# What tells the host a value, or a shape that depends on values.
_LOOKS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "bincount", "_linalg_check_errors"}
_LOOKS |= {"_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}


class DeviceTensor(Tensor):
    """A tensor on the device; `inner` is where its numbers lie."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "DeviceTensor":
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made: DeviceTensor = Tensor._make_wrapper_subclass(cls, inner.size(), device=DEVICE, **layout)  # type: ignore[attr-defined]
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation._schema.name.removeprefix("aten::")
        leaves, structure = pytree.tree_flatten((args, kwargs or {}))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        inside = [isinstance(each, DeviceTensor) for each in tensors]
        asked = (kwargs or {}).get("device")
        stays = inside[0] if name == "copy_" else asked is None or torch.device(asked).type == DEVICE.type
        _check(name, args, tensors, inside)
        if name in _LOOKS or (name in _COPIES and len({*inside, stays}) > 1):
            WAITS[name] += 1
        plain = [leaf.inner if isinstance(leaf, DeviceTensor) else leaf for leaf in leaves]
        inner_args, inner_kwargs = pytree.tree_unflatten(plain, structure)
        if asked is not None:
            inner_kwargs["device"] = torch.device("cpu")
        out = operation(*inner_args, **inner_kwargs)
        if not stays:
            return out
        given = {id(each.inner): each for each in tensors if isinstance(each, DeviceTensor)}
        changed = given if operation._schema.is_mutable else {}  # what changes in place comes out as it is
        return pytree.tree_map_only(Tensor, lambda x: changed[id(x)] if id(x) in changed else DeviceTensor(x), out)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.inner} on {DEVICE}"

    def tolist(self) -> Any:
        WAITS["tolist"] += 1
        return self.inner.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("got a tensor of a device, expected one of the host. Call .cpu() first.")

    __array__ = numpy


def _check(name: str, args: Any, tensors: list[Tensor], inside: list[bool]) -> None:
    if name in _COPIES:
        return
    if name in _INDEXING:
        if not inside[0]:
            raise RuntimeError(f"{name}: got indices of the device for values of the host")
        if any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]):
            WAITS["a mask"] += 1
        return
    strangers = [tuple(each.shape) for each, here in zip(tensors, inside, strict=True) if not here and each.dim()]
    if strangers:
        raise RuntimeError(f"{name}: got tensors of the device with tensors {strangers} of the host")


def _made(operation: Any) -> Any:
    """What makes a tensor on the device: it is made on the host, and wrapped."""

    def make(*args: Any, device: Any = None, pin_memory: Any = None, **options: Any) -> Tensor:
        return DeviceTensor(operation(*args, **options))

    return make


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """What `torch.tensor` ends with, below what a tensor's class says."""
    assert isinstance(target, DeviceTensor)
    WAITS["_copy_from"] += 1
    target.inner.copy_(source)
    return target


_LIBRARY = torch.library.Library("aten", "IMPL")
_EMPTY = ("empty.memory_format", "empty_strided")
_RANGES = ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "randperm", "randperm.generator")
for _name in (*_EMPTY, *_RANGES, "tril_indices", "triu_indices"):
    _LIBRARY.impl(_name, _made(getattr(torch.ops.aten, _name.partition(".")[0])), "PrivateUse1")
_LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")

# A trace takes tensors of its class that are not among its inputs for constants, as it does a GPU's.
proxy_tensor.HANDLED_TYPES = (*proxy_tensor.HANDLED_TYPES, DeviceTensor)  # type: ignore[assignment]
