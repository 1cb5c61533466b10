"""The task that docs/architecture.md shows: it is run as it stands there."""

import json
import re
from pathlib import Path

from forked import run_forked
from programs import DOCS, programs_of

PAGE = DOCS / "architecture.md"


def test_the_task_of_the_page_trains_and_resumes(tmp_path: Path) -> None:
    [code] = [program for program in programs_of(PAGE) if "class LineTask" in program]
    [options] = re.findall(r"^    python line.py (.*)$", PAGE.read_text(), re.MULTILINE)
    (tmp_path / "line.py").write_text(code)
    assert len(code[code.index("class LineTask") :].splitlines()) <= 36, "thirty lines and a few blank ones"
    words = ["line.py", *options.split(), "--train.watchdog_s=0"]
    first, second = (run_forked(*words, f"--train.steps={steps}", cwd=tmp_path) for steps in (20, 400))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    run = tmp_path / "runs" / "line"
    assert "steps 20 to 400" in second.stderr
    complete = json.loads((run / "complete.json").read_text())
    assert complete["step"] == 400 and abs(complete["slope"] - 3) < 0.1 and complete["metrics"]["rmse"] < 0.1
