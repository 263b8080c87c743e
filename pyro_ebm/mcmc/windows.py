"""The windows of warm-up: when the step size and the metric adapt."""

from typing import NamedTuple

# Stan's, for its four chains: a start to reach the typical set, doubling windows for the metric, an end for the step
# size.
_START, _FIRST, _END = 75, 25, 50
# With more chains a shorter window pools as many draws, and the sooner a metric is there, the cheaper the rest; but
# chains reach the typical set no sooner.
_STAN_CHAINS, _MIN_FIRST, _START_SHARE, _END_SHARE = 4, 10, 0.15, 0.1


class Window(NamedTuple):
    """A stretch of warm-up: its length in transitions of each chain, and whether the metric is renewed at its end."""

    length: int
    renews_metric: bool


def warmup_windows(warmup_steps: int, num_chains: int, *, adapt_metric: bool) -> list[Window]:
    """Split the warm-up into windows, whose lengths add up to `warmup_steps`.

    References:
        Stan Development Team 2024, Stan reference manual, "Adaptation".

    >>> [w.length for w in warmup_windows(1000, 4, adapt_metric=True)]
    [75, 25, 50, 100, 200, 450, 100]
    >>> [w.length for w in warmup_windows(100, 4, adapt_metric=True)]
    [15, 35, 50]
    >>> [w.length for w in warmup_windows(300, 64, adapt_metric=True)]
    [45, 10, 20, 40, 135, 50]
    """
    if warmup_steps == 0:
        return []
    if not adapt_metric or warmup_steps < 20:
        return [Window(warmup_steps, False)]
    share = min(1.0, _STAN_CHAINS / num_chains)
    start, end = min(_START, int(_START_SHARE * warmup_steps)), max(_END, int(_END_SHARE * warmup_steps))
    first = max(_MIN_FIRST, int(share * _FIRST))
    if start + first + end > warmup_steps:
        end = int(_END_SHARE * warmup_steps)
        first = warmup_steps - start - end
    windows, length, left = [Window(start, False)], first, warmup_steps - start - end
    while left > 0:
        if left < 3 * length:  # the next window, twice as long, would not fit
            length = left
        windows.append(Window(length, True))
        left -= length
        length *= 2
    return [*windows, Window(end, False)]
