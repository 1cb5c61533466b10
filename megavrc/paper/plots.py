"""Figures 1, 2, 4, 5, 6 and 9 of the paper as plots: pure functions of result files.

Drawn for a column of a paper, in letters of 8 points. Shades differ in lightness and markers in form, so that they
survive grey; what is only published is hollow.
"""

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from pathlib import Path
from typing import Any, NamedTuple

from megavrc.errors import UserError
from megavrc.files import check_fields
from megavrc.paper.measured import Exhibit, Measured, published
from megavrc.report.figures import panels, stacked_shares
from megavrc.results import Metric
from megavrc.video import VideoError, read_picture

COLUMN, TEXT = 3.4, 8  # inches; points
GIB = 2**30
QUESTIONS = {"consistency": "Video consistency", "text_match": "Video-text match"}
CAPS = {"capsize": 2, "elinewidth": 0.8}


class Series(NamedTuple):
    """The style of a method in a figure."""

    label: str
    colour: str
    marker: str
    line: str
    hatch: str


VRC = Series("VRC", "#174a84", "o", "-", "")
TOKEN = Series("Loong*", "#e8963c", "s", "--", "///")
LATTE = Series("Latte", "#8a8a8a", "^", ":", "...")
METHODS = {"vrc": VRC, "token": TOKEN}


def errors(values: Sequence[Metric], scale: float = 1) -> list[list[float]] | None:
    """Lengths of error bars, below and above; None where no spread is known."""
    if all(value.get("low") is None for value in values):
        return None
    reach = [(value["value"], value.get("low"), value.get("high")) for value in values]
    return [
        [0.0 if low is None else scale * max(0.0, value - low) for value, low, _ in reach],
        [0.0 if high is None else scale * max(0.0, high - value) for value, _, high in reach],
    ]


def dots(axis: Any, xs: Sequence[float], values: Sequence[Metric], style: Series) -> None:
    """Points with error bars, joined."""
    axis.errorbar(
        xs,
        [value["value"] for value in values],
        yerr=errors(values),
        color=style.colour,
        marker=style.marker,
        linestyle=style.line,
        markersize=4,
        capsize=2,
        label=style.label,
    )


def hollow(axis: Any, x: float, y: float, style: Series, label: str) -> None:
    """A point that is only published."""
    axis.plot([x], [y], style.marker, markersize=4, markerfacecolor="white", color=style.colour, label=label)


def _legend_above(axis: Any, height: float = 1.0) -> None:
    """A legend that hides nothing; `height`: of its foot, in that of the axis."""
    axis.legend(loc="lower left", bbox_to_anchor=(-0.1, height), ncols=2, fontsize=7)


def fig1(found: Measured) -> Exhibit:
    """Distance from real clips against seconds, by size and method."""
    data = found.matrix.lists["dataset"][found.matrix.first]["title"]
    figure, (axis,) = panels(1, width=COLUMN, height=3.1, text=TEXT)
    for model, variant in (("vrc", "vrc-4"), ("token", "token")):
        points = []
        for size in found.matrix.lists["size"]:
            seconds = found.seconds(size, variant)
            distance = found.distance(f"fvd-{model}-{found.matrix.first}-{size}")
            if seconds and distance:
                points.append((size, seconds, distance))
        if points:
            names, times, distances = zip(*points, strict=True)
            style, xs = METHODS[model], [time["value"] for time in times]
            dots(axis, xs, distances, style)
            axis.errorbar(
                xs, [d["value"] for d in distances], xerr=errors(times), fmt="none", color=style.colour
            )
            for name, x, distance in zip(names, xs, distances, strict=True):
                axis.annotate(name, (x, distance["value"]), textcoords="offset points", xytext=(4, 4))
    if found.matrix.first in published()["table1"]["columns"] and found.distance_name == "FVD":
        for name, style in (("VRC", VRC), ("Loong*", TOKEN), ("Latte", LATTE)):
            x, y = (_published(table, name, key) for table, key in (("table2", "xl"), ("table1", "ffs")))
            hollow(axis, x, y, style, f"{name} XL, as published")
    axis.set(xscale="log", xlabel="seconds a clip", ylabel=f"{_label(found)}, {data}")
    axis.set_ylim(bottom=0)
    if axis.has_data():
        low, high = axis.get_xlim()
        decades = range(floor(log10(low)), ceil(log10(high)) + 1)
        axis.set_xticks([s * 10.0**k for k in decades for s in (1, 2, 5) if low <= s * 10.0**k <= high])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.legend(loc="lower center", bbox_to_anchor=(0.45, 1), ncols=2, fontsize=7)
    made = found.exhibit(
        "fig1", "Figure 1. Distance from real clips against seconds for one clip of 17 frames"
    )
    made.figure = figure
    made.notes.append(
        "Bars are 95% intervals of the distance and the range of the times; lower left is better."
    )
    made.notes.append(
        "Published points are of XL on an A100: the paper prints the numbers of Tables 1 and 2 only, and "
        "does not say that Table 1 is of XL."
    )
    return made


