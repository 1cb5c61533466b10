"""Small videos with a manifest, for tests of the video tokenizer's training."""

import json
from pathlib import Path

import numpy as np

from megavrc.video import write_mp4


def make_videos(folder: Path, count: int = 5, broken: bool = True) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        frames = np.full((17, 64, 64, 3), 40 * number + 20, np.uint8)
        frames += np.arange(17, dtype=np.uint8)[:, None, None, None]
        write_mp4(folder / f"{number}.mp4", frames)
        lines.append(
            {"id": f"v{number}", "path": f"{number}.mp4", "caption": f"grey {number}", "split": "train"}
        )
    if broken:
        (folder / "broken.mp4").write_bytes(b"not a video")
        lines.insert(2, {"id": "broken", "path": "broken.mp4", "split": "train"})
    lines.append({"id": "val", "path": "0.mp4", "split": "val"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "manifest.jsonl"
