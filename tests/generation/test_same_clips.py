"""A clip that is asked for in other words is not made again."""

from pathlib import Path
from typing import Any

from megavrc.generation.folder import load_folder
from megavrc.generation.to_files import clips_to_write, generate_files
from megavrc.model.clips import sampling_settings


def test_the_same_sampling_in_other_words_makes_no_copies(folder: Path, tmp_path: Path) -> None:
    """What is generated otherwise is another clip."""
    loaded, wanted = load_folder(folder), clips_to_write(["a dog"], [], seed=3)

    def made(frames: int | None = None, overlap: int | None = None, **sampling: Any) -> int:
        return generate_files(loaded, wanted, tmp_path, sampling_settings(sampling), None, frames, overlap)

    assert made() == 1
    for words in (
        {"later_passes": [1]},
        {"later_passes": [1] * 4},
        {"later_guidance": 1},
        {"plausibility": 0.5},
    ):
        assert made(17) == made(**words) == 0
    assert made(guidance=2, plausibility=0.5) == made(guidance=2) == made(guidance=2, later_guidance=1) == 1
    assert made(guidance=2, later_guidance=2) == 0
    assert made(33) == made(33, 5) == 1
    assert made(33, 9) == 0
