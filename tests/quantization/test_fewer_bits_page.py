"""docs/fewer_bits.md: its programs run."""

import pytest
from programs import DOCS, programs_of

PROGRAMS = programs_of(DOCS / "fewer_bits.md")


@pytest.mark.parametrize(("program", "said"), [(0, "simulated=True"), (1, "2 pictures with questions")])
def test_a_program_runs(program: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(PROGRAMS[program], {})
    assert said in capsys.readouterr().out