def _label(found: Measured) -> str:
    """What an axis of distances is called: in two lines where it is long."""
    return found.distance_name.replace(", ", ",\n")


def _published(table: str, name: str, key: str) -> float:
    [row] = [row for row in published()[table]["rows"] if row["name"] == name]
    return float(row[key])


def fig2(found: Measured) -> Exhibit:
    """The bytes that H.264 spends on each frame, and the blocks that stay as they were."""
    made = found.exhibit("fig2", "Figure 2. Redundancy between frames")
    content = found.read("redundancy", protocol={"clips": int, "frames": int, "stride": int, "encoder": str})
    tokens = found.read("redundancy-tokens")
    if content is None:
        return made
    strip = _picture(found.matrix.jobs["redundancy"].product.with_suffix(".png"))
    figure, axes = panels(2 if strip is None else 4, columns=2, width=COLUMN, height=2.1, text=TEXT)
    bars, shares, *rest = axes
    for axis in rest:
        axis.remove()
    if strip is not None:
        below = figure.add_subplot(2, 1, 2)
        below.imshow(strip)
        below.set_axis_off()
    for shift, (mode, style, name) in enumerate((("ippp", VRC, "I and P"), ("paper", LATTE, "with B"))):
        sizes = found.numbered("redundancy", f"H.264 {mode}", "packet/")
        xs = [frame + 1 + 0.4 * (shift - 0.5) for frame in sizes]
        _bars(bars, xs, list(sizes.values()), style, 0.4, f"{name} frames")
    bars.set(xlabel="frame", ylabel="bytes of its packet")
    bars.set_xticks([frame + 1 for frame in sizes])
    _legend_above(bars)
    blocks = found.row("redundancy", "blocks of pixels")
    same = {"16x16 blocks\nof pixels": found.number("redundancy", blocks, "unchanged")}
    if tokens:
        equal = found.numbered("redundancy-tokens", "tokens of latent frames", "equal_to_the_one_before/")
        same |= {f"tokens, latent\nframe {frame}": value for frame, value in equal.items() if frame > 1}
    for place, value in enumerate(same.values()):
        shares.barh(
            place, 100 * value["value"], 0.6, xerr=errors([value], 100), color=VRC.colour, error_kw=CAPS
        )
    shares.set_yticks(range(len(same)), list(same))
    shares.set(xlim=(0, 100), ylim=(len(same) - 0.3, -0.7), xlabel="as in the frame before, %")
    made.figure = figure
    made.notes.append(_coding(content["protocol"], found.row("redundancy", "H.264 paper")))
    return made


def _picture(path: Path) -> Any:
    """The pixels of a picture file, None where there is none."""
    try:
        return read_picture(path.read_bytes()) if path.exists() else None
    except VideoError as error:
        raise UserError(f"{path}: not a picture that can be read ({error.reason})") from None


