"""`megavrc COMMAND`: one table of all commands. Nothing is imported but what the command needs."""

import io
import sys
from collections.abc import Mapping
from typing import NamedTuple, NoReturn, cast

from megavrc.config import Function, command, find_name, load
from megavrc.errors import EXIT_INTERRUPTED, EXIT_USER, UserError


class Entry(NamedTuple):
    """A command: what it runs, "module:function" or several by their names, and what it is for, in a line."""

    run: str | Mapping[str, str]
    help: str
    reads_argv: bool = False  # the function reads the command line itself


COMMANDS: dict[str, dict[str, Entry]] = {
    "Start": {
        "doctor": Entry(
            "megavrc.launch.doctor:main",
            "check of this machine, this installation and the files that you brought",
            reads_argv=True,
        ),
        "demo": Entry(
            "megavrc.demo.run:main", "the whole path on a CPU, from videos to a report, in minutes"
        ),
    },
    "Videos and tokens": {
        "make_shapes": Entry("megavrc.video.shapes_set:make_shapes", "synthetic captioned clips"),
        "make_scenes": Entry("megavrc.video.scene_set:make_scenes", "synthetic clips whose future is open"),
        "make_gameplay": Entry(
            "megavrc.video.gameplay_set:make_gameplay", "clips of a game, with the actions of the player"
        ),
        "prepare_dataset": Entry(
            "megavrc.tokenization.prepare:COMMANDS", "the list of videos of a public data set, or of your own"
        ),
        "tokenize_videos": Entry(
            {
                "plan": "megavrc.tokenization.job:plan",
                "run": "megavrc.tokenization.job:run",
                "status": "megavrc.tokenization.result:status",
                "finalize": "megavrc.tokenization.result:finalize",
                "verify": "megavrc.tokenization.result:verify",
                "all": "megavrc.tokenization.job:run_all",
                "text-features": "megavrc.tokenization.text_features:text_features",
            },
            "videos to token shards, captions to text features, in any number of tasks",
        ),
        "inspect_shards": Entry("megavrc.tokenization.inspect:inspect", "what is in a token dataset"),
    },
    "Training": {
        "train_text_tokenizer": Entry(
            "megavrc.tokenizers.train_text:train_text_tokenizer", "a text tokenizer from captions"
        ),
        "pretrain_tokenizer": Entry(
            "megavrc.training.entry:pretrain_tokenizer", "train a video tokenizer", reads_argv=True
        ),
        "pretrain_vrc": Entry(
            "megavrc.training.entry:pretrain_vrc", "train VRC, both stages", reads_argv=True
        ),
        "pretrain_vlm": Entry(
            "megavrc.vlm.mini_task:pretrain_vlm",
            "train the mini-VLM, on which token reduction is measured",
            reads_argv=True,
        ),
        "plan_run": Entry(
            "megavrc.launch.plan_run:plan_run", "memory, throughput, time and cost of a run on N GPUs"
        ),
        "submit_slurm": Entry(
            {
                "submit": "megavrc.launch.submit:submit",
                "render": "megavrc.launch.submit:render",
                "requeue": "megavrc.launch.submit:requeue",
                "status": "megavrc.launch.submit:status",
            },
            "SLURM jobs, requeued until they are complete",
        ),
        "compare_runs": Entry("megavrc.training.compare:compare_runs", "metrics of two runs, compared"),
    },
    "Models and clips": {
        "convert_checkpoint": Entry(
            {
                "to-hf": "megavrc.hf.commands:to_hf",
                "from-hf": "megavrc.hf.commands:from_hf",
                "verify": "megavrc.hf.commands:verify",
                "import-omnitokenizer": "megavrc.hf.commands:import_omnitokenizer",
                "import-deepspeed": "megavrc.hf.commands:import_deepspeed",
            },
            "conversion to Hugging Face format and back, with a check; import of other checkpoints",
        ),
        "generate": Entry(
            "megavrc.generation.command:generate", "clips from prompts, classes, an image or a clip"
        ),
        "serve": Entry("megavrc.web.serve:serve", "a web page that generates clips"),
    },
    "Measurement": {
        "evaluate": Entry(
            {
                "all": "megavrc.generation.evaluate_all:all_metrics",
                "fvd": "megavrc.generation.evaluate_distance:fvd",
                "kvd": "megavrc.generation.evaluate_distance:kvd",
                "fd-self": "megavrc.generation.evaluate_self:fd_self",
                "clipsim": "megavrc.generation.evaluate_clips:clipsim",
                "drift": "megavrc.generation.evaluate_clips:drift",
                "copying": "megavrc.generation.evaluate_copying:copying",
                "redundancy": "megavrc.generation.evaluate_clips:redundancy",
                "export": "megavrc.generation.evaluate_clips:export",
                "seeds": "megavrc.evaluation.seeds:seeds",
                "alignment": "megavrc.generation.evaluate:alignment",
                "speed": "megavrc.benchmarks.speed:speed",
                "memory": "megavrc.benchmarks.memory:memory",
                "scenes": "megavrc.generation.evaluate_scenes:scenes",
            },
            "clips against real ones and their captions; drift, copying, redundancy; speed, memory",
        ),
        "user_study": Entry(
            {
                "build": "megavrc.web.user_study_build:build_study",
                "serve": "megavrc.web.user_study_serve:serve_study",
                "export": "megavrc.web.user_study_report:export_answers",
                "report": "megavrc.web.user_study_report:report_study",
            },
            "people compare the clips of two models, blind",
        ),
        "compress_vlm": Entry(
            {
                "list": "megavrc.vlm.commands:list_methods",
                "describe": "megavrc.vlm.commands:describe_method",
                "run": "megavrc.vlm.commands:run_method",
                "bench": "megavrc.vlm.bench:bench",
                "report": "megavrc.vlm.commands:report",
            },
            "LLMC+: fewer visual tokens and fewer bits in vision-language models, compared",
        ),
        "benchmark": Entry(
            {
                name: f"megavrc.benchmarks.{name}:{name}"
                for name in ("attention", "generate", "loader", "tokenize", "train")
            },
            "costs of the parts of the pipeline on this machine",
        ),
        "reproduce": Entry(
            "megavrc.paper.reproduce:COMMANDS",
            "the tables and figures of the paper and of the study, from result files",
        ),
        "results": Entry(
            {name: f"megavrc.results:{name}" for name in ("show", "compare", "page")},
            "result files: as tables, two compared, and in the tables of a page",
        ),
    },
}


