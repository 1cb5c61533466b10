"""Write the table of methods of token reduction into docs/llmc.md, from what the methods state.

python docs/figures/methods.py
"""

from pathlib import Path

from megavrc.reduction import METHODS, Method

PAGE = Path(__file__).resolve().parents[1] / "llmc.md"
START, END = "<!-- methods: python docs/figures/methods.py writes this -->\n", "<!-- end of methods -->\n"
HEAD = ("method", "paper", "acts", "needs", "redundancy", "prompt", "other tokens", "causal")


def cells(method: Method) -> list[str]:
    """One row."""
    layers = ", ".join(map(str, method.layers))
    acts = {"tower": "tower", "projector": "before the LLM", "llm": f"layer {layers} of {method.depth}"}[
        method.place
    ]
    number = method.paper.partition("v")[0]
    return [
        f"`{method.name}` {method.title}",
        "baseline" if method.paper == "baseline" else f"[{method.paper}](https://arxiv.org/abs/{number})",
        acts,
        ", ".join(f"`{need}`" for need in method.needs) or "nothing",
        method.kind + (", frame by frame" if method.scope == "frame" else ""),
        "guides" if method.guided else "",
        method.rest,
        "yes" if method.causal else "",
    ]


def section() -> str:
    """The table, and below it what is left out and what is followed."""
    order = ("baseline", "tower", "projector", "llm")
    methods = sorted(
        METHODS.values(),
        key=lambda method: (
            order.index("baseline" if method.paper == "baseline" else method.place),
            method.name,
        ),
    )
    rows = [HEAD, ["---"] * len(HEAD), *map(cells, methods)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.append("")
    for method in methods:
        notes = [
            method.left_out != "nothing" and f"left out: {method.left_out}",
            method.follows and f"follows {method.follows}",
            method.calibrated
            and f"the count depends on the content: `{method.calibrated}` is calibrated on other inputs",
        ]
        if any(notes):
            lines.append(f"- `{method.name}`: {'; '.join(note for note in notes if note)}.")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page with the table as it should be."""
    before, rest = PAGE.read_text().split(START)
    return before + START + section() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
