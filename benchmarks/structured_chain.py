"""Compares exact inference on linear chains with pytorch-crf, pytorch-struct and CRFsuite, on one core.

    python benchmarks/structured_chain.py
    python benchmarks/structured_chain.py --write benchmarks/RESULTS.md

64 chains of 20 labels, in float32: log Z, its gradient, the best path and draws; and one pass of training with sparse
features in float64, as CRFsuite has it. What counts is processor time, best of several, in one process; peers that this
Python does not have are left out: `pip install pytorch-crf torch-struct python-crfsuite`.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import machine, table, write_section
from samplers import number, pin
from torch import Tensor

from pyro_ebm.graphs.chains import chain
from pyro_ebm.graphs.chains import decoding as chain_decoding
from pyro_ebm.graphs.chains import sampling as chain_sampling

NUM_CHAINS, NUM_STATES = 64, 20
NUM_FEATURES, ACTIVE = 1000, 10
# How many times as fast as a peer each is to be.
LEAST = {("log Z and gradient", "torchcrf"): 5.0, ("pass of training", "pycrfsuite"): 1.0}
PEERS = {"torchcrf": "pytorch-crf", "torch_struct": "pytorch-struct", "pycrfsuite": "CRFsuite"}


def best(function: Callable[[], Any], repeats: int) -> float:
    """Milliseconds of processor time, the least of several."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def gradient_of(log_z: Callable[[], Tensor], *inputs: Tensor) -> Callable[[], Any]:
    """A function that computes log Z and its gradient."""
    return lambda: torch.autograd.grad(log_z().sum(), inputs)


def pyro_ebm_times(unary: Tensor, pairwise: Tensor, repeats: int) -> dict[str, float]:
    found = {
        "log Z and gradient": best(gradient_of(lambda: chain.log_partition(unary, pairwise), unary, pairwise), repeats)
    }
    with torch.no_grad():
        found["log Z"] = best(lambda: chain.log_partition(unary, pairwise), repeats)
        found["marginals"] = best(lambda: chain.marginals(unary, pairwise), repeats)
        found["best path"] = best(lambda: chain_decoding.mode(unary, pairwise), repeats)
        found["10 draws"] = best(lambda: chain_sampling.sample(unary, pairwise, (10,)), repeats)
        found["1000 draws"] = best(lambda: chain_sampling.sample(unary, pairwise, (1000,)), 2)
    return found


def torchcrf_times(unary: Tensor, pairwise: Tensor, repeats: int) -> dict[str, float]:
    from torchcrf import CRF

    crf = CRF(NUM_STATES, batch_first=False)
    with torch.no_grad():
        crf.transitions.copy_(pairwise)
        crf.start_transitions.zero_()
        crf.end_transitions.zero_()
    emissions = unary.detach().transpose(0, 1).contiguous().requires_grad_()
    mask = torch.ones(emissions.shape[:2], dtype=torch.bool)

    def log_z() -> Tensor:
        return crf._compute_normalizer(emissions, mask)

    torch.testing.assert_close(log_z(), chain.log_partition(unary, pairwise), rtol=1e-4, atol=1e-2)
    found = {"log Z and gradient": best(gradient_of(log_z, emissions, crf.transitions), repeats)}
    with torch.no_grad():
        found["log Z"] = best(log_z, repeats)
        found["best path"] = best(lambda: crf.decode(emissions), repeats)
    return found


