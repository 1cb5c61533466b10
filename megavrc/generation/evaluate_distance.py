"""`megavrc evaluate fvd` and `kvd`: how far clips are from real ones, by the features of a video network."""

from pathlib import Path
from typing import Any

from megavrc.errors import UserError, check_least
from megavrc.evaluation.clip_source import ClipSource
from megavrc.evaluation.distances import Kind, measure_distances
from megavrc.evaluation.features import I3D_FRAMES, SELFCHECK, Detector, check_i3d, load_detector
from megavrc.evaluation.networks import open_network
from megavrc.evaluation.protocols import DatasetName, ProtocolName, protocol_of
from megavrc.generation.clip_sources import asked_for, is_model, open_source
from megavrc.generation.evaluate_clips import FEWEST_DRAWS, check_outputs, publish_report
from megavrc.hardware import check_device
from megavrc.results import case, metric, publish_tables, result
from megavrc.user_files import resolve

TOLERANCE = 0.05  # of the self-check: others computed it, with other versions


def fvd(
    real: Path | None = None,
    clips: Path | None = None,
    against: Path | None = None,
    i3d: Path | None = None,
    network: str = "i3d",
    protocol: ProtocolName = "latte",
    dataset: DatasetName | None = None,
    change: list[str] | None = None,
    planned: Path | None = None,
    floor: bool = True,
    draws: int = 200,
    seed: int = 0,
    batch: int = 8,
    device: str = "auto",
    features: Path | None = None,
    json: Path | None = None,
    selfcheck: bool = False,
) -> int:
    """Frechet video distance, its limit for many clips, precision and recall, each with N and its interval.

    Clips are a folder of videos or of folders of pictures (of any program), an .npz file, manifest.jsonl:SPLIT, a
    converted folder, which generates for the list --planned or the prompts of the real clips that the protocol chooses,
    or a video tokenizer, which reconstructs these. Exactly the planned clips must be there. A network that is not the
    published I3D is named unknown, and its distance is not called FVD.

    Args:
        real: the real clips.
        clips: clips to measure.
        against: other clips of the same prompts; their difference from `clips` is measured prompt for prompt.
        i3d: the TorchScript file of the I3D network (default: $MEGAVRC_I3D).
        network: `i3d`, or a folder that megavrc evaluate fd-self wrote, whose distances are not called FVD or KVD.
        protocol: named choice of real clips, strides, sizes and covariances.
        dataset: data set of the real clips, where a protocol treats it in its own way (latte: taichi has stride 6;
            stylegan-v: ucf101 has both splits).
        change: single fields of the protocol, NAME=VALUE: n, frames, real_stride, stride, size, ddof, select, place.
        planned: list of the clips that must be there, or be generated: JSON lines with id, caption or label.
        floor: also measure real clips against other real ones.
        draws: draws of the bootstrap.
        seed: seed of the choice of real clips, of bootstraps and of generated clips.
        batch: clips processed at once.
        device: `cpu` or `cuda`; auto is cuda where there is one.
        features: folder where features are kept, for `kvd` and for later runs.
        json: file to write the result to.
        selfcheck: only check the network: I3D gives 151.26 for clips of zeros against ones. Exit code 1 if not.
    """
    check_outputs(json)
    device = str(check_device(device))
    if selfcheck:
        return _selfcheck(load_detector(resolve("i3d", i3d), device), json)
    _command("fvd", locals())
    return 0


def kvd(
    real: Path,
    clips: Path,
    against: Path | None = None,
    i3d: Path | None = None,
    network: str = "i3d",
    protocol: ProtocolName = "latte",
    dataset: DatasetName | None = None,
    change: list[str] | None = None,
    planned: Path | None = None,
    floor: bool = True,
    draws: int = 200,
    seed: int = 0,
    batch: int = 8,
    device: str = "auto",
    features: Path | None = None,
    json: Path | None = None,
) -> None:
    """Kernel video distance: the unbiased polynomial MMD of the features of `fvd`; its mean does not depend on N.

    Args:
        real: the real clips; all clips are given as for megavrc evaluate fvd.
        clips: clips to measure.
        against: other clips of the same prompts; their difference from `clips` is measured prompt for prompt.
        i3d: the TorchScript file of the I3D network (default: $MEGAVRC_I3D).
        network: `i3d`, or a folder that megavrc evaluate fd-self wrote, whose distances are not called FVD or KVD.
        protocol: named choice of real clips, strides and sizes.
        dataset: data set of the real clips, where a protocol treats it in its own way (latte: taichi has stride 6;
            stylegan-v: ucf101 has both splits).
        change: single fields of the protocol, NAME=VALUE: n, frames, real_stride, stride, size, select, place.
        planned: list of the clips that must be there, or be generated: JSON lines with id, caption or label.
        floor: also measure real clips against other real ones.
        draws: draws of the bootstrap.
        seed: seed of the choice of real clips, of bootstraps and of generated clips.
        batch: clips processed at once.
        device: `cpu` or `cuda`; auto is cuda where there is one.
        features: folder where features are kept, for `fvd` and for later runs.
        json: file to write the result to.
    """
    check_outputs(json)
    device = str(check_device(device))
    _command("kvd", locals())


def _command(kind: Kind, given: dict[str, Any]) -> None:
    protocol = protocol_of(given["protocol"], given["dataset"], given["change"] or ())
    check_least(draws=(given["draws"], FEWEST_DRAWS), batch=(given["batch"], 1))
    if given["real"] is None or given["clips"] is None:
        raise UserError("required: --real and --clips (see --help)")
    detector = open_network(given["network"], given["i3d"], given["device"])
    if detector.name == "i3d" and protocol.frames < I3D_FRAMES:
        raise UserError(f"--change frames={protocol.frames}: I3D takes at least {I3D_FRAMES}")
    how = {name: given[name] for name in ("seed", "batch", "device")}
    real = open_source(given["real"], **how)
    like: ClipSource = real
    makers = {is_model(path) for path in (given["clips"], given["against"]) if path}
    if any(makers):
        like = asked_for(real, protocol, makers, given["seed"])
    clips = open_source(given["clips"], given["planned"], like, **how)
    against = open_source(given["against"], given["planned"], like, **how) if given["against"] else None
    bootstrap = {name: given[name] for name in ("floor", "draws", "seed", "batch")}
    report = measure_distances(
        kind, real, clips, against, detector, protocol, store=given["features"], **bootstrap
    )
    config = {name: given[name] for name in ("real", "clips", "against", "planned", "network")}
    publish_report(kind, report, config, given["json"], given["device"])


def _selfcheck(detector: Detector, json: Path | None) -> int:
    found = check_i3d(detector)
    right = abs(found - SELFCHECK) <= TOLERANCE
    same = "the published I3D" if detector.name == "i3d" else "another file than the published I3D"
    print(f"{same} (sha256 {detector.sha256}), zeros against ones: {found:.3f}, expected {SELFCHECK}")
    if json:
        facts = {"detector": detector.name, "sha256": detector.sha256, "expected": SELFCHECK, "right": right}
        cases = [case("zeros against ones", {"frechet": metric(found, n=8)}, facts)]
        publish_tables(result("evaluate fvd --selfcheck", {}, cases), json)
    return 0 if right and detector.name == "i3d" else 1
