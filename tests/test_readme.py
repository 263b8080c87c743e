"""The README's examples run as they stand."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def run(number):
    example = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)[number]
    namespace: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), namespace)
    return namespace


def test_the_example(capsys):
    draws = run(0)["mcmc"].get_samples(group_by_chain=True)
    assert draws["z"].shape == (16, 200, 3, 2)
    table = capsys.readouterr().out
    assert "r_hat" in table
    assert "z[0, 0]" in table


def test_the_factor_graph():
    draws = run(1)["mcmc"].get_samples(group_by_chain=True)
    assert draws["label"].shape == (16, 500, 8, 8)
