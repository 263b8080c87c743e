"""References read from a clone of posteriordb, and from a folder of files."""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "posteriordb"))
from references import Reference, references

DRAWS = np.random.default_rng(1).normal(size=(2, 3, 400)) * np.array([1.0, 2.0, 5.0])[:, None]  # (chains, P, draws)
NAMES, DATA = ["a", "b[1]", "b[2]"], {"N": 2, "y": [1.0, 2.0]}


def zipped(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(path.stem, json.dumps(value))


def written(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def assert_read(found: Reference) -> None:
    pooled = DRAWS.transpose(1, 0, 2).reshape(3, -1)
    assert found.parameters == NAMES
    assert found.data == DATA
    assert found.size == 90.0
    np.testing.assert_allclose(found.mean, pooled.mean(-1))
    np.testing.assert_allclose(found.sd, pooled.std(-1))
    standard = (pooled - pooled.mean(-1, keepdims=True)) / pooled.std(-1, keepdims=True)
    np.testing.assert_allclose(found.kurtosis, (standard**4).mean(-1))


def test_a_clone_of_posteriordb(tmp_path: Path) -> None:
    database = tmp_path / "posterior_database"
    drawn = database / "reference_posteriors" / "draws"
    written(database / "posteriors" / "data-model.json", {"data_name": "data"})
    written(database / "posteriors" / "data-other.json", {"data_name": "data"})  # without reference draws
    zipped(database / "data" / "data" / "data.json.zip", DATA)
    zipped(drawn / "draws" / "data-model.json.zip", [dict(zip(NAMES, each.tolist(), strict=True)) for each in DRAWS])
    diagnostics = {"effective_sample_size_bulk": [120.0, 90.0, 100.0]}
    written(drawn / "info" / "data-model.info.json", {"diagnostics": diagnostics})
    found = references(tmp_path)
    assert list(found) == ["data-model"]
    assert_read(found["data-model"]())


def test_a_folder_of_files(tmp_path: Path) -> None:
    pooled = DRAWS.transpose(0, 2, 1).reshape(-1, 3)
    saved = {"data": DATA, "parameters": NAMES, "reference": {"ess_bulk_min": 90.0}}
    moments = {"mean": pooled.mean(0).tolist(), "mean_square": (pooled**2).mean(0).tolist()}
    written(tmp_path / "data-model.json", {**saved, **moments, "draws_thinned": pooled.tolist()})
    found = references(tmp_path)
    assert list(found) == ["data-model"]
    assert_read(found["data-model"]())
