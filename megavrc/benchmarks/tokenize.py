"""The cost of tokenization on this machine: decoding, encoding, writing."""

import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megavrc.data.shards import ShardWriter
from megavrc.errors import UserError
from megavrc.hardware import check_device
from megavrc.measure import in_turn
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.results import Metric, case, check_result_place, median_of, metric, publish_tables, result
from megavrc.tokenization.cut import Cuts, cut
from megavrc.tokenization.encode import samples
from megavrc.tokenization.plan import encode
from megavrc.tokenization.sampling import ClipSettings
from megavrc.tokenizers import OmniTokenizer
from megavrc.video import count_frames, probe, read_clip, write_mp4

FPS, HEIGHT, WIDTH = 30, 360, 640  # of the generated videos
NOISE = 12.0  # grey levels, of the noisy one
STRIDE = 4
CLIPS = 4  # cut in one pass


def tokenize(
    tokenizer: Path | None = None,
    size: int = 256,
    batch: int = 1,
    seconds: int = 10,
    repeats: int = 3,
    threads: int = 1,
    device: str = "cpu",
    json: Path | None = None,
) -> None:
    """Measure the parts of tokenization on generated videos of 640x360, 30 fps, H.264: one smooth, one noisy.

    Decoding is given in clips (17 frames, stride 4) a second of CPU time, so for one core; medians.

    Args:
        tokenizer: folder or .ckpt file (default: the published sizes with random weights).
        size: side of the square frames in pixels.
        batch: clips in an encoder batch; ten times as many images.
        seconds: length of the videos, at least 3.
        repeats: measurements of each part.
        threads: CPU threads of the encoder.
        device: torch device of the encoder.
        json: file to write the results to.
    """
    check_result_place(json)
    if seconds < 3:
        raise UserError(f"--seconds {seconds}: at least 3, or no clip fits")
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        cases = [
            _decoding(name, _generated(Path(folder) / f"{name}.mp4", noise, seconds), size, repeats)
            for name, noise in (("smooth", 0.0), ("noisy", NOISE))
        ]
        cuts = cut(ClipSettings(size=size, stride=STRIDE), Path(folder) / "smooth.mp4", {"id": "smooth"})
        encoding = _encoding(_tokenizer(tokenizer, device), cuts, batch, repeats)
        handing = _cpu_seconds({"": lambda: pickle.loads(pickle.dumps(cuts))}, repeats)[""]
        writing = _writing(Path(folder), size // 8, repeats)
    parts = {
        "a video: decode": metric(1 / cases[0]["metrics"]["clip_and_10_images"]["value"], "s", repeats),
        "a video: hand to the encoder": handing,
        "a video: encode the clip": metric(1 / encoding["clips encoded"]["value"], "s", repeats),
        "a video: encode 10 images": metric(10 / encoding["images encoded"]["value"], "s", repeats),
        "a video: write": writing,
    }
    config = {"seconds": seconds, "fps": FPS, "height": HEIGHT, "width": WIDTH, "codec": "H.264"}
    config |= {
        "frames": 17,
        "stride": STRIDE,
        "size": size,
        "batch": batch,
        "tokenizer": str(tokenizer or "random"),
    }
    protocol = {"repeats": repeats, "decoding": "smooth video, CPU seconds of one core", "spread": "range"}
    publish_tables(
        result("benchmark tokenize", config, cases, encoding | parts, protocol, device, threads), json
    )


def _decoding(name: str, path: Path, size: int, repeats: int) -> dict[str, Any]:
    """A case: rates of one core, and what several clips in one pass spend their time on."""
    entry = {"id": "benchmark"}
    several = ClipSettings(size=size, stride=STRIDE, clips_per_video=CLIPS, images_per_video=0)
    usual = ClipSettings(size=size, stride=STRIDE)
    spent = _cpu_seconds(
        {
            "first clip": lambda: read_clip(path, 0, 17, STRIDE, size),
            "several": lambda: cut(several, path, entry),
            "usual": lambda: cut(usual, path, entry),
            "open": lambda: probe(path),
            "decode": lambda: count_frames(path),
        },
        repeats,
    )
    first, together, with_images, opening, all_frames = (found["value"] for found in spent.values())
    decoded = max(run.start for run in cut(several, path, entry).clips) + several.span
    decoding = (all_frames - opening) * decoded / probe(path).frames
    rates = {
        "first_clip": (1 / first, "clips/s"),
        "clips_in_one_pass": (CLIPS / together, "clips/s"),
        "clip_and_10_images": (1 / with_images, "videos/s"),
        "opening": (2 * opening / together, "share"),
        "decoding": (decoding / together, "share"),
        "resizing": (1 - (2 * opening + decoding) / together, "share"),
    }
    metrics = {name: metric(value, unit, repeats) for name, (value, unit) in rates.items()}
    return case(name, metrics, bytes=path.stat().st_size, clips_in_one_pass=CLIPS)


def _encoding(tokenizer: OmniTokenizer, cuts: Cuts, batch: int, repeats: int) -> dict[str, Metric]:
    """Rates by the wall's clock; the work ends with its results on the CPU, so the device need not be waited for."""
    clips, images = samples(ClipSettings(), {"id": "benchmark"}, cuts)
    clips_BTHWC = np.stack([clips[0].frames_THWC] * batch)
    images_BTHWC = np.stack([image.frames_THWC for image in images] * batch)
    work = {
        "clips": lambda: encode(tokenizer, clips_BTHWC),
        "images": lambda: encode(tokenizer, images_BTHWC),
    }
    spent = in_turn(work, repeats, label="encode")
    counts = {"clips": batch, "images": 10 * batch}
    return {
        f"{kind} encoded": median_of([counts[kind] / seconds for seconds in found], f"{kind}/s")
        for kind, found in spent.items()
    }


def _cpu_seconds(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, Metric]:
    spent = in_turn(work, repeats, clock=time.process_time, label="measure")
    return {name: median_of(seconds, "s") for name, seconds in spent.items()}


def _writing(folder: Path, grid: int, repeats: int) -> Metric:
    """CPU seconds for a clip and ten images of a shard of 50 videos."""
    videos = 50
    ids = np.random.default_rng(0).integers(0, 8192, (5, grid, grid))
    fields = {"caption": "a caption of some length, as they are", "source": "video.mp4"}

    def write() -> None:
        for kind, each, frames in (("video", 1, 5), ("image", 10, 1)):
            with ShardWriter(folder / f"{kind}.tar", (frames, grid, grid), 8192) as writer:
                for number in range(each * videos):
                    writer.add(f"{number:016d}", ids[:frames], fields)
                writer.commit()

    spent = in_turn({"": write}, repeats, clock=time.process_time, label="write")[""]
    return median_of([seconds / videos for seconds in spent], "s")


def _generated(path: Path, noise: float, seconds: int) -> Path:
    """A video of drifting colours and a moving square, with noise of this deviation on top."""
    rng = np.random.default_rng(0)
    y, x = np.arange(HEIGHT, dtype=np.float32)[:, None, None], np.arange(WIDTH, dtype=np.float32)[:, None]

    def picture(number: int) -> NDArray[np.uint8]:
        phases = np.float32(number / 40) + np.arange(3, dtype=np.float32)
        levels = 128 + 90 * np.sin(x / 90 + phases) * np.cos(y / 70 - phases)
        left = 2 * number % (WIDTH - 80)
        levels[140:220, left : left + 80] = (240, 60, 30)
        if noise:
            levels += noise * rng.standard_normal(levels.shape, dtype=np.float32)
        return levels.clip(0, 255).astype(np.uint8)

    write_mp4(path, np.stack([picture(number) for number in range(seconds * FPS)]), fps=FPS, crf=23)
    return path


def _tokenizer(path: Path | None, device: str) -> OmniTokenizer:
    if path:
        return OmniTokenizer.from_checkpoint(path, check_device(device))
    torch.manual_seed(0)
    return OmniTokenizer(
        OmniTokenizerNet(OmniTokenizerConfig()).to(check_device(device)).eval().requires_grad_(False)
    )
