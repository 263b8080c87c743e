"""Runs `on_device.py` in a process of its own: for its device torch starts threads, with which others cannot fork."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent / "on_device.py"


def test_what_runs_on_a_device() -> None:
    assert "pretend_device" not in sys.modules  # or other tests would have its device too
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS.parents[1])
    assert done.returncode in (0, 5), f"{done.stdout}\n{done.stderr}"  # 5: skipped as a whole
    assert " passed" in done.stdout or " skipped" in done.stdout, done.stdout
