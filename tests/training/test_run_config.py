"""Configurations and the schedule: shipped files load, all problems are named together, rates are as described."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from megavrc.config import dump_yaml, load_config
from megavrc.errors import UserError
from megavrc.model import ConditionConfig, ModelConfig
from megavrc.training.config import OptimizerConfig, TrainConfig
from megavrc.training.optimizer import make_optimizer
from megavrc.training.schedule import learning_rate
from megavrc.training.tasks.tokenizer_config import TokenizerRunConfig
from megavrc.training.tasks.vrc_config import RunConfig
from megavrc.vlm.mini_task import MiniRunConfig

CONFIGS = sorted((Path(__file__).parents[2] / "pretrain" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_load_and_are_commented(path: Path, tmp_path: Path) -> None:
    kinds = {"tokenizer": TokenizerRunConfig, "mini_vlm": MiniRunConfig}
    cls = next((cls for word, cls in kinds.items() if word in path.name), RunConfig)
    config = load_config(cls, ["--config", str(path)])
    dump_yaml(config, tmp_path / "again.yaml")
    assert load_config(cls, ["--config", str(tmp_path / "again.yaml")]) == config
    assert path.read_text().startswith("# ")


def test_the_paper_s_batch_fits_eight_ranks() -> None:
    for path in CONFIGS:
        if not path.name.startswith(("demo", "scenes", "mini_vlm", "own")) and "tokenizer" not in path.name:
            train = load_config(RunConfig, ["--config", str(path)]).train
            assert train.global_batch == 96 and train.global_batch % (8 * train.micro_batch) == 0, path.name


def test_fields_that_are_no_more_are_read_where_they_say_nothing(tmp_path: Path) -> None:
    path = next(path for path in CONFIGS if path.name == "demo_tokenizer.yaml")
    content = yaml.safe_load(path.read_text())
    content["train"] |= {"attention": "auto", "straggler_factor": 1.5}
    content["objective"] |= {"seed": 0, "threshold": 0.1}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(content))
    old = ["--config", str(tmp_path / "old.yaml")]
    assert load_config(TokenizerRunConfig, old) == load_config(TokenizerRunConfig, ["--config", str(path)])
    words = ["--objective.seed", "0", "--train.straggler-factor=1.5", "--train.steps=7"]
    assert load_config(TokenizerRunConfig, [*old, *words]).train.steps == 7
    with pytest.raises(
        UserError, match=r"objective.seed: 1 is no longer possible: draws depend on the step alone"
    ):
        load_config(TokenizerRunConfig, [*old, "--objective.seed=1"])
    content["preview"]["first_temperature"] = 0.9
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"old.yaml: preview.first_temperature: 0.9 is no longer possible"):
        load_config(TokenizerRunConfig, old)


def test_weights_of_the_two_terms_are_factors_of_frames_now() -> None:
    values = ModelConfig(preset="debug", condition=ConditionConfig(vocab=40)).to_dict()
    assert ModelConfig.from_dict(values | {"loss_weights": [1.0, 1.0]}).to_dict() == values
    with pytest.raises(ValueError, match=r"loss_weights: .* frame_loss_weight has a factor for every frame"):
        ModelConfig.from_dict(values | {"loss_weights": [1.0, 2.0]})


def test_options_after_a_retired_file_win() -> None:
    old = f"--config={CONFIGS[0].parent}/ucf101_l_video.yaml"
    assert load_config(RunConfig, [old, "--run_dir=mine"]).run_dir == "mine"


@pytest.mark.parametrize("preset", ["b", "l", "xl"])
@pytest.mark.parametrize("words", [["--config=%s"], ["--config", "%s"]], ids=str)
def test_files_of_old_command_lines_are_options_now(
    preset: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = CONFIGS[0].parent
    image, video = (
        load_config(
            RunConfig, [word.replace("%s", f"{folder}/ucf101_{preset}_{stage}.yaml") for word in words]
        )
        for stage in ("image", "video")
    )
    assert image.model.preset == video.model.preset == preset and (image.stage, video.stage) == (
        "image",
        "video",
    )
    assert image.run_dir == video.init_from == f"runs/ucf101_{preset}/stage1"
    assert video.run_dir == f"runs/ucf101_{preset}/stage2"
    assert (image.train.micro_batch, video.train.micro_batch) == (12, {"b": 12, "l": 6, "xl": 4}[preset])
    assert f"read as {folder}/ucf101_video.yaml --model.preset={preset}" in capsys.readouterr().err


def test_all_problems_are_named_together() -> None:
    words = [
        "--train.steps=0",
        "--train.keep=0",
        "--optimizer.lr=-1",
        "--train.zero=0",
        "--train.precision=bf16",
    ]
    words += ["--model.frames=4", "--data.text_tokenizer="]
    path = next(path for path in CONFIGS if path.name == "demo_image.yaml")
    with pytest.raises(UserError) as caught:
        load_config(RunConfig, ["--config", str(path), *words])
    for named in (
        "train.steps",
        "train.keep",
        "optimizer.lr",
        "train.zero",
        "model.frames",
        "text_token",
    ):
        assert named in str(caught.value)


def test_problems_of_the_loop_s_options_are_named_together() -> None:
    path = next(path for path in CONFIGS if path.name == "demo_image.yaml")
    words = [
        "--train.compile=true",
        "--train.zero=3",
        "--train.ema=1",
        "--train.spike_window=1",
        "--train.watchdog_s=-1",
    ]
    words += ["--data.validation", '{"seen": {"split": "train"}}']
    with pytest.raises(UserError) as caught:
        load_config(RunConfig, ["--config", str(path), *words])
    for named in (
        "train.compile",
        "train.ema",
        "train.spike_window",
        "train.watchdog_s",
        "data.validation.seen.split",
    ):
        assert named in str(caught.value)


@pytest.mark.skipif(find_spec("apex") is not None, reason="apex is installed")
def test_apex_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(UserError, match=r"optimizer.kind: apex cannot be imported"):
        make_optimizer({}, TrainConfig(), OptimizerConfig(kind="apex"))


def test_tokenizer_windows_must_fit_the_network() -> None:
    path = next(path for path in CONFIGS if path.name == "demo_tokenizer.yaml")
    words = ["--data.frames_schedule", '{"100": 8}', "--data.size=60", "--train.precision=bf16"]
    with pytest.raises(UserError) as caught:
        load_config(TokenizerRunConfig, ["--config", str(path), *words])
    for named in ("from step 0 on", "8 frames", "data.size", "train.precision"):
        assert named in str(caught.value)


def test_problems_of_the_tokenizer_s_terms_are_named_together() -> None:
    path = next(path for path in CONFIGS if path.name == "demo_tokenizer.yaml")
    words = ["--objective.perceptual=1", "--objective.feature_matching=1", "--objective.l1=-1"]
    words += ["--objective.scales=[1.0,0.8]", "--data.images_per_clip=18", "--init_from=x"]
    words += ["--data.frames_schedule", '{"0": [17, 8], "5": []}']
    with pytest.raises(UserError) as caught:
        load_config(TokenizerRunConfig, ["--config", str(path), *words])
    for named in (
        "objective.vgg",
        "objective.feature_matching",
        "objective.l1: -1",
        "got 51x51 (objective.scales: 0.8)",
        "data.images_per_clip: 18",
        "objective.warmup_steps: must be 0 with init_from",
        "8 frames",
        "from step 0 on",
    ):
        assert named in str(caught.value)


def test_learning_rate() -> None:
    config = OptimizerConfig(lr=2.0, warmup=4, final_lr=0.1)
    rates = [learning_rate(step, 104, config) for step in range(110)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[54] == pytest.approx(2.0 * 0.55), "half way between lr and final_lr x lr"
    assert rates[104] == rates[109] == pytest.approx(0.2)
    assert all(a >= b for a, b in zip(rates[4:], rates[5:], strict=False))
    constant = OptimizerConfig(lr=2.0, warmup=0, schedule="constant")
    assert {learning_rate(step, 10, constant) for step in range(20)} == {2.0}


@pytest.mark.parametrize(
    ("cls", "config", "words"),
    [
        (
            RunConfig,
            "demo_image",
            ["--model.condition.drop=1.5", "--model.dropout=-0.1", "--model.rope_base=-1"],
        ),
        (
            RunConfig,
            "demo_image",
            ["--model.condition.drop=.nan", "--model.dropout=.nan", "--model.rope_base=.inf"],
        ),
        (
            RunConfig,
            "demo_image",
            ["--preview.count=-1", "--preview.first_temperature=-1", "--optimizer.lr=.nan"],
        ),
        (
            RunConfig,
            "demo_image",
            ["--train.clip=.inf", "--optimizer.eps=.nan", "--optimizer.weight_decay=.inf"],
        ),
        (
            TokenizerRunConfig,
            "demo_tokenizer",
            ["--data.limit=-1", "--objective.decay=1.5", "--preview.count=-2"],
        ),
        (TokenizerRunConfig, "demo_tokenizer", ["--objective.scales", ".inf", "--objective.l1=.nan"]),
        (RunConfig, "demo_image", ["--seed=-1"]),
        (TokenizerRunConfig, "demo_tokenizer", [f"--seed={2**64}"]),
    ],
)
def test_shares_and_counts_that_cannot_be(cls: type, config: str, words: list[str]) -> None:
    with pytest.raises(UserError) as found:
        load_config(cls, [f"--config={config}", "--run_dir=r", *words])
    names = [word[2:].partition("=")[0].removeprefix("model.") for word in words if word.startswith("--")]
    assert [name for name in names if name not in str(found.value)] == []
