"""A classifier of digits that is a density too: 200 labels, and 1300 images without one.

One network is trained by the labels alone, and one of the same shape by the labels and all images, by `SemiSupervised`
with denoising score matching. `-log p(x)` of the latter is to tell digits from what are none, and so is the confidence
of both in their labels: areas under the receiver's curve.
"""

from __future__ import annotations

import torch
from learning_row import Figures, Goal, Row
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Generator, Tensor, nn

from pyro_ebm import (
    DenoisingScoreMatching,
    EnergyDistribution,
    JointEnergy,
    SemiSupervised,
    fit,
    fitted_base,
)

NUM_TRAIN, NUM_LABELS, CLASSES, PIXELS, HIDDEN = 1500, 200, 10, 64, 256
SIGMA = 0.2  # of the noise on pixels in [0, 1]
STEPS = 1000
BINS = 15


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images in [0, 1] and labels to train on, `(1500, 64)`, and to test on, `(297, 64)`."""
    found = load_digits()
    images, labels = torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(images), generator=Generator().manual_seed(seed))
    images, labels = images[order], labels[order]
    return images[:NUM_TRAIN], labels[:NUM_TRAIN], images[NUM_TRAIN:], labels[NUM_TRAIN:]


class Centered(nn.Module):
    """Images in [0, 1] to values about zero, of unit scale."""

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 64)` to the same."""
        return (x - 0.3) / 0.3


def classifier() -> JointEnergy:
    layers = [nn.Linear(PIXELS, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, CLASSES)]
    return JointEnergy(nn.Sequential(Centered(), *layers), (PIXELS,), CLASSES)


def learned(seed: int, *, jointly: bool) -> tuple[JointEnergy, EnergyDistribution]:
    """A classifier by labels alone, or by all images as well."""
    torch.manual_seed(seed)
    images, labels, _, _ = digits(seed)
    labels = labels.clone()
    labels[NUM_LABELS:] = -1
    joint, base = classifier(), fitted_base(images + SIGMA * torch.randn_like(images))
    distribution = EnergyDistribution(joint.marginal(), base)
    if jointly:
        objective = SemiSupervised(DenoisingScoreMatching(SIGMA))
        fit(distribution, (images, labels), objective=objective, num_steps=STEPS, batch_size=256, progress_bar=False)
        return joint, distribution

    def cross_entropy(_: EnergyDistribution, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss = nn.functional.nll_loss(joint.label_log_prob(batch[0]), batch[1])
        return loss, {"loss": loss.detach()}

    data = images[:NUM_LABELS], labels[:NUM_LABELS]
    fit(distribution, data, objective=cross_entropy, num_steps=STEPS, batch_size=NUM_LABELS, progress_bar=False)
    return joint, distribution


def calibration_error(log_prob: Tensor, labels: Tensor) -> float:
    """The expected calibration error: |accuracy - confidence|, averaged over bins of confidence."""
    confidence, predicted = log_prob.exp().max(-1)
    right = (predicted == labels).to(confidence)
    which = (confidence * BINS).ceil().clamp(1, BINS)
    parts = [(right - confidence)[which == each].sum().abs() for each in range(1, BINS + 1)]
    return float(sum(parts) / len(labels))


def impostors(images: Tensor, seed: int) -> dict[str, Tensor]:
    """What are no digits, `(N, 64)` each."""
    generator = Generator().manual_seed(seed)
    order = torch.rand(images.shape, generator=generator).argsort(-1)
    gaussian = fitted_base(images)
    torch.manual_seed(seed)
    return {
        "noise": torch.rand(images.shape, generator=generator),
        "shuffled pixels": images.gather(-1, order),
        "a Gaussian": gaussian.sample((len(images),)),
        "mixes of two": 0.5 * (images + images[torch.randperm(len(images), generator=generator)]),
    }


@torch.no_grad()
def judged(joint: JointEnergy, distribution: EnergyDistribution, seed: int) -> Figures:
    """How well it classifies, and how well it tells impostors, by density and by confidence."""
    _, _, images, labels = digits(seed)
    log_prob = joint.label_log_prob(images)
    found = {
        "accuracy": float((log_prob.argmax(-1) == labels).float().mean()),
        "calibration error": calibration_error(log_prob, labels),
        "cross-entropy": float(nn.functional.nll_loss(log_prob, labels)),
    }
    which = [0] * len(images) + [1] * len(images)
    for name, impostor in impostors(images, seed).items():
        both = torch.cat([images, impostor])
        energy, doubt = -distribution.unnormalized_log_prob(both), -joint.label_log_prob(both).amax(-1)
        found[f"{name}, by density"] = float(roc_auc_score(which, energy.numpy()))
        found[f"{name}, by confidence"] = float(roc_auc_score(which, doubt.numpy()))
    return found


def run_jointly(seed: int) -> Figures:
    return judged(*learned(seed, jointly=True), seed)


def run_by_labels(seed: int) -> Figures:
    found = judged(*learned(seed, jointly=False), seed)
    return {name: value for name, value in found.items() if "density" not in name}


ROWS = (
    Row(
        "200 labels and all images",
        run_jointly,
        {"accuracy": Goal(low=0.97), "calibration error": Goal(high=0.02)},
    ),
    Row("200 labels alone", run_by_labels, {}),
)
