"""A classifier is a density: learn ten classes of digits from 200 labels and 1300 images without one.

1. Train a network by its labels alone, and one of the same shape by labels and images together (Grathwohl et al. 2020,
   Your classifier is secretly an energy based model and you should treat it like one).
2. Compare how often they are right on digits that they have not seen, and whether they know how often.
3. Draw digits of each class from the joint model, by the energy of a class: `joint.given(label)`.
4. Show what the joint density finds unlike digits, and what it does not.

Run it with `python examples/joint_energy_model.py --help`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib as mpl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pyro_ebm import (
    DenoisingScoreMatching,
    EnergyDistribution,
    JointEnergy,
    PersistentWalkers,
    SemiSupervised,
    fit,
    fitted_base,
)

mpl.use("Agg")
import matplotlib.pyplot as plt

SIDE, PIXELS, CLASSES = 8, 64, 10
NUM_TRAIN, NUM_LABELS = 1500, 200
SIGMA = 0.2  # of the noise on pixels in [0, 1]
BINS = 10


def digits() -> tuple[Tensor, Tensor]:
    """Images `(N, 64)` in [0, 1] in some order, and their labels."""
    found = load_digits()
    order = torch.randperm(len(found.target))
    return torch.tensor(found.data / 16, dtype=torch.float32)[order], torch.tensor(found.target)[order]


class Centered(nn.Module):
    """Images in [0, 1] to values about zero, of unit scale."""

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 64)` to the same."""
        return (x - 0.3) / 0.3


def classifier() -> JointEnergy:
    """A network of 64-256-256-10 units."""
    layers = [nn.Linear(PIXELS, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, CLASSES)]
    return JointEnergy(nn.Sequential(Centered(), *layers), (PIXELS,), CLASSES)


def learn_by_labels(images: Tensor, labels: Tensor, num_steps: int) -> JointEnergy:
    """The classifier as it is usually trained."""
    joint = classifier()

    def cross_entropy(_: JointEnergy, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss = nn.functional.nll_loss(joint.label_log_prob(batch[0]), batch[1])
        return loss, {"loss": loss.detach()}

    distribution = EnergyDistribution(joint.marginal())
    fit(distribution, (images, labels), objective=cross_entropy, num_steps=num_steps)
    return joint


def learn_jointly(images: Tensor, labels: Tensor, num_steps: int) -> tuple[JointEnergy, EnergyDistribution]:
    """The classifier as a density; labels are -1 where they are not known."""
    joint = classifier()
    distribution = EnergyDistribution(joint.marginal(), fitted_base(images + SIGMA * torch.randn_like(images)))
    objective = SemiSupervised(DenoisingScoreMatching(SIGMA))
    fit(distribution, (images, labels), objective=objective, num_steps=num_steps, batch_size=256)
    return joint, distribution


def generate(joint: JointEnergy, base: torch.distributions.Distribution, count: int) -> Tensor:
    """Digits of each class, `(count, 10, 64)`, by annealing from the base to the density of each class."""
    labels = torch.arange(CLASSES)
    walkers = PersistentWalkers(4 * count, num_trackers=16)
    return EnergyDistribution(joint.given(labels), base.expand(labels.shape), log_normalizer=walkers).sample((count,))


def impostors(images: Tensor) -> dict[str, Tensor]:
    """Images that are no digits, `(N, 64)` each."""
    return {
        "noise": torch.rand_like(images),
        "shuffled pixels": images.gather(-1, torch.rand_like(images).argsort(-1)),
        "mixes of two": 0.5 * (images + images[torch.randperm(len(images))]),
    }


def reliability(log_prob: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean confidence and accuracy of bins of confidence, and the expected calibration error."""
    confidence, predicted = log_prob.exp().max(-1)
    right = (predicted == labels).float()
    which = (confidence * BINS).ceil().clamp(1, BINS)
    bins = [which == each for each in range(1, BINS + 1) if bool((which == each).any())]
    points = torch.tensor([[float(confidence[each].mean()), float(right[each].mean())] for each in bins])
    error = sum(float((right - confidence)[each].sum().abs()) for each in bins) / len(labels)
    return points[:, 0], points[:, 1], error


def draw_digits(images: Tensor, path: Path) -> None:
    """Draw digits `(rows, columns, 64)`."""
    figure, axes = plt.subplots(*images.shape[:2], figsize=(6, 0.6 * len(images) + 0.6))
    for image, axis in zip(images.flatten(0, 1), axes.flat, strict=True):
        axis.imshow(image.reshape(SIDE, SIDE), cmap="gray_r", vmin=0, vmax=1)
        axis.set_axis_off()
    figure.suptitle("Digits of each class, from the joint density", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_reliability(found: dict[str, tuple[Tensor, Tensor, float]], path: Path) -> None:
    """Draw how often each classifier is right, against how sure it is."""
    figure, axis = plt.subplots(figsize=(4.5, 4), layout="constrained")
    axis.plot([0, 1], [0, 1], color="0.7")
    for name, (confidence, accuracy, error) in found.items():
        axis.plot(confidence, accuracy, "o-", label=f"{name}: calibration error {error:.3f}")
    axis.set_xlabel("confidence")
    axis.set_ylabel("accuracy")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_energies(found: dict[str, Tensor], path: Path) -> None:
    """Draw the energies of digits and of what are none, cut off above."""
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    middle, spread = found["digits"].median(), found["digits"].std()
    low, high = float(middle - 4 * spread), float(middle + 12 * spread)
    for name, energy in found.items():
        axis.hist(energy.clamp(low, high).tolist(), 50, range=(low, high), density=True, alpha=0.6, label=name)
    axis.set_xlabel("energy, nats; what is higher is at the right edge")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Learn, compare, generate, and say where the pictures are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/joint_energy_model"), help="folder for the results"
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the tensors are small: threads would wait for one another
    torch.manual_seed(options.seed)
    started = time.perf_counter()

    images, labels = digits()
    train, test, truth = images[:NUM_TRAIN], images[NUM_TRAIN:], labels[NUM_TRAIN:]
    known = labels[:NUM_TRAIN].clone()
    known[NUM_LABELS:] = -1
    plain = learn_by_labels(train[:NUM_LABELS], known[:NUM_LABELS], options.steps)
    joint, distribution = learn_jointly(train, known, options.steps)
    with torch.no_grad():
        found = {}
        for name, each in (("labels alone", plain), ("labels and images", joint)):
            log_prob = each.label_log_prob(test)
            found[name] = reliability(log_prob, truth)
            accuracy = float((log_prob.argmax(-1) == truth).float().mean())
            print(f"{NUM_LABELS} {name}: accuracy {accuracy:.3f}, calibration error {found[name][2]:.3f}")
        energies = {"digits": -distribution.unnormalized_log_prob(test)}
        energies |= {name: -distribution.unnormalized_log_prob(each) for name, each in impostors(test).items()}
        typical = energies["digits"].quantile(0.95)
        for name, each in energies.items():
            print(
                f"  above the energy of 95 % of unseen digits: {float((each > typical).float().mean()):.0%} of {name}"
            )

    draw_digits(generate(joint, distribution.base, 6), options.output / "digits.png")
    draw_reliability(found, options.output / "reliability.png")
    draw_energies(energies, options.output / "energies.png")
    print(f"All in {time.perf_counter() - started:.0f} s. Results:")
    for path in sorted(options.output.iterdir()):
        print(f"  {path}")


if __name__ == "__main__":
    main()
