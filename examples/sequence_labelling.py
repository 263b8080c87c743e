"""Label sequences with a conditional random field: sparse or neural emissions, exact marginals, draws of labellings.

1. Read sentences in CoNLL format (a word, a part-of-speech tag and a label to a line, an empty line between sentences);
   by default a small file that is made up here.
2. Train a linear-chain CRF on sparse features of words and tags to the optimum of `NLL + c2 |w|²`, by L-BFGS; or, with
   `--neural`, a network whose outputs are the emissions.
3. Label the test sentences by Viterbi's algorithm, and report the accuracy.
4. Draw whole labellings of the least certain sentence from the posterior, hand them to ArviZ, and draw its marginals.

    python examples/sequence_labelling.py
    python examples/sequence_labelling.py --train train.txt --test test.txt
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import arviz as az
import matplotlib as mpl
import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pyro_ebm import LinearChainCRF
from pyro_ebm.diagnostics.inference_data import inference_data

mpl.use("Agg")
import matplotlib.pyplot as plt

PAD = "<pad>"


@dataclass(frozen=True)
class Sentence:
    """Words with their tags and labels."""

    words: list[str]
    tags: list[str]
    labels: list[str]


def read_conll(path: Path) -> list[Sentence]:
    """The sentences of a file in CoNLL format."""
    blocks = path.read_text(encoding="utf-8").strip().split("\n\n")
    rows = [[line.split() for line in block.splitlines()] for block in blocks]
    return [Sentence(*(list(column) for column in zip(*each, strict=True))) for each in rows]


def invent_conll(path: Path, num_sentences: int, seed: int) -> None:
    """Write made-up sentences: noun, verb and prepositional phrases, with words that may be nouns or verbs."""
    choose = random.Random(seed)
    lexicon = {
        "DT": ["the", "a", "no", "every"],
        "JJ": ["old", "green", "sharp", "last"],
        "NN": ["trade", "report", "share", "rise", "fall", "market", "bank", "plan"],
        "MD": ["will", "may", "must"],
        "VB": ["trade", "report", "share", "rise", "fall", "plan", "take", "show"],
        "IN": ["in", "of", "for", "by"],
    }

    def phrase(kind: str, *tags: str) -> list[str]:
        kept = [tag for tag in tags if tag not in ("DT", "JJ", "MD") or choose.random() < 0.6]
        return [f"{choose.choice(lexicon[tag])} {tag} {'I' if i else 'B'}-{kind}" for i, tag in enumerate(kept)]

    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_sentences):
            lines = phrase("NP", "DT", "JJ", "NN") + phrase("VP", "MD", "VB")
            for _ in range(choose.randint(0, 3)):
                lines += phrase("PP", "IN") + phrase("NP", "DT", "JJ", "NN")
            noisy = [line if choose.random() < 0.8 else line.replace(line.split()[1], "XX", 1) for line in lines]
            file.write("\n".join(noisy) + "\n\n")


def features(sentence: Sentence) -> Iterator[list[str]]:
    """The features of each step: a constant, the words and tags around it, and pairs of tags."""
    words = [word.lower() for word in sentence.words]
    tags = sentence.tags
    for t in range(len(words)):
        found = ["b"]
        for name, column in (("w", words), ("p", tags)):
            around = ((d, column[t + d] if 0 <= t + d < len(column) else PAD) for d in range(-2, 3))
            found += [f"{name}[{d}]={value}" for d, value in around]
        found += [f"p[-1]|p[0]={tags[t - 1]}|{tags[t]}"] if t > 0 else []
        found += [f"p[0]|p[1]={tags[t]}|{tags[t + 1]}"] if t + 1 < len(tags) else []
        yield found


@dataclass(frozen=True)
class Batch:
    """Padded sentences: numbers of features `(N, T, 13)`, 0 for none, labels `(N, T)` and lengths `(N,)`."""

    features: Tensor
    labels: Tensor
    lengths: Tensor


class Vocabulary:
    """Numbers for the features and labels of training sentences."""

    def __init__(self, sentences: Iterable[Sentence]) -> None:
        self.features: dict[str, int] = {}
        self.labels: dict[str, int] = {}
        for sentence in sentences:
            for step in features(sentence):
                for feature in step:
                    self.features.setdefault(feature, len(self.features) + 1)
            for label in sentence.labels:
                self.labels.setdefault(label, len(self.labels))

    def encode(self, sentences: list[Sentence]) -> Batch:
        """Sentences as numbers; features and labels that training has not seen are none, and the first label."""
        lengths = torch.tensor([len(sentence.words) for sentence in sentences])
        numbers = torch.zeros(len(sentences), int(lengths.max()), 13, dtype=torch.long)
        labels = torch.zeros(numbers.shape[:2], dtype=torch.long)
        for i, sentence in enumerate(sentences):
            for t, step in enumerate(features(sentence)):
                numbers[i, t, : len(step)] = torch.tensor([self.features.get(feature, 0) for feature in step])
            labels[i, : lengths[i]] = torch.tensor([self.labels.get(label, 0) for label in sentence.labels])
        return Batch(numbers, labels, lengths)


class SparseEmissions(nn.Module):
    """A weight for each feature and label; the score of a label is the sum of those of a step's features."""

    def __init__(self, num_features: int, num_labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_features + 1, num_labels))

    def forward(self, features: Tensor) -> Tensor:
        """`(N, T, 13)` to scores `(N, T, K)`."""
        bags = features.flatten(0, 1)
        scores = nn.functional.embedding_bag(bags, self.weight, mode="sum", padding_idx=0)
        return scores.reshape(*features.shape[:2], -1)