def _coding(protocol: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    kinds = check_fields("the result redundancy: facts of H.264 paper", row.get("facts"), {"frames": list})
    return (
        f"Means of {protocol['clips']} clips with 95% intervals, {protocol['frames']} frames at stride "
        f"{protocol['stride']}; {protocol['encoder']}. The first packet also holds 600 to 700 bytes of headers. "
        f"With B frames: the paper's literal command, which gives {', '.join(map(str, kinds['frames']))}, "
        "not the I P P P P that its figure names."
    )


def _bars(
    axis: Any, xs: Sequence[float], values: Sequence[Metric], style: Series, width: float, label: str
) -> None:
    axis.bar(
        xs,
        [value["value"] for value in values],
        width,
        yerr=errors(values),
        color=style.colour,
        hatch=style.hatch,
        edgecolor="white",
        error_kw=CAPS,
        label=label,
    )


def _distances(axis: Any, found: Measured, title: str, xlabel: str, jobs: Mapping[str, str]) -> None:
    """The last touch of a panel: VRC's distances from real clips by what stands on its x axis.

    Args:
        jobs: name on the axis -> the job that measures it.
    """
    there = {place: value for place, job in enumerate(jobs.values()) if (value := found.distance(job))}
    if there:
        dots(axis, list(there), list(there.values()), VRC)
    elif not axis.has_data():
        axis.text(0.5, 0.5, "missing", transform=axis.transAxes, ha="center")
    axis.set_xticks(range(len(jobs)), list(jobs))
    axis.set(title=title, xlabel=xlabel, ylabel=_label(found), xlim=(-0.5, len(jobs) - 0.5))
    axis.set_ylim(bottom=0)


def fig4(found: Measured) -> Exhibit:
    """Distance from real clips by size of the model, for each data set."""
    datasets, sizes = found.matrix.lists["dataset"], found.matrix.lists["size"]
    made = found.exhibit("fig4", "Figure 4. VRC by size of the model")
    made.figure, axes = panels(len(datasets), columns=2, width=COLUMN, height=2.0, text=TEXT)
    for axis, (key, item) in zip(axes, datasets.items(), strict=True):
        jobs = {size["title"]: f"fvd-vrc-{key}-{name}" for name, size in sizes.items()}
        _distances(axis, found, item["title"], "size of the model", jobs)
    made.notes.append("Bars are 95% intervals. The paper prints no numbers for this figure.")
    return made


def fig5(found: Measured) -> Exhibit:
    """Distance from real clips by rate of compression, beside the model without compression."""
    datasets, rates, main = (*(found.matrix.lists[key] for key in ("dataset", "rate")), found.matrix.main)
    made = found.exhibit("fig5", "Figure 5. VRC by rate of compression")
    made.figure, axes = panels(len(datasets), columns=2, width=COLUMN, height=2.0, text=TEXT)
    for axis, (key, item) in zip(axes, datasets.items(), strict=True):
        if base := found.distance(f"fvd-token-{key}-{main}"):
            axis.axhline(base["value"], color=TOKEN.colour, linestyle=TOKEN.line, label=TOKEN.label)
            if base.get("low") is not None:
                axis.axhspan(base["low"], base["high"], color=TOKEN.colour, alpha=0.2, linewidth=0)
        if key in published()["table1"]["columns"] and found.distance_name == "FVD":
            hollow(axis, list(rates).index("vrc"), _published("table1", "VRC", key), VRC, "VRC, as published")
            line = _published("table1", "Loong*", key)
            axis.axhline(line, color=TOKEN.colour, linestyle=":", label="Loong*, as published")
        jobs = {str(rate["area"]): f"fvd-{name}-{key}-{main}" for name, rate in rates.items()}
        _distances(axis, found, item["title"], "compression rate (area)", jobs)
    if axes[0].has_data():
        _legend_above(axes[0], 1.15)
    made.notes.append(
        "Bars and band are 95% intervals. Rate 1, block prediction without compression, is ours: without it the gain "
        "of compression cannot be told from that of predicting whole frames. The paper prints numbers for rate 4 and "
        "the line only (Table 1)."
    )
    return made


def fig6(found: Measured) -> Exhibit:
    """Peak memory of training and of inference, by size."""
    made = found.exhibit("fig6", "Figure 6. GPU memory")
    batches = {"train_batch": int, "batch": int, "precision": str}
    content = found.read("memory", batches, {"how": str})
    if content is None:
        return made
    for row in content["cases"]:
        check_fields(f"the result memory: {row['name']}", row["config"], {"preset": str, "prediction": str})
    figure, axes = panels(2, columns=2, width=COLUMN, height=2.2, text=TEXT)
    sizes = list(dict.fromkeys(row["config"]["preset"] for row in content["cases"]))
    what = {"training": content["config"]["train_batch"], "inference": content["config"]["batch"]}
    for axis, (purpose, batch) in zip(axes, what.items(), strict=True):
        for shift, (prediction, style) in enumerate((("token", TOKEN), ("segment", VRC))):
            values = {
                sizes.index(row["config"]["preset"]): peak["value"] / GIB
                for row in content["cases"]
                if row["config"]["prediction"] == prediction
                and (peak := row["metrics"].get(purpose, {"value": None}))["value"]
            }
            xs = [place + 0.4 * (shift - 0.5) for place in values]
            _bars(axis, xs, [{"value": value} for value in values.values()], style, 0.4, style.label)
        axis.axhline(24, color="black", linestyle=":", linewidth=1)
        axis.annotate("24 GiB", (-0.45, 24), textcoords="offset points", xytext=(0, 2), fontsize=7)
        titles = found.matrix.lists["size"]
        axis.set_xticks(range(len(sizes)), [titles.get(size, {}).get("title", size) for size in sizes])
        axis.set(title=f"{purpose}, batch {batch}", xlabel="size", ylabel="peak, GiB")
        axis.set_ylim(top=max(28, axis.get_ylim()[1]))
    _legend_above(axes[0], 1.15)
    made.figure = figure
    how, config = content["protocol"]["how"], content["config"]
    made.notes.append(
        f"{how.capitalize()}, {config['precision']}, without what CUDA itself takes (about 1 GiB). The paper says "
        "about 30% less in training and 20% less in inference, and neither its precision nor its attention."
    )
    return made


def fig9(found: Measured) -> Exhibit:
    """Shares of answers of the blind user study."""
    made = found.exhibit("fig9", "Figure 9. Blind user study: which clip is better")
    rows = {
        f"{QUESTIONS[row['name']]},\nas published": [
            {"value": row[key]} for key in ("vrc", "neither", "token")
        ]
        for row in published()["fig9"]["rows"]
    }
    names = ["VRC", "no difference", "Loong*"]
    if content := found.read("user-study", {"first": str, "second": str}):
        first, second = content["config"]["first"], content["config"]["second"]
        for row in content["cases"]:
            shares = [found.number("user-study", row, choice) for choice in ("first", "tie", "second")]
            rows[f"{QUESTIONS.get(row['name'], row['name'])},\nmeasured"] = shares
        for place, name in (
            (0, first),
            (2, second),
        ):  # whoever was the first: the colours say no more than that
            if name.casefold() != names[place].casefold():
                names[place] += f"; measured: {name}"
        answers = content["metrics"].get("answers", {}).get("value")
        made.notes.append(
            f"Measured: {first} (left) against {second} (right), {answers} answers; intervals over prompts and raters."
        )
    made.figure = stacked_shares(rows, names)
    made.notes.append(
        "As published: 300 answers to 50 pairs of clips. No whole numbers of answers give these percentages out of 300 "
        "or 150, and the paper gives no interval."
    )
    return made
