"""Anomaly detection: learn the energy of nine classes of handwritten digits, and find the tenth by its energy.

1. Fit a network's energy to the digits of nine classes, by denoising score matching.
2. Score digits that were not seen, of these classes and of the one held out, by `-log p`, up to a constant.
3. Say how well the scores tell them apart, beside nearest neighbours on the same split, and draw the most and the
   least surprising digits.

Run it with `python examples/anomaly_detection.py --help`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib as mpl
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from pyro_ebm import DenoisingScoreMatching, Fit, fit, tilted

mpl.use("Agg")
import matplotlib.pyplot as plt

SIDE, COMPONENTS, HIDDEN = 8, 24, 192
NUM_SHOWN = 10
SIGMA = 0.3  # of the noise, where pixels are in [0, 1]: about a third of the distance between nearest neighbours


def learn(train: Tensor, num_steps: int) -> Fit:
    """The energy of what is normal."""
    network = nn.Sequential(
        nn.Linear(COMPONENTS, HIDDEN),
        nn.SiLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.SiLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.SiLU(),
        nn.Linear(HIDDEN, 1),
    )
    smoothed = tilted(network, train + SIGMA * torch.randn_like(train))  # what score matching learns is smoothed, too
    return fit(smoothed, train, objective=DenoisingScoreMatching(SIGMA), num_steps=num_steps, batch_size=256)


def draw(images: Tensor, scores: Tensor, anomalous: Tensor, neighbours: Tensor, path: Path) -> None:
    """Draw the least and the most surprising digits, the scores, and the receivers' curves."""
    figure = plt.figure(figsize=(9, 6), layout="constrained")
    rows = figure.add_gridspec(3, 1, height_ratios=[1, 1, 3])
    order = scores.argsort()
    for row, (name, chosen) in enumerate((("least surprising", order[:NUM_SHOWN]), ("most", order[-NUM_SHOWN:]))):
        for column, (index, cell) in enumerate(zip(chosen, rows[row].subgridspec(1, NUM_SHOWN), strict=True)):
            axis = figure.add_subplot(cell)
            axis.imshow(images[index].reshape(SIDE, SIDE), cmap="gray_r", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_color("C3" if anomalous[index] else "C0")
                spine.set_linewidth(2)
            if column == 0:
                axis.set_ylabel(name, fontsize=7)
    left, right = (figure.add_subplot(cell) for cell in rows[2].subgridspec(1, 2))
    bins = torch.linspace(float(scores.min()), float(scores.max()), 40).tolist()
    left.hist(scores[~anomalous].tolist(), bins, alpha=0.7, label="learned classes", density=True)
    left.hist(scores[anomalous].tolist(), bins, alpha=0.7, label="held-out class", density=True, color="C3")
    left.set_xlabel("energy, nats")
    left.legend(fontsize=8)
    for name, each in (("energy", scores), ("5 nearest neighbours", neighbours)):
        rates = roc_curve(anomalous.numpy(), each.numpy())
        area = roc_auc_score(anomalous.numpy(), each.numpy())
        right.plot(rates[0], rates[1], label=f"{name}: {area:.3f}")
    right.set_xlabel("false alarms")
    right.set_ylabel("found")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Learn, score, and say where the pictures are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/anomaly_detection"), help="folder for the results")
    parser.add_argument("--held-out", type=int, default=4, choices=range(10), help="the class that is not learned")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the tensors are small: threads would wait for one another
    torch.manual_seed(options.seed)
    started = time.perf_counter()

    found = load_digits()
    images, labels = torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)
    normal = (labels != options.held_out).nonzero().flatten()
    normal = normal[torch.randperm(len(normal))]
    train = images[normal[: 4 * len(normal) // 5]]
    judged = torch.cat([normal[4 * len(normal) // 5 :], (labels == options.held_out).nonzero().flatten()])
    components = PCA(COMPONENTS, random_state=0).fit(train.numpy())

    def project(of: Tensor) -> Tensor:
        return torch.tensor(components.transform(of.numpy()), dtype=torch.float32)

    learned = learn(project(train), options.steps)
    with torch.no_grad():
        scores = -learned.distribution.unnormalized_log_prob(project(images[judged]))
    anomalous = labels[judged] == options.held_out
    distances, _ = NearestNeighbors(n_neighbors=5).fit(project(train)).kneighbors(project(images[judged]))
    neighbours = torch.tensor(distances.mean(1))
    print(f"Digit {options.held_out} held out: {int(anomalous.sum())} among {len(judged)} digits to judge")
    for name, each in (("energy", scores), ("5 nearest neighbours", neighbours)):
        print(f"  area under the curve by {name}: {roc_auc_score(anomalous.numpy(), each.numpy()):.3f}")

    draw(images[judged], scores, anomalous, neighbours, options.output / "scores.png")
    axes = learned.plot()
    axes[0].figure.savefig(options.output / "training.png", dpi=100)
    print(f"All in {time.perf_counter() - started:.0f} s. Results:")
    for path in sorted(options.output.iterdir()):
        print(f"  {path}")


if __name__ == "__main__":
    main()
