"""The table of families and methods in docs/vlm_hosts.md, from what the host refuses."""

from tables import table

from megavrc.reduction import METHODS
from megavrc.vlm.hosts import refusal
from megavrc.vlm.visual import FAMILIES


def hosts(_: str) -> str:
    """A row a method, a column a family; the reasons of empty cells in the last column."""
    rows = []
    for name, method in METHODS.items():
        why = [refusal(family, method) for family in FAMILIES]
        cells = ["" if reason else "yes" for reason in why]
        reasons = "; ".join(dict.fromkeys(reason for reason in why if reason))
        rows.append([f"`{name}`", *cells, reasons])
    return table(["method", *(f"`{family}`" for family in FAMILIES), "empty because"], rows)
