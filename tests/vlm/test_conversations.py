"""Several turns about one picture: over the cache of the turn before, or anew with a selection fresh or frozen."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from megavrc.errors import UserError
from megavrc.vlm import reduce
from megavrc.vlm.tiny import END, FAMILIES, IMAGE, START, VIDEO, batch, prompt, tiny


def turn(model: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    return model.generate(
        **inputs,
        max_new_tokens=3,
        do_sample=False,
        suppress_tokens=[IMAGE, VIDEO, START, END],
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )


def next_question(inputs: dict[str, Tensor], said: Tensor, words: list[int]) -> dict[str, Tensor]:
    """The conversation so far as it was given, the answer, and the next question."""
    question = torch.tensor([words]).expand(len(said), -1)
    ids = torch.cat([said, question], 1)
    tail = ids.shape[1] - inputs["input_ids"].shape[1]
    grown = {"input_ids": ids}
    for name in ("attention_mask", "mm_token_type_ids"):
        if name in inputs:
            fill = 1 if name == "attention_mask" else 0
            grown[name] = torch.nn.functional.pad(inputs[name], (0, tail), value=fill)
    return {**inputs, **grown}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_of_the_first_turn_is_its_selection_frozen(family: str) -> None:
    """Before the LLM and inside it, both policies, two conversations of different length in a batch."""
    model = tiny(family)
    first = batch(prompt(family, [5], "image", [6, 7]), prompt(family, [9], "image", [5, 4, 6], seed=2))
    for method, close in (("cdpruner", False), ("strided", True), ("fastv", True), ("sparsevlm", False)):
        keep = 0.75 if method in ("fastv", "sparsevlm") else 0.3
        if method == "strided" and family in ("llava_next_video", "llava_onevision"):
            continue  # the same path as cdpruner
        with (
            torch.no_grad(),
            reduce(model, method, keep=keep, positions="renumbered" if close else "kept", selection="frozen"),
        ):
            one = turn(model, first)
            second = next_question(first, one.sequences, [30, 31, 32])
            anew = turn(model, second)
            again = turn(model, second, past_key_values=copy.deepcopy(one.past_key_values))
            words = {"input_ids": second["input_ids"], "attention_mask": second["attention_mask"]}
            third = turn(model, words, past_key_values=one.past_key_values)
        for other in (again, third):
            assert torch.equal(other.sequences, anew.sequences), method
            torch.testing.assert_close(other.logits[0], anew.logits[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "dart", "cdpruner"])
def test_a_fresh_selection_follows_the_new_question_and_a_frozen_one_does_not(method: str) -> None:
    model, first = tiny("llava"), prompt("llava", [5], "image", [6, 7])
    logits = {}
    for selection in ("fresh", "frozen"):
        with torch.no_grad(), reduce(model, method, keep=0.6, selection=selection) as seen:
            one = turn(model, first)
            second = next_question(first, one.sequences, [90, 91, 92, 93])
            logits[selection] = turn(model, second).logits[0]
        assert abs(seen.keep - 0.6) < 0.01 and seen.unreduced == 128
    assert not torch.allclose(logits["fresh"], logits["frozen"], atol=1e-5)
    with torch.no_grad(), reduce(model, method, keep=0.6):
        torch.testing.assert_close(turn(model, second).logits[0], logits["fresh"])


@pytest.mark.parametrize("method", ["fastv", "divprune"])
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_decoding_by_hand_over_a_cache(family: str, method: str) -> None:
    """`model(new tokens, past_key_values=..)` has the positions and the mask of what was cut."""
    model, inputs = tiny(family), prompt(family, [5], "image", [6, 7])
    inputs = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
    with torch.no_grad(), reduce(model, method, keep=0.75):
        expected = turn(model, inputs)
        cache, logits = None, []
        ids = inputs
        for step in range(3):
            out = model(**ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits[:, -1])
            ids = {"input_ids": expected.sequences[:, -3 + step][:, None]}
    torch.testing.assert_close(torch.stack(logits), torch.stack(expected.logits), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["fastv", "divprune"])
def test_a_cache_in_a_tuple_and_a_pass_that_failed_leave_positions_right(method: str) -> None:
    """A cache is also found where `return_dict=False`; a prompt whose pass failed is not taken for that of the next."""
    model, other = tiny("llava"), prompt("llava", "image", [7])
    two = prompt("llava", [5, 6], "image", [9], "image", [7])
    new = {"input_ids": torch.tensor([[9]])}

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    with torch.no_grad(), reduce(model, method, keep=0.5):
        cache = model(**two, use_cache=True).past_key_values
        expected = [model(**new, past_key_values=cache).logits for _ in range(2)]
        cache = model(**two, use_cache=True, return_dict=False)[1]
        found = [model(**new, past_key_values=cache).logits for _ in range(2)]
        torch.testing.assert_close(found, expected)
        cache = model(**two, use_cache=True).past_key_values
        hook = model.lm_head.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="no memory"):
            model(**other)
        hook.remove()
        found = [model(**new, past_key_values=cache).logits for _ in range(2)]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", ["divprune", "cdpruner", "fastv"])
def test_a_later_turn_may_have_a_picture_of_its_own_without_a_cache(method: str) -> None:
    """The selection of the first stays where it is frozen; that of the new one is made when it comes."""
    model, logits = tiny("qwen2_5_vl"), {}
    first = prompt("qwen2_5_vl", [5], "image", [6, 7])
    second = prompt("qwen2_5_vl", [5], "image", [6, 7, 30, 31], "image", [90, 91, 92])
    for selection in ("fresh", "frozen"):
        with torch.no_grad(), reduce(model, method, keep=0.6, selection=selection) as seen:
            model(**first)
            logits[selection] = model(**second).logits[:, -1]
        assert seen.unreduced == 3 * 16
    same = torch.allclose(logits["fresh"], logits["frozen"], atol=1e-6)
    assert same == (method == "divprune")  # the others look at the prompt


def test_what_is_no_continuation_is_refused() -> None:
    model, first = tiny("qwen2_vl"), prompt("qwen2_vl", [5], "image", [6, 7])
    with torch.no_grad(), reduce(model, "fastv", keep=0.75):
        one = turn(model, first)
        second = next_question(first, one.sequences, [30])
        second["input_ids"][0, 0] = 77
        with pytest.raises(UserError, match="the cache holds another conversation"):
            turn(model, second, past_key_values=one.past_key_values)
        more = next_question(first, one.sequences, [30, IMAGE])
        with pytest.raises(UserError, match="a new picture after a cache"):
            turn(model, more, past_key_values=one.past_key_values)
    with torch.no_grad(), reduce(model, "pyramiddrop", keep=0.75):
        second = next_question(first, one.sequences, [30])
        with pytest.raises(UserError, match="this cache was made by another method"):
            turn(model, second, past_key_values=one.past_key_values)
    with torch.no_grad(), reduce(model, "divprune", keep=0.75, selection="frozen"):
        turn(model, first)
        with pytest.raises(UserError, match="picture 1 of row 1 is another than in the first turn"):
            turn(model, prompt("qwen2_vl", [5], "image", [6, 7], seed=5))
        with pytest.raises(UserError, match="pictures after a cache"):
            turn(model, first, past_key_values=turn(tiny("qwen2_vl"), first).past_key_values)
    with pytest.raises(UserError, match="selection is fresh or frozen, not 'old'"):
        with reduce(model, "divprune", keep=0.5, selection="old"):  # type: ignore[arg-type]
            pass
