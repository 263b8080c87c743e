"""Independent component analysis by noise-contrastive estimation, against maximum likelihood.

Four Laplace sources, mixed: `log p(x) = -√2 Σ_i |b_i x| + log |det B| - (d/2) log 2`. Noise-contrastive estimation
knows nothing of the last two terms, and learns them as its log Z. The error is `log10 |B̂ - B|² / |B|²`, as in Gutmann
and Hyvärinen 2012, who start near the truth as is done here, so that components keep their order.

    python benchmarks/learning_ica.py --seeds 8
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from report import machine, table, write_section
from torch import Tensor, nn

from pyro_ebm import Energy, EnergyDistribution, NoiseContrastive

SIZE = 4


class LaplaceSources(Energy):
    """`E(x) = √2 Σ_i |b_i x|`, with the rows b of an unmixing matrix to be learned."""

    def __init__(self, unmixing: Tensor) -> None:
        super().__init__((len(unmixing),))
        self.unmixing = nn.Parameter(unmixing.clone())

    def forward(self, x: Tensor) -> Tensor:
        """The energy at `(*sample, d)`."""
        return math.sqrt(2) * (x @ self.unmixing.mT).abs().sum(-1)

    def log_partition(self) -> Tensor:
        """Log Z in nats."""
        return 0.5 * len(self.unmixing) * math.log(2) - torch.linalg.slogdet(self.unmixing).logabsdet


def problem(seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Data `(N, d)` of sources of unit variance, the true unmixing matrix, and one near it to start from."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        mixing = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
        if torch.linalg.cond(mixing) < 10:
            break
    uniform = torch.rand(count, SIZE, generator=generator, dtype=torch.float64) - 0.5
    sources = -uniform.sign() * torch.log1p(-2 * uniform.abs()) / math.sqrt(2)
    unmixing = torch.linalg.inv(mixing)
    start = unmixing * (1 + 0.05 * torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    return sources @ mixing.mT, unmixing, start


def minimize(loss: Callable[[], Tensor], parameters: list[nn.Parameter]) -> None:
    """Minimise a deterministic loss."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        for parameter in parameters:  # the optimiser takes no transposed gradients
            parameter.grad = None if parameter.grad is None else parameter.grad.contiguous()
        return value

    optimizer.step(closure)


def by_likelihood(data: Tensor, start: Tensor) -> Tensor:
    """The unmixing matrix of maximum likelihood."""
    energy = LaplaceSources(start)
    minimize(lambda: energy(data).mean() + energy.log_partition(), list(energy.parameters()))
    return energy.unmixing.detach()


def by_noise(data: Tensor, start: Tensor, num_noise: int, seed: int) -> tuple[Tensor, float]:
    """That of noise-contrastive estimation, and its log Z in nats."""
    energy = LaplaceSources(start)
    objective = NoiseContrastive(num_noise=num_noise).double()
    with torch.no_grad():
        objective.log_partition.copy_(energy.log_partition())
    trained = EnergyDistribution(energy)

    def loss() -> Tensor:
        return objective(trained, data, generator=torch.Generator().manual_seed(seed))[0]

    minimize(loss, [*energy.parameters(), *objective.parameters()])
    return energy.unmixing.detach(), float(objective.log_partition.detach())


def error(found: Tensor, right: Tensor) -> float:
    """`log10 |B̂ - B|² / |B|²`."""
    return math.log10(float((found - right).square().sum() / right.square().sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--data", type=int, default=8000)
    parser.add_argument("--noise", type=int, default=10)
    parser.add_argument("--write", type=Path, help="the Markdown file whose section is to be replaced")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    started = time.process_time()
    for seed in range(given.seeds):
        data, right, start = problem(seed, given.data)
        likelihood = error(by_likelihood(data, start), right)
        found, log_z = by_noise(data, start, given.noise, seed)
        rows.append((likelihood, error(found, right), log_z - float(LaplaceSources(right).log_partition().detach())))
        print(f"seed {seed}: MLE {rows[-1][0]:.3f}, NCE {rows[-1][1]:.3f}, log Z error {log_z:+.4f}", flush=True)
    errors = torch.tensor(rows)
    gap = errors[:, 1] - errors[:, 0]
    summary = [
        f"{errors[:, 0].mean():.3f}",
        f"{errors[:, 1].mean():.3f}",
        f"{gap.mean():.3f} +- {gap.std() / math.sqrt(len(gap)):.3f}",
        f"{errors[:, 2].square().mean().sqrt():.4f}",
        f"{time.process_time() - started:.0f}",
    ]
    text = f"""\
{machine()}.

    python benchmarks/learning_ica.py --seeds {given.seeds}

Log10 of the relative squared error of the unmixing matrix of four Laplace sources, from {given.data} data, with
{given.noise} noise draws for each; means over {given.seeds} seeds. Log Z is learned, and its error is in nats; seconds
of the processor for all seeds.

{table(["likelihood", "noise-contrastive", "gap", "log Z, rms error", "s"], [summary])}
"""
    print(text)
    if given.write is not None:
        write_section(given.write, "Independent components", text)


if __name__ == "__main__":
    main()
