"""Tables in Markdown, and the file whose sections the benchmarks write."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

TITLE = "# Results\n\nEach section is written by the script that it names.\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its columns aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (header, *rows)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """The processor, the number of its cores here, the system, and the date."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = re.findall(r"^model name\s*: (.+)$", information.read_text(), re.MULTILINE)
        model = names[0] if names else model
    date = datetime.date.today().isoformat()
    return f"{date}, {model}, {os.cpu_count()} cores, one used; Python {platform.python_version()}"


def write_section(path: Path, name: str, text: str) -> None:
    """Replace a section of second order in a file, or add it; the others stay as they are."""
    old = path.read_text() if path.exists() else TITLE
    parts = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    new = f"## {name}\n\n{text.strip()}\n"
    heading = f"## {name}\n"
    if any(part.startswith(heading) for part in parts):
        parts = [new if part.startswith(heading) else part for part in parts]
    else:
        parts.append(new)
    path.write_text("\n".join(part.strip() + "\n" for part in parts))
