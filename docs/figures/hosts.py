"""Write the table of families and methods into docs/llmc.md, from what the host refuses.

python docs/figures/hosts.py
"""

from pathlib import Path

from megavrc.reduction import METHODS
from megavrc.vlm.hosts import refusal
from megavrc.vlm.visual import FAMILIES

PAGE = Path(__file__).resolve().parents[1] / "llmc.md"
START, END = "<!-- hosts: python docs/figures/hosts.py writes this -->\n", "<!-- end of hosts -->\n"


def section() -> str:
    """A row a method, a column a family; the reasons of empty cells in the last column."""
    lines = ["| method | " + " | ".join(f"`{family}`" for family in FAMILIES) + " | empty because |"]
    lines.append("| --- " * (len(FAMILIES) + 2) + "|")
    for name, method in METHODS.items():
        why = [refusal(family, method) for family in FAMILIES]
        cells = ["" if reason else "yes" for reason in why]
        reasons = "; ".join(dict.fromkeys(reason for reason in why if reason))
        lines.append(f"| `{name}` | " + " | ".join([*cells, reasons]) + " |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page with the table as it should be."""
    before, rest = PAGE.read_text().split(START)
    return before + START + section() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
