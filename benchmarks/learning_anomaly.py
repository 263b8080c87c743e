"""Digits of a class that was held out, told from those that were learned: areas under the receiver's curve.

Images are projected on their 24 principal components. Four fifths of the other nine classes are learned; the rest of
them is to be told from the class held out, by the energy of a network trained by denoising score matching, and by what
scikit-learn has. Each figure is a mean over the held-out classes 1, 4, 5, 7 and 9.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from learning_row import Figures, Goal, Row
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KernelDensity, NearestNeighbors
from torch import Tensor, nn

from pyro_ebm import DenoisingScoreMatching, fit, tilted

HELD_OUT = (1, 4, 5, 7, 9)
COMPONENTS, HIDDEN, STEPS = 24, 192, 1500
SIGMA = 0.3  # of the noise, where pixels are in [0, 1]: about a third of the distance between nearest neighbours


def digits_without(held_out: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is normal to learn, what is to be judged, `(N, 24)` each, and whether that is of the class held out."""
    found = load_digits()
    images, labels = found.data / 16, found.target
    normal = np.random.RandomState(seed).permutation(np.flatnonzero(labels != held_out))
    learned, rest = np.split(normal, [int(0.8 * len(normal))])
    judged = np.concatenate([rest, np.flatnonzero(labels == held_out)])
    project = PCA(COMPONENTS, random_state=0).fit(images[learned]).transform
    train, test = (torch.tensor(project(images[index]), dtype=torch.float32) for index in (learned, judged))
    return train, test, torch.tensor(labels[judged] == held_out)


def energies(train: Tensor, test: Tensor, seed: int) -> Tensor:
    """`-log p̃` at what is to be judged."""
    torch.manual_seed(seed)
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
    fit(
        smoothed,
        train,
        objective=DenoisingScoreMatching(SIGMA),
        num_steps=STEPS,
        batch_size=256,
        progress_bar=False,
    )
    with torch.no_grad():
        return -smoothed.unnormalized_log_prob(test)


def run(seed: int) -> Figures:
    found: dict[str, list[float]] = {}
    for held_out in HELD_OUT:
        train, test, is_held_out = digits_without(held_out, seed)
        started = time.process_time()
        scores = {"AUROC": energies(train, test, seed).numpy()}
        found.setdefault("s a class", []).append(time.process_time() - started)
        known, judged = train.numpy(), test.numpy()
        distances, _ = NearestNeighbors(n_neighbors=5).fit(known).kneighbors(judged)
        scores["of 5 nearest neighbours"] = distances.mean(1)
        scores["of a kernel density"] = -KernelDensity(bandwidth=0.4).fit(known).score_samples(judged)
        scores["of an isolation forest"] = -IsolationForest(random_state=seed).fit(known).score_samples(judged)
        for name, score in scores.items():
            found.setdefault(name, []).append(float(roc_auc_score(is_held_out.numpy(), score)))
    return {name: sum(values) / len(values) for name, values in found.items()}


ROWS = (Row("held-out digits by energy", run, {"AUROC": Goal(low=0.988), "s a class": Goal(high=20)}),)