class NeuralEmissions(nn.Module):
    """Embeddings of features, and a network over each step's sum."""

    def __init__(self, num_features: int, num_labels: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = SparseEmissions(num_features, width)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.network = nn.Sequential(nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, num_labels))

    def forward(self, features: Tensor) -> Tensor:
        """`(N, T, 13)` to scores `(N, T, K)`."""
        return self.network(self.embedding(features))


class Labeller(nn.Module):
    """Emissions and transitions."""

    def __init__(self, vocabulary: Vocabulary, neural: bool) -> None:
        super().__init__()
        emissions = NeuralEmissions if neural else SparseEmissions
        self.emissions = emissions(len(vocabulary.features), len(vocabulary.labels))
        self.transition = nn.Parameter(torch.zeros(len(vocabulary.labels), len(vocabulary.labels)))

    def forward(self, batch: Batch) -> LinearChainCRF:
        """The distribution of the labels of all sentences."""
        return LinearChainCRF(self.emissions(batch.features), self.transition, lengths=batch.lengths)

    def model(self, batch: Batch) -> None:
        """As a Pyro program, in which the labels are data."""
        with pyro.plate("sentence", len(batch.labels)):
            pyro.sample("labels", self(batch), obs=batch.labels)


def objective(labeller: Labeller, batch: Batch, c2: float) -> Tensor:
    """The negative log likelihood of the Pyro program, and `c2 |w|²`."""
    trace = pyro.poutine.trace(labeller.model).get_trace(batch)
    return c2 * sum(weight.square().sum() for weight in labeller.parameters()) - trace.log_prob_sum()


