"""The adapter for lmms-eval, on a task made here."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("lmms_eval", reason="lmms-eval is in an environment of its own: docs/llmc.md says how")

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.tasks import TaskManager

from megavrc.errors import UserError
from megavrc.vlm.lmms import MANIFEST, ReducedCheckpoint

pytestmark = pytest.mark.slow
FUNCTIONS = """
from PIL import Image

def shown(doc):
    return [Image.open(doc["image"])] if doc["image"] else []

def asked(doc, kwargs=None):
    return doc["question"]

def judged(doc, results):
    return {"right": float(results[0] == doc["answer"])}
"""
TASK = """
task: made
dataset_path: json
dataset_kwargs:
  data_files:
    test: FILE
test_split: test
output_type: generate_until
doc_to_visual: !function made_functions.shown
doc_to_text: !function made_functions.asked
doc_to_target: answer
process_results: !function made_functions.judged
generation_kwargs:
  max_new_tokens: 3
  until: ["w9"]
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def tasks(tmp_path: Path) -> TaskManager:
    """A task of four documents: the three first about pictures of different sizes, the last about none."""
    documents = []
    for number, question in enumerate(("what is", "what", "is red", "red")):
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (32 + 8 * number, 40), (90 * number, 60, 200)).save(file)
        documents.append({"image": str(file) if number < 3 else "", "question": question, "answer": "w1"})
    (tmp_path / "made.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    (tmp_path / "made_functions.py").write_text(FUNCTIONS)
    (tmp_path / "made.yaml").write_text(TASK.replace("FILE", str(tmp_path / "made.jsonl")))
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def evaluated(model: Any, tasks: TaskManager, **more: Any) -> tuple[float, list[str]]:
    done = simple_evaluate(
        model, tasks=["made"], task_manager=tasks, bootstrap_iters=0, log_samples=True, **more
    )
    samples = sorted(done["samples"]["made"], key=lambda sample: sample["doc_id"])
    return done["results"]["made"]["right,none"], [sample["filtered_resps"][0] for sample in samples]


def test_a_task_is_answered_with_fewer_tokens(checkpoint: Path, tasks: TaskManager) -> None:
    """Found by its name; the unreduced answers are those of keep 1; batches change nothing; the score is the task's."""
    MODEL_REGISTRY_V2.register_manifest(
        MANIFEST, overwrite=True
    )  # what the entry point of an installed megavrc does
    arguments = f"checkpoint={checkpoint}"
    score, whole = evaluated("megavrc", tasks, model_args=arguments, device="cpu")
    assert len(whole) == 4 and score == sum(text == "w1" for text in whole) / 4
    assert (
        evaluated("megavrc", tasks, model_args=f"{arguments},method=divprune,keep=1.0", device="cpu")[1]
        == whole
    )
    half = [
        ReducedCheckpoint(str(checkpoint), "divprune", 0.5, device="cpu", batch_size=size) for size in (1, 3)
    ]
    found = [evaluated(one, tasks)[1] for one in half]
    assert found[0] == found[1]
    assert [one.tokens for one in half] == ["divprune: 96.0 of 192 tokens a layer (50.0%)"] * 2


def test_what_is_no_answer_is_refused(checkpoint: Path) -> None:
    model = ReducedCheckpoint(str(checkpoint), device="cpu")
    with pytest.raises(NotImplementedError, match="this one wants likelihoods"):
        model.loglikelihood([])
    model.task_dict = {"made": {"test": [{}]}}
    with pytest.raises(UserError, match="made 0: int is neither a picture nor a clip's file"):
        model.chat(("what", {}, lambda document: [3], 0, "made", "test"))
    for given, words in (
        ({"method": "divprun"}, "no method 'divprun'"),
        ({"keep": 0.25}, "keep is of a method, and none is given"),
        ({"frames": 0}, "frames: 0, give a whole number of at least 1"),
        ({"batch_size": "auto"}, "batch_size: auto, give a whole number of at least 1"),
        ({"method": "evs", "keep": 0.5}, "has no place for evs: it compares frames"),
    ):
        with pytest.raises(UserError, match=words):
            ReducedCheckpoint(str(checkpoint), **{"device": "cpu", **given})
