"""Draw the life of a training run: start, save, signal, requeue, rollback: docs/images/run_life.svg."""

from canvas import Canvas

from megavrc.distributed.signals import STOP_SIGNALS
from megavrc.errors import EXIT_HANG, EXIT_USER
from megavrc.launch.requeue import MAX_STALLS

ROW = 48


def drawing() -> str:
    """The figure as SVG."""
    canvas = Canvas(424, "The life of a training run")
    signals = ", ".join(signal.name for signal in STOP_SIGNALS)
    stalls = {3: "three"}.get(MAX_STALLS, str(MAX_STALLS))
    boxes = {  # left, top, width, kind, lines
        "submit": (20, 20, 180, "plain", "submit", "code and configuration copied"),
        "start": (20, 128, 180, "raw", "start", "lease, identity, checkpoint"),
        "step": (340, 128, 180, "raw", "step", "all ranks apply it, or none"),
        "save": (340, 20, 180, "compressed", "save", "in the background"),
        "back": (660, 20, 180, "condition", "roll back", "newest checkpoint, other data"),
        "done": (660, 128, 180, "good", "complete.json", "exit code 0"),
        "stop": (340, 240, 180, "compressed", "save and stop", "one step on all ranks, code 0"),
        "hang": (660, 240, 180, "bad", "a rank is gone or hangs", f"named; exit code {EXIT_HANG}"),
        "queue": (20, 240, 180, "plain", "requeue", "by the batch script"),
        "user": (340, 348, 180, "bad", "the user's mistake", f"one line; exit code {EXIT_USER}"),
        "ends": (20, 348, 180, "bad", "ends", "slurm/diagnosis.txt"),
    }
    for left, top, width, kind, *lines in boxes.values():
        canvas.box(left, top, width, ROW, kind, *lines)
    arrows = [  # points, what stands beside, where
        ([(110, 68), (110, 127)], "", (0, 0)),
        ([(200, 152), (339, 152)], "resumes exactly", (212, 146)),
        ([(400, 128), (400, 69)], "every save_every", (296, 104)),
        ([(460, 68), (460, 127)], "", (0, 0)),
        ([(520, 140), (560, 140), (560, 44), (659, 44)], "the loss spikes", (566, 38)),
        ([(750, 68), (750, 98), (540, 98), (540, 134), (521, 134)], "", (0, 0)),
        ([(520, 156), (659, 156)], "last step", (600, 150)),
        ([(430, 176), (430, 239)], f"{signals}, time limit", (438, 212)),
        ([(520, 168), (651, 168), (651, 264), (659, 264)], "", (0, 0)),
        ([(200, 166), (268, 166), (268, 360), (339, 360)], "", (0, 0)),
        ([(339, 264), (201, 264)], "", (0, 0)),
        ([(750, 288), (750, 316), (140, 316), (140, 289)], "", (0, 0)),
        ([(60, 240), (60, 177)], "", (0, 0)),
        ([(110, 288), (110, 347)], "", (0, 0)),
        ([(340, 384), (201, 384)], "", (0, 0)),
    ]
    for points, words, (x, y) in arrows:
        canvas.arrow(*points)
        if words:
            canvas.text(x, y, words, "small quiet")
    canvas.text(300, 310, "killed, crashed, hung: from the last checkpoint", "small quiet")
    canvas.text(66, 212, "until complete.json is there", "small quiet")
    canvas.text(10, 322, f"{stalls} attempts", "small quiet")
    canvas.text(10, 336, "without progress", "small quiet")
    canvas.text(530, 376, "the same mistake would come back", "small quiet")
    return canvas.svg()
