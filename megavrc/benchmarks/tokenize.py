"""Benchmarks of the pipeline's parts: what they cost on this machine, printed and written as JSON."""

import pickle
import statistics
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
from megavrc.files import write_result
from megavrc.hardware import check_device, machine
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.tokenization.cut import Cuts, cut
from megavrc.tokenization.encode import samples
from megavrc.tokenization.plan import encode
from megavrc.tokenization.sampling import Settings
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
        json: write the results there.
    """
    if seconds < 3:
        raise UserError(f"--seconds {seconds}: at least 3, or no clip fits")
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        decoding = {
            name: _decoding(_generated(Path(folder) / f"{name}.mp4", noise, seconds), size, repeats)
            for name, noise in (("smooth", 0.0), ("noisy", NOISE))
        }
        cuts = cut(Settings(size=size, stride=STRIDE), Path(folder) / "smooth.mp4", {"id": "smooth"})
        encoding = _encoding(_tokenizer(tokenizer, device), cuts, batch, repeats)
        handing = _cpu_seconds(lambda: pickle.loads(pickle.dumps(cuts)), repeats)
        writing = _writing(Path(folder), size // 8, repeats)
    parts = {
        "decode": 1 / decoding["smooth"]["clip_and_10_images_per_core_second"],
        "hand to the encoder": handing,
        "encode the clip": 1 / encoding["clips_per_second"],
        "encode 10 images": 10 / encoding["images_per_second"],
        "write": writing,
    }
    result = {
        "machine": machine(device, threads, "av"),
        "video": {"seconds": seconds, "fps": FPS, "height": HEIGHT, "width": WIDTH, "codec": "H.264"},
        "sampling": {"frames": 17, "stride": STRIDE, "size": size},
        "decode": decoding,
        "encode": encoding,
        "seconds_per_video": parts,
    }
    _print(result)
    if json:
        write_result(json, result)


def _print(result: dict[str, Any]) -> None:
    for name, rates in result["decode"].items():
        print(f"decode {name} ({rates['bytes'] / 1e6:.2f} MB), a core:")
        print(f"  first clip of a video    {rates['first_clip_per_core_second']:7.1f} clips/s")
        print(f"  {CLIPS} clips in one pass     {rates['clips_in_one_pass_per_core_second']:7.1f} clips/s")
        print(f"  one clip and 10 images   {rates['clip_and_10_images_per_core_second']:7.1f} videos/s")
        shares = ", ".join(f"{part} {share:.0%}" for part, share in rates["shares"].items())
        print(f"  of which {shares}")
    encoding = result["encode"]
    print(f"encode {encoding['clips_per_second']:.2f} clips/s, {encoding['images_per_second']:.1f} images/s")
    whole = sum(result["seconds_per_video"].values())
    for part, seconds in result["seconds_per_video"].items():
        print(f"{part:20s} {1000 * seconds:8.1f} ms a video {seconds / whole:5.0%}")


def _decoding(path: Path, size: int, repeats: int) -> dict[str, Any]:
    entry = {"id": "benchmark"}
    several = Settings(size=size, stride=STRIDE, clips_per_video=CLIPS, images_per_video=0)
    usual = Settings(size=size, stride=STRIDE)
    first = _cpu_seconds(lambda: read_clip(path, 0, 17, STRIDE, size), repeats)
    together = _cpu_seconds(lambda: cut(several, path, entry), repeats)
    with_images = _cpu_seconds(lambda: cut(usual, path, entry), repeats)
    opening = _cpu_seconds(lambda: probe(path), repeats)
    decoded = max(run.start for run in cut(several, path, entry).clips) + several.span
    decoding = (_cpu_seconds(lambda: count_frames(path), repeats) - opening) * decoded / probe(path).frames
    return {
        "bytes": path.stat().st_size,
        "first_clip_per_core_second": 1 / first,
        "clips_in_one_pass_per_core_second": CLIPS / together,
        "clip_and_10_images_per_core_second": 1 / with_images,
        "shares": {  # of several clips in one pass
            "opening": 2 * opening / together,
            "decoding": decoding / together,
            "resizing": 1 - (2 * opening + decoding) / together,
        },
    }


def _encoding(tokenizer: OmniTokenizer, cuts: Cuts, batch: int, repeats: int) -> dict[str, Any]:
    clips, images = samples(Settings(), {"id": "benchmark"}, cuts)
    clips_BTHWC = np.stack([clips[0].frames_THWC] * batch)
    images_BTHWC = np.stack([image.frames_THWC for image in images] * batch)
    return {
        "batch": batch,
        "clips_per_second": batch / _seconds(lambda: encode(tokenizer, clips_BTHWC), repeats),
        "images_per_second": 10 * batch / _seconds(lambda: encode(tokenizer, images_BTHWC), repeats),
    }


def _writing(folder: Path, grid: int, repeats: int) -> float:
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

    return _cpu_seconds(write, repeats) / videos


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


def _cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    return _median(work, repeats, time.process_time)


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """Wall time; the work ends with its results on the CPU, so there is no need to wait for the device."""
    return _median(work, repeats, time.perf_counter)


def _median(work: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        times.append(clock() - start)
    return statistics.median(times)
