"""Features of clips: what any network gives them, the one that the user brings as TorchScript, and a store of them.

Only the file with the hash of the I3D that StyleGAN-V published is called I3D, and only its distances FVD.
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from megavrc.errors import UserError
from megavrc.evaluation.clip_source import ClipSource
from megavrc.evaluation.frechet import frechet
from megavrc.evaluation.protocols import Window
from megavrc.files import sha256_json, write_atomic
from megavrc.hardware import check_device
from megavrc.progress import progress
from megavrc.user_files import I3D_SHA256, UserFile
from megavrc.video.versions import decoder_versions

FEATURES_FORMAT = 1  # of a stored file; part of its key
I3D_FRAMES = 9  # at least; fewer leave its last pooling without a position
RESIZES = "--change size=N resizes both sides"
CHUNK = 64  # clips of one stored file: what a stopped run loses
SELFCHECK = 151.256  # eight clips of zeros against eight of ones, by the README of common_metrics

Features = NDArray[np.float32]  # [N, d]


class ClipNetwork(Protocol):
    """A network that gives features to clips.

    Attributes:
        name: decides what distances of its features are called, see `metric_names`.
        sha256: of its weights.
        dims: its features; further ones, a multiple of these, are of networks like it with random weights. None: all.
    """

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def dims(self) -> int | None: ...

    def __call__(self, clips_BTHWC: NDArray[np.uint8]) -> Features:
        """Features of uint8 clips, [B, d]; UserError where it does not take them."""
        ...


@dataclass(frozen=True)
class Detector:
    """A network with the signature of the published I3D: detector(x, rescale, resize, return_features) -> [B, d].

    Attributes:
        name: "i3d", or "unknown" for a file with another hash.
    """

    module: torch.jit.ScriptModule
    name: str
    sha256: str
    device: torch.device
    dims: None = None

    @torch.inference_mode()
    def __call__(self, clips_BTHWC: NDArray[np.uint8]) -> Features:
        """Features of uint8 clips, [B, d]; in float32 without TF32."""
        x_BCTHW = torch.from_numpy(np.ascontiguousarray(clips_BTHWC.transpose(0, 4, 1, 2, 3)))
        return self.run(x_BCTHW, rescale=True, resize=True)

    @torch.inference_mode()
    def run(self, x_BCTHW: torch.Tensor, rescale: bool, resize: bool) -> Features:
        """The network on uint8 0..255 (`rescale`), or float -1..1, pixels."""
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            try:
                found = self.module(
                    x_BCTHW.to(self.device), rescale=rescale, resize=resize, return_features=True
                )
            except RuntimeError as error:
                last = str(error).strip().splitlines()[-1]
                raise UserError(
                    f"the video network does not take clips {list(x_BCTHW.shape)}: {last}"
                ) from None
        if not isinstance(found, torch.Tensor) or found.dim() != 2 or len(found) != len(x_BCTHW):
            raise UserError("the video network gives no features [clips, dimensions]")
        features: Features = found.float().cpu().numpy()
        return features


def load_detector(file: UserFile, device: str = "cpu") -> Detector:
    """Load a TorchScript file; UserError when it is none."""
    at = check_device(device)
    try:
        module = torch.jit.load(str(file.path), map_location=at).eval()
    except (RuntimeError, ValueError, OSError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"{file.path}: not a TorchScript file that torch loads: {first_line:.200}") from None
    return Detector(module, "i3d" if file.sha256 == I3D_SHA256 else "unknown", file.sha256, at)


def check_i3d(detector: Detector) -> float:
    """Frechet distance of 8 clips of zeros from 8 of ones, 30 frames of 64x64: 151.26 for I3D.

    As common_metrics prepares them: bilinear to 224x224, -1 to 1, covariance over N - 1.
    """
    zeros, ones = (detector.run(torch.full((8, 3, 30, 224, 224), x), False, False) for x in (-1.0, 1.0))
    return frechet(zeros, ones, ddof=1)


def clip_features(
    source: ClipSource,
    windows: list[Window],
    size: int | None,
    detector: ClipNetwork,
    store: Path | None = None,
    batch: int = 8,
) -> Features:
    """Features of one window of each clip, [N, d] in the order of `windows`.

    Args:
        size: of the frames, see `read_clip`.
        store: folder of features. What is there for the same content of clips, frames, size, decoder and network is
            read; the rest is computed and put there.

    Raises:
        UserError: a clip that cannot be read; clips of several sizes; features that are not finite.
    """
    frame = frame_size(source, windows[0]) if size is None else (size, size)
    chunks = [windows[start : start + CHUNK] for start in range(0, len(windows), CHUNK)]
    found = []
    for chunk in progress(chunks, f"features of {source.name}"):
        path = store / f"{_key(source, chunk, size or frame, detector)}.npz" if store else None
        known = _stored(path, len(chunk)) if path else None
        if known is None:
            known = _computed(source, chunk, size, frame, detector, batch)
            if path:
                buffer = io.BytesIO()
                np.savez(buffer, features=known)
                write_atomic(path, buffer.getvalue())
        found.append(known)
    return np.concatenate(found)


def frame_size(source: ClipSource, window: Window) -> tuple[int, int]:
    """Height and width of a clip as it is stored."""
    _, height, width, _ = source.read(window.clip, window.wanted[:1]).shape
    return height, width


def check_sizes(sets: list[tuple[ClipSource, list[Window]]]) -> None:
    """Refuse sets whose first clips have other sizes; clips of one set are compared by `clip_features`."""
    (name, frame), *others = [(source.name, frame_size(source, windows[0])) for source, windows in sets]
    for other, size in others:
        if size != frame:
            raise UserError(f"{other}: clips of {_side(size)}, those of {name} are {_side(frame)}; {RESIZES}")


def _side(frame: tuple[int, int]) -> str:
    return f"{frame[1]}x{frame[0]}"


def _key(
    source: ClipSource, windows: list[Window], size: int | tuple[int, int], detector: ClipNetwork
) -> str:
    """Of clips that are not resized their size is part of it, so that a stored chunk is of clips of this size."""
    clips = [
        [source.identity(window.clip), window.wanted.start, window.wanted.stop, window.wanted.step]
        for window in windows
    ]
    how = {"format": FEATURES_FORMAT, "size": size, "decoder": decoder_versions()}
    return sha256_json({"clips": clips, "detector": detector.sha256, **how})


def _stored(path: Path, count: int) -> Features | None:
    """The features of a file; None where they must be computed."""
    try:
        with np.load(path, allow_pickle=False) as content:
            features: Features = content["features"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # not there, or damaged
        return None
    return features if features.ndim == 2 and len(features) == count else None


def _computed(
    source: ClipSource,
    windows: list[Window],
    size: int | None,
    frame: tuple[int, int],
    detector: ClipNetwork,
    batch: int,
) -> Features:
    found: list[Features] = []
    for start in range(0, len(windows), batch):
        part = windows[start : start + batch]
        clips = [source.read(window.clip, window.wanted, size) for window in part]
        keys = [source.clips[window.clip].key for window in part]
        for key, clip in zip(keys, clips, strict=True):
            if (own := clip.shape[1:3]) != frame:
                raise UserError(
                    f"{source.name}: {key} is {_side(own)}, clips before it {_side(frame)}; {RESIZES}"
                )
        features = detector(np.stack(clips))
        if not np.isfinite(features).all():
            bad = keys[int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])]
            raise UserError(f"{source.name}: the features of {bad} are not finite")
        found.append(features)
    return np.concatenate(found)
