"""Draw the way from a video file to the loss, with the files and the code that makes them: docs/images/data_path.svg.

Names of files and of code come from the objects themselves, so a renamed one is a changed figure.
"""

from pathlib import Path
from typing import Any

from canvas import Canvas

from megavrc.data.dataset import TokenDataset
from megavrc.data.order import Order
from megavrc.data.shards import ShardWriter, done_path, index_path, shard_name, write_shard_manifest
from megavrc.data.stream import Stream
from megavrc.model import VRC
from megavrc.model.vrc import VRCOutput
from megavrc.tokenization.cut import cut
from megavrc.tokenization.encode import BatchEncoder
from megavrc.tokenization.job import plan
from megavrc.training.engine import Engine
from megavrc.training.tasks.vrc import VRCTask
from megavrc.video.manifest import write_manifest

BOX, TALL, STEP, TOP = 390, 46, 66, 44


def place(thing: Any) -> str:
    """Where a function or class stands: file and name."""
    return f"`{thing.__module__.replace('.', '/')}.py  {thing.__qualname__}"


def drawing() -> str:
    """The figure as SVG."""
    tar = Path(shard_name("train", 0, 2))
    beside = ", ".join(
        "." + path.name.removeprefix(tar.stem).lstrip(".") for path in (index_path(tar), done_path(tar))
    )
    offline = [
        ("raw", "videos/*.mp4", "any container, any size"),
        ("plain", "manifest.jsonl: a line a video", place(write_manifest)),
        ("plain", "plan.json, plan.jsonl: the frozen job", place(plan)),
        ("plain", "17 frames, uint8 [17, 256, 256, 3]", place(cut)),
        ("compressed", "ids, int16 [5, 32, 32]", place(BatchEncoder)),
        ("compressed", f"{tar.name} ({beside})", place(ShardWriter)),
        ("plain", "dataset.json, manifest.json", place(write_shard_manifest)),
    ]
    training = [
        ("plain", "the sample at each position", place(Order)),
        ("compressed", "a sample: ids and caption, its bytes checked", place(TokenDataset)),
        ("plain", "a micro-batch of this rank", place(Stream)),
        ("condition", "tensors: ids and condition", place(VRCTask.collate)),
        ("raw", "logits of every frame", place(VRC.forward)),
        ("raw", "loss, and each frame's", place(VRCOutput)),
        ("good", "an update on all ranks, or on none", place(Engine.step)),
    ]
    canvas = Canvas(TOP + STEP * len(offline) + 6, "From a video file to the loss")
    canvas.title(20, 26, "tokenization", "offline, once; any number of tasks")
    canvas.title(450, 26, "training", "never decodes a video")
    for left, steps in ((20, offline), (450, training)):
        for number, (kind, what, where) in enumerate(steps):
            y = TOP + STEP * number
            canvas.box(left, y, BOX, TALL, kind, what, where)
            if number:
                canvas.arrow((left + BOX / 2, y - STEP + TALL), (left + BOX / 2, y - 1))
    last = TOP + STEP * (len(offline) - 1) + TALL / 2
    canvas.arrow((20 + BOX, last), (430, last), (430, TOP + TALL / 2), (449, TOP + TALL / 2))
    return canvas.svg()
