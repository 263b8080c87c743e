"""Shapes: which dims are sample, batch and event."""

from collections.abc import Sequence

from torch import Size, Tensor

from pyro_ebm._core.errors import EnergyShapeError


def leading_shape(value: Tensor, event_shape: Size, what: str) -> Size:
    """The `(*sample, *batch)` part of a value's shape.

    Raises:
        EnergyShapeError: if `value` does not end in `event_shape`.
    """
    split = value.dim() - len(event_shape)
    if split < 0 or value.shape[split:] != event_shape:
        raise EnergyShapeError(
            f"{what}: got a value of shape {tuple(value.shape)}, expected (*sample, *batch, *event) with event shape "
            f"{tuple(event_shape)}. Reshape the value, or declare the energy with the event shape that you mean."
        )
    return Size(value.shape[:split])  # tensor subclasses may give a tuple


def check_energy_shape(energy: Tensor, expected: Size, what: str) -> Tensor:
    """Return `energy` if it has the `(*sample, *batch)` shape expected.

    Raises:
        EnergyShapeError: otherwise, with a hint at the usual cause.
    """
    if energy.shape == expected:
        return energy
    got = tuple(energy.shape)
    if got == (*expected, 1):
        hint = "Reduce the last dim: end the network with nn.Flatten(0), or return net(x).squeeze(-1)."
    elif len(got) > len(expected):
        hint = "Reduce the event dims, and only those: sum over them, or use a network with one output."
    else:
        hint = "Reduce only the event dims, and keep every leading dim."
    raise EnergyShapeError(f"{what}: energy returned shape {got}, expected {tuple(expected)}. {hint}")


def broadcast(shapes: Sequence[Size], what: str) -> Size:
    """Broadcast batch shapes.

    Raises:
        EnergyShapeError: if they do not broadcast.
    """
    # Not torch.broadcast_shapes, which takes ten times as long.
    sizes: list[int] = []
    for shape in shapes:
        sizes = [1] * (len(shape) - len(sizes)) + sizes
        for dim in range(-len(shape), 0):
            if sizes[dim] == 1:
                sizes[dim] = shape[dim]
            elif shape[dim] not in (1, sizes[dim]):
                listed = ", ".join(str(tuple(s)) for s in shapes)
                raise EnergyShapeError(
                    f"{what}: got batch shapes {listed}, expected shapes that broadcast. "
                    "Give parameters and covariates batch dims that line up from the right."
                )
    return Size(sizes)


def sum_rightmost(value: Tensor, ndims: int) -> Tensor:
    """Sum over the last `ndims` dims: `(*lead, *event)` to `(*lead,)`."""
    return value if ndims == 0 else value.flatten(value.dim() - ndims).sum(-1)
