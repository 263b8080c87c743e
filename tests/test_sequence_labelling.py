"""The example on sequence labelling: it runs, and reaches the known optimum where its data are there."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import sequence_labelling as example

DATA = Path(__file__).parents[2] / "shared" / "data" / "chunking"


@pytest.mark.parametrize("options", [[], ["--neural"]])
def test_it_runs(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["example", "--max-iter=3", f"--out={tmp_path}", "--draws=100", *options])
    try:
        example.main()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {"labellings.nc", "marginals.png"} <= {file.name for file in tmp_path.iterdir()}


@pytest.mark.skipif(not DATA.exists(), reason="the chunking data are not there: ../shared/data/chunking")
def test_the_optimum_on_chunking() -> None:
    reference = json.loads((DATA / "reference.json").read_text())
    sentences, unseen = (example.read_conll(DATA / name) for name in ("chtrain.txt", "chtest.txt"))
    assert [list(row) for row in zip(unseen[0].words, unseen[0].tags, unseen[0].labels, strict=True)] == (
        reference["first_test_sentence"]
    )
    vocabulary = example.Vocabulary(sentences)
    labeller = example.Labeller(vocabulary, neural=False).double()
    loss = example.train(labeller, vocabulary.encode(sentences), c2=1.0, max_iter=300)
    assert abs(loss - reference["objective_nll_plus_c2_sq"]) < 0.01
    test = vocabulary.encode(unseen)
    with torch.no_grad():
        crf = labeller(test)
        assert abs(example.accuracy(crf, test) - reference["test_token_accuracy"]) < 1e-4
        assert abs(-float(crf.log_prob(test.labels).sum()) - reference["test_nll"]) < 0.1
        assert abs(float(crf.log_partition()[0]) - reference["first_test_logZ"]) < 0.05
        names = list(vocabulary.labels)
        order = [names.index(label) for label in reference["labels"]]
        expected = torch.tensor(reference["first_test_marginals"], dtype=torch.float64)
        found = crf.marginals[0, : len(expected)][:, order]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
