"""The table of methods of token reduction in docs/llmc.md, from what the methods state."""

from tables import table

from megavrc.reduction import METHODS, Method

HEAD = ["method", "paper", "acts", "needs", "redundancy", "prompt", "other tokens", "causal"]


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


def methods(_: str) -> str:
    """The table, and below it what is left out and what is followed."""
    order = ("baseline", "tower", "projector", "llm")
    ordered = sorted(
        METHODS.values(),
        key=lambda method: (
            order.index("baseline" if method.paper == "baseline" else method.place),
            method.name,
        ),
    )
    lines = [table(HEAD, list(map(cells, ordered))), ""]
    for method in ordered:
        notes = [
            method.left_out != "nothing" and f"left out: {method.left_out}",
            method.follows and f"follows {method.follows}",
            method.calibrated
            and f"the count depends on the content: `{method.calibrated}` is calibrated on other inputs",
        ]
        if any(notes):
            lines.append(f"- `{method.name}`: {'; '.join(note for note in notes if note)}.")
    return "\n".join(lines)