def main(name: str | None = None) -> NoReturn:
    """Run a command of the table and exit.

    Args:
        name: of the command (default: the first word of the command line).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack letters of captions and names
        sys.stdout.reconfigure(errors="backslashreplace")
    entries = {name: entry for group in COMMANDS.values() for name, entry in group.items()}
    if name is None:
        if sys.argv[1:2] in ([], ["-h"], ["--help"]):
            print(overview())
            sys.exit(0 if sys.argv[1:] else EXIT_USER)
        try:
            name = find_name(sys.argv[1], entries, "command")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(EXIT_USER)
        del sys.argv[1]
    entry = entries[name]
    try:
        if entry.reads_argv:
            sys.exit(cast(Function, load(entry.run))(sys.argv[1:]))
        command(entry.run, f"megavrc {name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "megavrc":
            raise
        print(
            f"error: {error.name} is not installed; `megavrc doctor` names all that is missing",
            file=sys.stderr,
        )
        sys.exit(EXIT_USER)
    except KeyboardInterrupt:  # while the command is imported
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def overview() -> str:
    """The commands in their groups, one a line."""
    lines = [
        "usage: megavrc COMMAND [options]",
        "",
        "`megavrc COMMAND --help` names the options of a command.",
    ]
    for group, entries in COMMANDS.items():
        lines += ["", group, *(f"  {name:22}{entry.help}" for name, entry in entries.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
