"""docs/fewer_bits.md: its programs run."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fewer_bits.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize(("program", "said"), [(0, "simulated=True"), (1, "2 pictures with questions")])
def test_a_program_runs(program: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(PROGRAMS[program], {})
    assert said in capsys.readouterr().out
