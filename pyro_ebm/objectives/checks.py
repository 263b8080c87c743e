"""Checks of an objective's options."""


def at_least(least: int, number: int, what: str, name: str) -> int:
    """The number, if it is large enough.

    Raises:
        ValueError: if it is not.
    """
    if number < least:
        raise ValueError(f"{what}: got {name}={number}, expected at least {least}.")
    return number


def positive(number: float, what: str, name: str) -> float:
    """The number, if it is positive and finite.

    Raises:
        ValueError: if it is not.
    """
    if not 0 < number < float("inf"):
        raise ValueError(f"{what}: got {name}={number}, expected a positive number.")
    return float(number)
