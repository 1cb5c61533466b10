"""The programs of the documentation."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def programs_of(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
