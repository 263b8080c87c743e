"""The README's example runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    namespace: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), namespace)
    draws = namespace["mcmc"].get_samples(group_by_chain=True)
    assert draws["z"].shape == (16, 200, 3, 2)
    table = capsys.readouterr().out
    assert "r_hat" in table
    assert "z[0, 0]" in table
