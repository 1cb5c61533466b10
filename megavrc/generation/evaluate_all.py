"""`megavrc evaluate all`: every metric that the clips at hand allow, each in a result file, and one page of them."""

from collections.abc import Callable, Iterator
from pathlib import Path

from megavrc.errors import UserError, check_least
from megavrc.evaluation.alignment import measure_alignment
from megavrc.evaluation.clip_files import ArrayClips
from megavrc.evaluation.clip_model import ClipModel
from megavrc.evaluation.clip_source import (
    ClipSource,
    Part,
    check_readable,
    made_with,
    pairs,
    read_whole,
    source_facts,
)
from megavrc.evaluation.clipsim import measure_clipsim
from megavrc.evaluation.distances import Kind, measure_distances
from megavrc.evaluation.drift import measure_drift
from megavrc.evaluation.networks import open_network
from megavrc.evaluation.protocols import FVDProtocol, ProtocolName, protocol_of, real_windows
from megavrc.evaluation.redundancy import measure_redundancy
from megavrc.evaluation.scene_scores import score_scenes
from megavrc.evaluation.statistics import MetricReport
from megavrc.files import check_place, write_atomic
from megavrc.generation.clip_sources import asked_for, is_model, open_source
from megavrc.generation.evaluate_clips import FEWEST_DRAWS
from megavrc.generation.evaluate_copying import measure_model_copying
from megavrc.generation.evaluate_scenes import INTERVAL, measured, scene_rows
from megavrc.hardware import check_device
from megavrc.progress import progress
from megavrc.results import case, check_result_place, result, table, write_result
from megavrc.user_files import resolve

FRAMES = 16  # of a clip that CLIP sees
MARK = "<!-- megavrc evaluate all -->"  # the page begins so, and may be replaced
TITLES = {
    "drift": "clips that freeze, loop, fade or blur",
    "alignment": "what captions of megavrc make_shapes say, found in pixels",
    "scenes": "what captions of megavrc make_scenes say, found in pixels (docs/scene_scores.md)",
    "clipsim": "cosine of captions and frames",
    "fvd": "Frechet distance from the real clips, precision and recall",
    "kvd": "kernel distance from the real clips",
    "redundancy": "how much of a clip its earlier frames hold",
    "copying": "bits of true tokens where pixels change and where they do not",
}


def all_metrics(
    real: Path,
    clips: Path,
    out: Path,
    planned: Path | None = None,
    clip: Path | None = None,
    i3d: Path | None = None,
    network: str = "i3d",
    protocol: ProtocolName = "custom",
    change: list[str] | None = None,
    draws: int = 200,
    seed: int = 0,
    batch: int = 8,
    device: str = "auto",
) -> None:
    """Every metric that the clips allow: OUT/NAME.json of each, and OUT/metrics.md, a page of all with what is missing.

    Args:
        real: the real clips, given as for megavrc evaluate fvd.
        clips: clips to measure.
        out: folder for the results.
        planned: list of the clips that must be there, or be generated: JSON lines with id, caption or label.
        clip: folder of a CLIP model (default: $MEGAVRC_CLIP).
        i3d: the TorchScript file of the I3D network (default: $MEGAVRC_I3D).
        network: network of the distances, as for megavrc evaluate fvd.
        protocol: protocol of the distances.
        change: single fields of the protocol, NAME=VALUE.
        draws: draws of each bootstrap.
        seed: seed of the choice of real clips, of bootstraps and of generated clips.
        batch: clips processed at once.
        device: `cpu` or `cuda`; auto is cuda where there is one.
    """
    check_least(draws=(draws, FEWEST_DRAWS), batch=(batch, 1))
    _check_places(out)
    device = str(check_device(device))
    true = open_source(real, seed=seed, batch=batch, device=device)
    chosen = protocol_of(protocol, changes=change or ())
    model = is_model(clips)
    like = true if planned or not model else _answered(true, chosen, seed)
    source = open_source(clips, planned, like, seed, batch, device)
    check_readable(true, source)  # else single metrics would end
    source = _made(source) if model else source

    def distance(kind: Kind) -> MetricReport:
        found, store = open_network(network, i3d, device), out / "features"
        compared = source
        if model == "tokenizer":  # of the windows that the protocol compares, not of whole clips
            windows = asked_for(true, chosen, {model}, seed)
            compared = open_source(clips, like=windows, batch=batch, device=device)
        return measure_distances(kind, true, compared, None, found, chosen, True, draws, seed, store, batch)

    def clipsim() -> MetricReport:
        frames = min(FRAMES, *map(source.length, range(len(source.clips))))
        return measure_clipsim(
            source, ClipModel(resolve("clip", clip), device), frames=frames, draws=draws, seed=seed
        )

    def copying() -> MetricReport:
        if model != "generator":
            raise UserError("asks a converted folder, not clips")
        return measure_model_copying(clips, like, None, draws, seed, device)

    metrics: dict[str, Callable[[], MetricReport]] = {
        "drift": lambda: measure_drift(source, like, draws, seed),
        "alignment": lambda: measure_alignment(source, like),
        "scenes": lambda: _scenes(source, like, true, real),
        "clipsim": clipsim,
        "fvd": lambda: distance("fvd"),
        "kvd": lambda: distance("kvd"),
        "redundancy": lambda: measure_redundancy(source, draws=draws, seed=seed),
        "copying": copying,
    }
    config = {"real": str(real), "clips": str(clips), "planned": str(planned or "")}
    parts = [_head(source, like, true, chosen), *_sections(metrics, out, config, device)]
    text = "\n\n".join(parts) + "\n"
    write_atomic(out / "metrics.md", text.encode())
    print(f"{text}\n{out / 'metrics.md'}")


