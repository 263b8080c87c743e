"""Functions of ours in the place of some of torch's, within a block of code."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode


class Replacing(TorchFunctionMode):
    """Calls other functions in the place of some of torch's; these may call the ones that they stand for.

    Every torch call pays for a mode, so enter it where it is needed.

    Args:
        replacements: what is called, by torch's function.
    """

    def __init__(self, replacements: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self._replacements = replacements

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace what is to be replaced, and leave the rest alone."""
        return self._replacements.get(func, func)(*args, **(kwargs or {}))
