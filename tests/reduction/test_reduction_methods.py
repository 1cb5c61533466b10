"""What holds for every method, on clips and pictures of odd sizes."""

import ast
import inspect
import math
import textwrap
from dataclasses import fields, replace

import pytest
import torch

from megavrc.reduction import (
    METHODS,
    Reduction,
    Tokens,
    calibrate,
    find_method,
    reduce_tokens,
    register,
    schedule,
)
from megavrc.reduction.method import SHARES

EXACT = [name for name, method in METHODS.items() if not method.calibrated]
PICTURES = [name for name in EXACT if METHODS[name].kind != "temporal"]


def clip(
    frames: int = 5, height: int = 3, width: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tokens:
    """Random tokens with all that a host can know."""
    draw = torch.Generator().manual_seed(seed)
    count = frames * height * width

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    def attention(*shape: int) -> torch.Tensor:
        return normal(*shape).softmax(-1)

    return Tokens(
        normal(count, 8).to(dtype), (frames, height, width), cls=attention(count), attention=attention(count),
        middle=attention(count), keys=normal(count, 6), last_row=attention(count), own_row=attention(count),
        rater_rows=attention(3, count), text=normal(7, 8), text_keys=normal(7, 6),
    )  # fmt: skip


def least(name: str, tokens: Tokens) -> int:
    """The smallest count that the method can leave."""
    frames, height, width = tokens.shape
    return {"evs": height * width, "dycoke": -(-frames // 4) * height * width}.get(name, 1)


def check(found: Reduction, tokens: Tokens, name: str) -> None:
    """The promises of `Reduction`."""
    count, total = len(found), len(tokens)
    assert found.features.shape == (count, tokens.features.shape[1])
    assert found.features.dtype == tokens.features.dtype
    assert torch.isfinite(found.features).all()
    assert found.index.dtype == found.assign.dtype == torch.int64
    assert (found.index[1:] > found.index[:-1]).all()
    assert 0 <= found.index[0] and found.index[-1] < total
    assert found.assign.shape == (total,)
    assert set(found.assign.tolist()) - {-1} == set(range(count))
    went = torch.stack([tokens.sizes[found.assign == output].sum() for output in range(count)])
    torch.testing.assert_close(found.size, went)
    if METHODS[name].rest == "merged" and count >= tokens.shape[0]:  # else frames go
        torch.testing.assert_close(found.size.sum(), tokens.sizes.sum())
    if METHODS[name].rest == "dropped":
        assert torch.equal(found.features, tokens.features[found.index])


@pytest.mark.parametrize("name", EXACT)
def test_counts_are_exact(name: str) -> None:
    for frames, height, width in ((5, 3, 5), (8, 2, 3)):
        tokens = clip(frames, height, width)
        for count in {least(name, tokens), 9, 25, 38, len(tokens) - 1}:
            if count >= least(name, tokens):
                found = reduce_tokens(tokens, name, count)
                assert len(found) == count
                check(found, tokens, name)


@pytest.mark.parametrize("name", PICTURES)
def test_counts_are_exact_on_pictures(name: str) -> None:
    tokens = clip(1, 5, 7)
    for count in (1, 2, 9, 17, 34):
        found = reduce_tokens(tokens, name, count)
        assert len(found) == count
        check(found, tokens, name)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_tokens_are_the_identity_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    tokens = clip(dtype=dtype)
    found = reduce_tokens(tokens, name, len(tokens))
    assert torch.equal(found.features, tokens.features) and found.features.dtype == dtype
    assert torch.equal(found.index, torch.arange(len(tokens)))
    assert torch.equal(found.assign, found.index) and (found.size == 1).all()


def test_no_two_methods_do_the_same() -> None:
    """Of random tokens half are left; a method is told apart by the places and by what stands there."""
    tokens = clip(8, 3, 5)
    found = {name: reduce_tokens(tokens, name, 60) for name in METHODS}
    seen: dict[tuple[object, ...], str] = {}
    for name, left in found.items():
        sign = (*left.index.tolist(), *left.features.flatten().tolist())
        assert sign not in seen, f"{name} does what {seen[sign]} does"
        seen[sign] = name


@pytest.mark.parametrize("name", METHODS)
def test_the_same_input_gives_the_same_output(name: str) -> None:
    tokens = clip()
    first, again = reduce_tokens(tokens, name, 40), reduce_tokens(clip(), name, 40)
    assert torch.equal(first.features, again.features) and torch.equal(first.index, again.index)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_is_reduced_in_full(name: str) -> None:
    """Tokens in bf16 leave what the same numbers in fp32 leave, rounded once."""
    half = clip(dtype=torch.bfloat16)
    full = replace(half, features=half.features.float())
    found, wanted = (reduce_tokens(tokens, name, 40) for tokens in (half, full))
    check(found, half, name)
    assert torch.equal(found.index, wanted.index)
    assert torch.equal(found.features, wanted.features.bfloat16())


@pytest.mark.parametrize("name", METHODS)
def test_views_of_larger_tensors_are_taken_as_they_are(name: str) -> None:
    """Features and scores that do not lie in memory one after the other, as heads and layers of a host do not."""
    tokens = clip()
    scattered = {
        field.name: torch.stack([value, value], -1)[..., 0]
        for field in fields(tokens)
        if isinstance(value := getattr(tokens, field.name), torch.Tensor)
    }
    assert not scattered["features"].is_contiguous()
    first, again = (reduce_tokens(given, name, 40) for given in (tokens, replace(tokens, **scattered)))
    assert torch.equal(first.index, again.index)
    torch.testing.assert_close(first.features, again.features)


@pytest.mark.parametrize("name", METHODS)
def test_frames_do_not_depend_on_later_ones_where_that_is_said(name: str) -> None:
    """A clip that hardly moves, and the last of its five frames becomes another: what is left of the others must not
    change, or the method must say so."""
    tokens, other, area = clip(), clip(seed=1), 15
    still = tokens.features[:area].repeat(5, 1) + 0.1 * tokens.features
    tokens = replace(tokens, features=still)
    last = {
        field.name: torch.cat([value[: 4 * area], getattr(other, field.name)[4 * area :]])
        for field in fields(tokens)
        if isinstance(value := getattr(tokens, field.name), torch.Tensor) and len(value) == len(tokens)
    }
    rows = torch.cat([tokens.known("rater_rows")[:, : 4 * area], other.known("rater_rows")[:, 4 * area :]], 1)
    changed = replace(tokens, **last, rater_rows=rows)
    before, after = (reduce_tokens(given, name, 40) for given in (tokens, changed))
    early = [(left.index < 4 * area).sum() for left in (before, after)]
    same = torch.equal(before.index[: early[0]], after.index[: early[1]]) and torch.equal(
        before.features[: early[0]], after.features[: early[1]]
    )
    assert same == METHODS[name].causal


@pytest.mark.parametrize(
    "field", [field.name for field in fields(Tokens) if field.name not in ("grid", "size")]
)
def test_nan_is_refused_by_name(field: str) -> None:
    value = getattr(clip(), field).clone()
    value.view(-1)[3] = torch.nan
    with pytest.raises(ValueError, match=f"{field} holds NaN"):
        reduce_tokens(replace(clip(), **{field: value}), "random", 5)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_needs_is_what_it_says(name: str) -> None:
    """With only those fields it runs; without any one of them it is refused by name."""
    whole, method = clip(), METHODS[name]
    needed = {need.split(" or ")[0] for need in method.needs} | {"grid"}
    only = replace(
        whole, **{field.name: None for field in fields(whole) if field.name not in {"features", *needed}}
    )
    reduce_tokens(only, name, 40)
    for need in method.needs:
        with pytest.raises(ValueError, match=f"{name} needs {need}"):
            reduce_tokens(replace(only, **{field: None for field in need.split(" or ")}), name, 40)


def test_mistakes_are_told() -> None:
    tokens = clip()
    with pytest.raises(ValueError, match="no method 'divprun': divprune"):
        find_method("divprun")
    with pytest.raises(ValueError, match="random has no option temperature: seed"):
        reduce_tokens(tokens, "random", 5, temperature=1)
    with pytest.raises(ValueError, match="evs compares frames"):
        reduce_tokens(clip(1), "evs", 5)
    with pytest.raises(
        ValueError, match="EVS keeps the first frame whole: it leaves at least 15 tokens, not 14"
    ):
        reduce_tokens(tokens, "evs", 14)
    with pytest.raises(ValueError, match="cdpruner is guided by the prompt, and this one has no words"):
        reduce_tokens(replace(tokens, text=tokens.features[:0]), "cdpruner", 5)
    for count in (0, 76, 2.5, "5", None):
        with pytest.raises(ValueError, match=f"{count!r} of 75 tokens"):
            reduce_tokens(tokens, "random", count)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cls has 4 entries for 75 tokens"):
        replace(tokens, cls=torch.ones(4))
    for grid in ((5, 3, 4), (5, 15), (5.0, 3, 5), "535", 75):
        with pytest.raises(ValueError, match=r"is not \(T, H, W\) of the 75 tokens"):
            replace(tokens, grid=grid)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is a method fastv already"):
        register("again", "baseline", kind="both")(METHODS["fastv"].function)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tokens: find_method(None), "no method None: bilinear"),
        (lambda tokens: find_method(METHODS["fastv"]), r"no method Method\(name='fastv'"),
        (lambda tokens: reduce_tokens(tokens.features, "random", 5), "random reduces Tokens.* not Tensor"),
        (
            lambda tokens: reduce_tokens(tokens, "random", 5, seed="x"),
            "random: seed is a whole number, not 'x'",
        ),
        (lambda tokens: Tokens(tokens.features.numpy()), r"features must be a tensor \[N, D\], not ndarray"),
        (
            lambda tokens: schedule("fastv", 0.5, 75, 32),
            "takes a method, as find_method gives it, not 'fastv'",
        ),
        (lambda tokens: schedule(METHODS["fastv"], 0.5, 0, 32), "total is a whole number, at least 1, not 0"),
        (lambda tokens: schedule(METHODS["fastv"], 0.5, 75, "32"), "depth is a whole number.* not '32'"),
        (lambda tokens: calibrate("prumerge", [tokens], "0.5"), "keep is a share .* not '0.5'"),
    ],
)
def test_arguments_of_a_wrong_type_are_told(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call(clip())


@pytest.mark.parametrize(
    ("name", "option", "value", "wanted"),
    [
        ("prumerge", "outlier", math.nan, "a finite number"),
        ("prumerge", "neighbours", 2.5, "a whole number"),
        ("vidcom2", "temperature", math.inf, "a finite number"),
        ("vidcom2", "temperature", "1", "a finite number"),
        ("dart", "pivots", 2.5, "a whole number"),
        ("dart", "pivots", -1, "a whole number, at least 1"),
        ("random", "seed", 1.5, "a whole number"),
        ("mustdrop", "side", 0, "a whole number, at least 1"),
        ("prunevid", "clusters", 9.0, "a share from 0 to 1"),
        ("sparsevlm", "share", -0.1, "a share from 0 to 1"),
    ],
)
def test_values_that_an_option_does_not_take_are_told(
    name: str, option: str, value: object, wanted: str
) -> None:
    with pytest.raises(ValueError, match=f"{name}: {option} is {wanted}, not {value!r}"):
        reduce_tokens(clip(), name, 40, **{option: value})


@pytest.mark.parametrize("name", METHODS)
def test_options_may_be_at_the_ends_of_what_they_take(name: str) -> None:
    for option, default in METHODS[name].options.items():
        for value in (1, 10**6) if isinstance(default, int) else (0, 1) if option in SHARES else (default,):
            check(reduce_tokens(clip(), name, 40, **{option: value}), clip(), name)
    reduce_tokens(clip(), "random", 40, seed=-3)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_at_most_fifteen_lines(name: str) -> None:
    function = ast.parse(textwrap.dedent(inspect.getsource(METHODS[name].function))).body[0]
    assert isinstance(function, ast.FunctionDef) and ast.get_docstring(function)
    document = function.body[0]
    lines = (function.end_lineno or 0) - function.lineno + 1
    assert lines - ((document.end_lineno or 0) - document.lineno + 1) <= 15


@pytest.mark.parametrize("name", METHODS)
def test_a_method_describes_itself(name: str) -> None:
    method, text = METHODS[name], METHODS[name].describe()
    known = (method.title, method.paper, method.kind, method.rest, method.left_out, method.follows)
    for part in (*known, *method.needs, *method.options):
        assert part in text
    assert (method.place == "llm") == bool(method.layers)


def test_a_calibrated_method_meets_the_budget_on_other_inputs() -> None:
    """PruMerge's count is what its threshold makes of the content; calibrated on 8 pictures, it is met on 8 others."""
    pictures = [clip(1, 8, 8, seed) for seed in range(16)]
    for keep in (0.5, 0.2, 0.1):
        options = calibrate("prumerge", pictures[:8], keep)
        left = [len(reduce_tokens(tokens, "prumerge", 1, **options)) for tokens in pictures[8:]]
        assert abs(sum(left) / 8 - keep * 64) < 4 and len(set(left)) > 1
    assert calibrate("divprune", pictures, 0.5) == {}
    with pytest.raises(ValueError, match="prumerge is calibrated on pictures, and there is none"):
        calibrate("prumerge", [], 0.5)


def test_sizes_of_a_first_reduction_go_into_the_second() -> None:
    """ToMe in two layers: 35 tokens, then 20, then 12; the sizes still add up to 35, and the sum of all is the same."""
    tokens = clip(1, 5, 7)
    first = reduce_tokens(tokens, "tome", 20)
    second = reduce_tokens(
        Tokens(first.features, size=first.size, keys=tokens.known("keys")[first.index]), "tome", 12
    )
    assert second.size.sum() == 35
    torch.testing.assert_close(
        (second.features * second.size[:, None]).sum(0), tokens.features.sum(0), atol=1e-5, rtol=1e-5
    )