def train(labeller: Labeller, batch: Batch, c2: float, max_iter: int) -> float:
    """L-BFGS to the optimum, which with sparse emissions is the only one."""
    optimizer = torch.optim.LBFGS(
        labeller.parameters(),
        max_iter=max_iter,
        max_eval=2 * max_iter,
        history_size=10,
        tolerance_grad=1e-3,
        tolerance_change=1e-8,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(labeller, batch, c2)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(objective(labeller, batch, c2).detach())


def accuracy(crf: LinearChainCRF, batch: Batch) -> float:
    """The share of labels that are right in the best labellings."""
    inside = torch.arange(batch.labels.shape[1]) < batch.lengths.unsqueeze(-1)
    return float((crf.mode == batch.labels)[inside].double().mean())


def show(crf: LinearChainCRF, sentence: Sentence, names: list[str], draws: int, out: Path) -> None:
    """Draw labellings of one sentence, hand them to ArviZ, and make a picture of its marginals."""
    length = len(sentence.words)
    words = [f"{i}:{word}" for i, word in enumerate(sentence.words)]
    labels = crf.sample((4, draws // 4))  # independent draws, as of four chains
    log_probs = crf.log_prob(labels)
    data = inference_data(
        {"posterior": {"label": labels[..., :length]}, "sample_stats": {"lp": log_probs}},
        dims={"label": ["word"]},
        coords={"word": words},
    )
    data.to_netcdf(str(out / "labellings.nc"))
    print(f"\nLabellings of: {' '.join(sentence.words)}")
    for number, (path, log_prob) in enumerate(zip(*crf.top_paths(3), strict=True), 1):
        print(f"  {number}. probability {float(log_prob.exp()):.3f}: {' '.join(names[z] for z in path[:length])}")
    spread = az.summary(data, var_names=["label"])["sd"].astype(float)
    print(f"  least certain word: {words[int(np.argmax(spread.to_numpy()))]}; entropy {float(crf.entropy()):.2f} nats")
    shown = crf.marginals[:length].numpy().T
    figure, axes = plt.subplots(figsize=(max(4, 0.4 * length), 0.3 * len(names) + 1.5))
    image = axes.imshow(shown, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(length), sentence.words, rotation=90)
    axes.set_yticks(range(len(names)), names)
    figure.colorbar(image, label="posterior probability")
    figure.savefig(out / "marginals.png", bbox_inches="tight", dpi=120)
    print(f"  see {out / 'marginals.png'} and {out / 'labellings.nc'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="a file in CoNLL format; by default one is made up")
    parser.add_argument("--test", type=Path, help="likewise")
    parser.add_argument("--neural", action="store_true", help="emissions by a network")
    parser.add_argument("--c2", type=float, default=None, help="weight of the squares; by default 1, or 0.01 if neural")
    parser.add_argument("--max-iter", type=int, default=300, help="iterations of L-BFGS")
    parser.add_argument("--draws", type=int, default=1000, help="labellings to draw")
    parser.add_argument("--out", type=Path, default=Path("outputs/sequence_labelling"), help="folder for what is made")
    options = parser.parse_args()
    if (options.train is None) != (options.test is None):
        parser.error("give both --train and --test, or neither")
    pyro.set_rng_seed(0)
    torch.set_default_dtype(torch.float64)
    options.out.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory() as folder:
        files = [options.train or Path(folder) / "train.txt", options.test or Path(folder) / "test.txt"]
        if options.train is None:
            for file, number, seed in zip(files, (60, 40), (1, 2), strict=True):
                invent_conll(file, number, seed)
        sentences, unseen = map(read_conll, files)
    vocabulary = Vocabulary(sentences)
    batch, test = vocabulary.encode(sentences), vocabulary.encode(unseen)
    labeller = Labeller(vocabulary, options.neural)
    print(f"{len(sentences)} sentences, {sum(p.numel() for p in labeller.parameters())} weights")

    start = time.perf_counter()
    c2 = options.c2 if options.c2 is not None else (0.01 if options.neural else 1.0)
    loss = train(labeller, batch, c2, options.max_iter)
    with torch.no_grad():
        crf = labeller(test)
        print(f"objective {loss:.4f} in {time.perf_counter() - start:.1f} s")
        print(f"accuracy on {len(unseen)} other sentences: {accuracy(crf, test):.5f}")
        worst = int((crf.entropy() / test.lengths).argmax())
        one = Batch(test.features[worst : worst + 1], test.labels[worst : worst + 1], test.lengths[worst : worst + 1])
        scores = labeller.emissions(one.features)[0]
        single = LinearChainCRF(scores, labeller.transition, lengths=one.lengths[0])
        show(single, unseen[worst], list(vocabulary.labels), options.draws, options.out)


if __name__ == "__main__":
    main()
