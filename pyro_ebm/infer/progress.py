"""What a run says of itself: its progress while it goes, and which chains need attention when it ends."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from pyro_ebm.mcmc.run import Run

# A chain whose draws repeat this often, out of enough of them, has in effect not moved.
_STUCK, _ENOUGH = 0.99, 20
# Trajectories cut this often waste work and random-walk.
_SATURATED = 0.05
_MOST_NAMED = 10
# Numbers compared at a time.
_COMPARED = 2**22


def show_progress(bar: Any, run: Run) -> None:
    """Bring a tqdm bar up to date: stage, mean number of transitions, step size, acceptance, divergences."""
    if bar.disable:
        return
    bar.set_description("Warmup" if run.warming_up else "Sample", refresh=False)
    postfix = {
        "chains": run.num_chains,
        **({} if run.step_size.isnan() else {"step size": f"{float(run.step_size):.2e}"}),
        "acc. prob": f"{run.mean_acceptance:.3f}",
    }
    divergences = int(run.num_divergences.sum())
    if divergences:
        postfix["divergences"] = divergences
    bar.set_postfix(postfix, refresh=False)
    bar.update(run.transitions - bar.n)


def concerns(run: Run) -> Iterator[str]:
    """What is wrong with which chains, and the way out, a sentence each.

    A bad chain is data and a warning at the end, never an exception in the middle.
    """
    recorded = run.draws.draws()
    if not recorded or recorded["position"].shape[1] == 0:
        return
    moved = (run.warmup.moved > 0).nonzero().flatten().tolist()
    if moved:
        yield (
            f"{len(moved)} of {run.num_chains} chains (chains {moved[:_MOST_NAMED]}) were left behind in the warm-up, "
            "where next to none of the mass is, and went on from where others were. If the model has several modes, "
            "look at the starts."
        )
    diverged = {chain: number for chain, number in enumerate(run.num_divergences.tolist()) if number}
    if diverged:
        named = ", ".join(f"{chain}: {number}" for chain, number in list(diverged.items())[:_MOST_NAMED])
        more = ", ..." if len(diverged) > _MOST_NAMED else ""
        what = "divergent transitions" if run.draws.thinning == 1 else "draws with divergent transitions"
        yield (
            f"{sum(diverged.values())} {what} in {len(diverged)} of {run.num_chains} chains (chain: "
            f"number {named}{more}): {run.algorithm.remedy}."
        )
    lost = recorded["non_finite"].sum(-1)
    if int(lost.sum()):
        yield (
            f"{int(lost.sum())} of them, in {int((lost > 0).sum())} chains, met a density or gradient that is not "
            "finite: look for a log or root of what can turn negative, an overflow, or a support that is too wide."
        )
    position = recorded["position"]
    stuck = (_repeats(position) > _STUCK).nonzero().flatten().tolist() if position.shape[1] >= _ENOUGH else []
    if stuck:
        yield (
            f"{len(stuck)} of {run.num_chains} chains did not move (chains {stuck[:_MOST_NAMED]}): the density may not "
            "be finite around them. Leave them out, or give other starts."
        )
    if "reached_max_treedepth" in recorded:
        saturated = float(recorded["reached_max_treedepth"].double().mean())
        if saturated > _SATURATED:
            yield f"{saturated:.0%} of the trajectories reached max_tree_depth: raise it, or use full_mass=True."


def _repeats(position: Tensor) -> Tensor:
    """The share of draws `(chains, draws, dim)` that repeat the one before, `(chains,)`.

    They are compared a few at a time, since they may be more than fits in memory.
    """
    chains, draws, dim = position.shape
    step = max(1, _COMPARED // (chains * dim))
    repeated = position.new_zeros(chains)
    for start in range(0, draws - 1, step):
        few = position[:, start : start + step + 1]
        repeated += (few[:, 1:] == few[:, :-1]).all(-1).sum(-1)
    return repeated / (draws - 1)