def torch_struct_times(unary: Tensor, pairwise: Tensor, repeats: int) -> dict[str, float]:
    from torch_struct import LinearChainCRF

    def potentials() -> Tensor:  # (B, T - 1, next, previous)
        scores = pairwise.mT + unary[:, 1:, :, None]
        return torch.cat([scores[:, :1] + unary[:, :1, None, :], scores[:, 1:]], 1)

    def log_z() -> Tensor:
        return LinearChainCRF(potentials()).partition

    torch.testing.assert_close(log_z(), chain.log_partition(unary, pairwise), rtol=1e-4, atol=1e-2)
    found = {"log Z and gradient": best(gradient_of(log_z, unary, pairwise), max(1, repeats // 5))}
    with torch.no_grad():
        found["log Z"] = best(log_z, max(1, repeats // 5))
    fixed = potentials().detach()
    found["marginals"] = best(lambda: LinearChainCRF(fixed).marginals, max(1, repeats // 5))
    return found


def training_data(steps: int) -> tuple[Tensor, Tensor]:
    """Numbers of the features of each step, `(N, T, ACTIVE)`, and labels `(N, T)`."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(NUM_CHAINS, steps, NUM_FEATURES, generator=generator)
    features = weights.topk(ACTIVE, -1).indices
    return features, (features[..., 0] + features[..., 1]) % NUM_STATES


class SparseProduct(torch.autograd.Function):
    """A sparse matrix times a dense one; its transpose is kept, for the gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        """The product."""
        ctx.transpose = transpose
        return matrix @ weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The product of the transpose."""
        return ctx.transpose @ gradients[0], None, None


def pyro_ebm_pass(steps: int, repeats: int) -> float:
    """One evaluation of the objective and its gradient."""
    features, labels = training_data(steps)
    weight = torch.zeros(NUM_FEATURES, NUM_STATES, dtype=torch.float64, requires_grad=True)
    pairwise = torch.zeros(NUM_STATES, NUM_STATES, dtype=torch.float64, requires_grad=True)
    rows = torch.arange(labels.numel()).repeat_interleave(ACTIVE)
    ones = torch.ones(features.numel(), dtype=torch.float64)
    matrix = torch.sparse_coo_tensor(
        torch.stack([rows, features.flatten()]), ones, (labels.numel(), NUM_FEATURES)
    ).coalesce()
    both = [each.to_sparse_csr() for each in (matrix, matrix.t().coalesce())]

    def loss() -> Tensor:
        unary = SparseProduct.apply(weight, *both).reshape(*labels.shape, NUM_STATES)
        return (weight.square().sum() + pairwise.square().sum()) - chain.log_prob(labels, unary, pairwise).sum()

    return best(gradient_of(loss, weight, pairwise), repeats)


def crfsuite_pass(steps: int) -> float:
    """The same by CRFsuite's L-BFGS: the difference between runs of few and of many iterations, by evaluations."""
    import pycrfsuite

    features, labels = training_data(steps)
    trainer = pycrfsuite.Trainer(verbose=False)
    for sequence, answer in zip(features.tolist(), labels.tolist(), strict=True):
        trainer.append([[f"f{each}" for each in step] for step in sequence], [str(each) for each in answer])
    spent = []
    with tempfile.TemporaryDirectory() as folder:
        for iterations in (5, 45):
            options = {"c1": 0.0, "c2": 1.0, "epsilon": 0.0, "delta": 0.0, "max_iterations": iterations}
            trainer.set_params({**options, "feature.possible_states": True, "feature.possible_transitions": True})
            start = time.process_time()
            trainer.train(str(Path(folder) / "model"))
            seconds = time.process_time() - start
            spent.append((seconds, sum(each.get("linesearch_trials", 1) for each in trainer.logparser.iterations)))
            trainer.logparser.iterations.clear()
    return 1e3 * (spent[1][0] - spent[0][0]) / (spent[1][1] - spent[0][1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 512])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--core", type=int, help="the core to stay on; the last one if not given")
    parser.add_argument("--write", type=Path, help="the Markdown file whose section is to be replaced")
    options = parser.parse_args()
    pin(options.core)
    warnings.filterwarnings("ignore", "Sparse")
    torch.set_num_threads(1)
    there = [module for module in PEERS if importlib.util.find_spec(module) is not None]
    rows = []
    for steps in options.steps:
        torch.manual_seed(0)
        unary = torch.randn(NUM_CHAINS, steps, NUM_STATES, requires_grad=True)
        pairwise = torch.randn(NUM_STATES, NUM_STATES, requires_grad=True)
        own = pyro_ebm_times(unary, pairwise, options.repeats)
        peers = {
            "torchcrf": torchcrf_times(unary, pairwise, options.repeats) if "torchcrf" in there else {},
            "torch_struct": torch_struct_times(unary, pairwise, options.repeats) if "torch_struct" in there else {},
        }
        own["pass of training"] = pyro_ebm_pass(steps, options.repeats)
        peers["pycrfsuite"] = {"pass of training": crfsuite_pass(steps)} if "pycrfsuite" in there else {}
        for work, milliseconds in own.items():
            cells, goals = [], []
            for module, name in PEERS.items():
                ratio = peers[module].get(work, math.nan) / milliseconds
                cells.append("" if math.isnan(ratio) else f"{number(ratio * milliseconds)} ({number(ratio)}x)")
                goal = LEAST.get((work, module))
                if goal is not None and not math.isnan(ratio):
                    goals.append(f"{goal:g}x {name}: {'reached' if ratio >= goal else '**not reached**'}")
            rows.append([str(steps), work, number(milliseconds), *cells, "; ".join(goals)])
    text = f"""\
{machine()}; torch {torch.__version__}.

    python benchmarks/structured_chain.py

Milliseconds of the processor for {NUM_CHAINS} chains of {NUM_STATES} labels, one thread, the best of {options.repeats};
the passes of training are in float64, all else in float32.

{table(["steps", "work", "pyro_ebm", *PEERS.values(), "to reach"], rows)}
"""
    print(text)
    if options.write is not None:
        write_section(options.write, "Linear chains", text)


if __name__ == "__main__":
    main()