def _made(source: ClipSource) -> ClipSource:
    """The clips of a model, made once for all metrics."""
    made = [read_whole(source, index) for index in progress(range(len(source.clips)), source.name)]
    return ArrayClips(source.name, source.clips, made, made_with=made_with(source))


def _answered(true: ClipSource, protocol: FVDProtocol, seed: int) -> ClipSource:
    """The real clips for which a model makes its own: all, or where there are more, those that the protocol chooses."""
    if len(true.clips) <= protocol.n:
        return true
    return Part(true, [window.clip for window in real_windows(true, protocol, seed=seed).windows])


def _head(source: ClipSource, like: ClipSource, true: ClipSource, protocol: FVDProtocol) -> str:
    """The page's first lines."""
    head = f"{MARK}\n\n# {source.name} against {true.name}\n\n{len(source.clips)} clips, 95% intervals in brackets."
    if like is true:
        return head
    made_for = f"{len(like.clips)} of {len(true.clips)} real clips"
    return f"{head} Made for {made_for}, which the protocol {protocol.name} chooses."


def _check_places(out: Path) -> None:
    """Refuse, before anything is measured, to replace what no earlier call wrote."""
    for name in TITLES:
        check_result_place(out / f"{name}.json")
    check_place(out / "metrics.md", (MARK.encode(),), "page of megavrc evaluate all")


def _sections(
    metrics: dict[str, Callable[[], MetricReport]], out: Path, config: dict[str, str], device: str
) -> Iterator[str]:
    """Measure, write the result, and say it; of a metric that these clips do not allow, why."""
    missing = []
    for name, measure in metrics.items():
        try:
            report = measure()
        except UserError as error:
            missing.append(f"- `{name}`: {error}")
            continue
        content = result(f"evaluate {name}", config, report.cases, report.metrics, report.protocol, device)
        write_result(out / f"{name}.json", content)
        known = dict.fromkeys(key for row in report.cases for key in row["metrics"] if "/" not in key)
        lines = [f"## {name}: {TITLES[name]}", table(content, list(known))]
        if report.metrics:
            lines.append(table(content, ["metrics"]))
        yield "\n\n".join([*lines, *(f"Note: {line}." for line in report.lines)])
    if len(missing) == len(metrics):
        raise UserError(f"nothing can be measured: {missing[0].removeprefix('- ')}")
    if missing:
        yield "\n".join(["## Not measured\n", *missing])


def _scenes(source: ClipSource, like: ClipSource, true: ClipSource, real: Path) -> MetricReport:
    """Scores of scenes, if the real clips are a split of their manifest; `like` are those that are asked for."""
    manifest, colon, split = str(real).rpartition(":")
    if not colon:
        raise UserError("the real clips must be given as manifest.jsonl:SPLIT of megavrc make_scenes")
    rows = zip(true.clips, scene_rows(Path(manifest), split), strict=True)
    by_key = {clip.key: scene for clip, (_, _, scene) in rows}
    scenes = [by_key[clip.key] for clip in like.clips]
    cases, facts = [], {"sources": [source_facts(each) for each in (source, like)]}
    for each, order in ((source, pairs(like, source)), (like, range(len(like.clips)))):
        names = [f"{each.name}: clip {each.clips[index].key}" for index in order]
        scores = score_scenes((read_whole(each, index) for index in order), scenes, names)
        cases.append(case(each.name, dict(measured(scores))))
    return MetricReport(cases, {}, {"interval": INTERVAL} | facts)
