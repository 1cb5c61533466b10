"""The task that docs/architecture.md shows: it is run as it stands there."""

import json
import re
import subprocess
import sys
from pathlib import Path

from worlds import ROOT, environment


def test_the_task_of_the_page_trains_and_resumes(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    [code] = re.findall(r"^```python\n(.*?class LineTask.*?)^```", page, re.MULTILINE | re.DOTALL)
    [options] = re.findall(r"^    python line.py (.*)$", page, re.MULTILINE)
    (tmp_path / "line.py").write_text(code)
    assert len(code[code.index("class LineTask") :].splitlines()) <= 36, "thirty lines and a few blank ones"
    for steps in (20, 400):
        words = [*options.split(), f"--train.steps={steps}", "--train.watchdog_s=0"]
        done = subprocess.run(
            [sys.executable, "line.py", *words],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "line"
    assert "steps 20 to 400" in done.stderr
    complete = json.loads((run / "complete.json").read_text())
    assert complete["step"] == 400 and abs(complete["slope"] - 3) < 0.1 and complete["metrics"]["rmse"] < 0.1
