"""What users type: pictures and seeds in the usual types, names of options, other outputs."""

import inspect
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from megavrc.errors import UserError
from megavrc.generation.folder import Folder, load_folder
from megavrc.model import ClipRequest
from megavrc.model.clips import SAMPLING_OPTIONS, class_numbers, sampling_settings
from megavrc.model.inputs import first_frames, seed_list
from megavrc.model.modeling_vrc import VRCForVideoGeneration
from megavrc.model.sampling import uniforms

PROMPT = "a red square moves left"
PICTURE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)


@pytest.fixture(scope="module")
def model(folder: Path) -> VRCForVideoGeneration:
    return VRCForVideoGeneration.from_pretrained(folder)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Folder:
    return load_folder(folder)


@pytest.mark.parametrize(
    "given",
    [
        PICTURE,
        PICTURE[None],
        [PICTURE],
        PICTURE.transpose(2, 0, 1),
        (PICTURE / 255).astype(np.float32),
        PICTURE / 255,
        torch.tensor(PICTURE),
        torch.tensor(PICTURE)[None].permute(0, 3, 1, 2) / 255,
        Image.fromarray(PICTURE),
        [Image.fromarray(PICTURE)],
        Image.fromarray(PICTURE).convert("RGBA"),
    ],
)
def test_a_picture_in_the_usual_forms_is_the_same_picture(given) -> None:
    frames = first_frames(given, 2, 16)
    assert frames.dtype == torch.uint8
    assert torch.equal(frames, torch.tensor(PICTURE).expand(2, 1, 16, 16, 3))


def test_a_picture_at_a_path_starts_the_clip(model, loaded, tmp_path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "first.png")
    expected = model.generate_video(PROMPT, first_frame=torch.tensor(PICTURE), output="ids")
    for path in (tmp_path / "first.png", str(tmp_path / "first.png")):
        assert torch.equal(model.generate_video(PROMPT, first_frame=path, output="ids"), expected)
        assert torch.equal(loaded.generate(PROMPT, first_frame=path)[0], expected)


def test_a_picture_that_runs_backward() -> None:
    """As BGR of other libraries becomes RGB; torch takes no such array."""
    assert torch.equal(first_frames(PICTURE[..., ::-1], 1, 16)[0, 0], torch.tensor(PICTURE[..., ::-1].copy()))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"clip": "start.mp4"}, "clip: a str is no clip: give an array"),
        ({"clip": [Image.new("RGB", (8, 8))]}, "clip: a list is no clip: give an array"),
        (
            {"clip": torch.zeros(3, 5, 8, 8, 3, dtype=torch.uint8)},
            r"clip: shape \[3, 5, 8, 8, 3\] for 1 clips",
        ),
        ({"clip": torch.tensor(3)}, r"clip: shape \[\] for 1 clips"),
        ({"frames": "17"}, "frames: '17' is not a whole number"),
        ({"frames": 33, "overlap": 5.0}, "overlap: 5.0 is not a whole number"),
    ],
)
def test_what_is_no_clip_and_no_length(option, message) -> None:
    with pytest.raises(ValueError, match=message):
        ClipRequest.of(torch.zeros(1, 4, dtype=torch.long), {}, **option)


def test_pictures_of_other_sizes_are_scaled_and_cut_to_the_middle() -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 200  # the middle
    wide[:, :32] = wide[:, 64:] = 50
    square = first_frames(Image.fromarray(wide), 1, 16)[0, 0]
    assert square.shape == (16, 16, 3) and (square[:, 3:13] == 200).all()
    small = first_frames(np.full((5, 4, 3), 7, np.uint8), 1, 16)
    assert small.shape == (1, 1, 16, 16, 3) and (small == 7).all()
    turned = Image.fromarray(wide)
    turned.getexif()[274] = 6
    assert torch.equal(first_frames(turned, 1, 16)[0, 0], square.movedim(0, 1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((16, 16), np.uint8), r"shape \[16, 16\], expected \[H, W, 3\]"),
        (np.zeros((2, 3, 16, 16, 3), np.uint8), r"shape \[2, 3, 16, 16, 3\], expected"),
        (np.zeros((3, 16, 16, 3), np.uint8), "3 pictures for 2 clips"),
        (np.full((16, 16, 3), 255.0), "from 0 to 1"),
        (np.full((16, 16, 3), np.nan), "from 0 to 1"),
        (np.zeros((16, 16, 3), np.int64), "int64, expected uint8"),
        ("nowhere.png", "nowhere.png: not a picture"),
        (__file__, "not a picture"),
        (object(), "a object is no picture"),
        ([], "an empty list"),
        (np.array(["a"]), "is no picture"),
        (Image.new("I;16", (16, 16), 500), "not 8 bits a channel: mode I;16"),  # which converting clips
        (Image.new("F", (16, 16), 0.5), "not 8 bits a channel: mode F"),
    ],
)
def test_what_is_no_picture_is_said_in_words(given, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        first_frames(given, 2, 16)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["png", "webp", "bmp", "avif"])
def test_a_damaged_picture_at_a_path_is_one_line_that_names_it(tmp_path, kind) -> None:
    """Pillow's readers raise SyntaxError, RuntimeError, DecompressionBombError and more."""
    if kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    path = tmp_path / f"first.{kind}"
    Image.fromarray(PICTURE).save(path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for number in range(60):
        bad = np.frombuffer(whole, np.uint8).copy()
        bad[random.integers(0, len(bad), 5)] = random.integers(0, 256, 5)
        if kind == "bmp" and number == 0:
            bad[18:26] = 100  # its width and height: a bomb
        path.write_bytes(bad[: random.integers(len(bad) // 2, 2 * len(bad))].tobytes())
        try:
            first_frames(path, 1, 16)
        except ValueError as error:
            assert str(error).startswith(f"first_frame: {path}: not a picture") and "\n" not in str(error)
            refused += 1
    assert refused


@pytest.mark.parametrize(
    "seed", [5, np.int64(5), np.uint8(5), torch.tensor(5), np.array(5), [5, 6], (5, np.int64(6))]
)
def test_seeds_of_usual_types(seed) -> None:
    assert seed_list(seed, 2) == [5, 6]


@pytest.mark.parametrize("seed", [np.array([5, 6]), torch.tensor([5, 6]), range(5, 7)])
def test_seeds_of_arrays(seed) -> None:
    assert seed_list(seed, 2) == [5, 6]


def test_seeds_of_generators_and_none() -> None:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    one = generator()
    first, second = seed_list(one, 2), seed_list(one, 2)
    assert first == seed_list(generator(), 2) and len({*first, *second}) == 4
    assert seed_list([generator()], 1) == first[:1]
    with pytest.warns(UserWarning, match=r"seed=\d+ makes the same again") as said:
        (chosen,) = seed_list(None, 1)
    assert f"seed={chosen} " in str(said[0].message)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        ("5", "neither"),
        (1.5, "neither"),
        ([1.5], "neither"),
        (torch.tensor(3.0), "neither"),
        (np.array(3.0), "neither"),
        (True, "neither"),
        (torch.tensor(True), "neither"),
        ([True, False], "neither"),
        ({1: 2, 3: 4}, "neither"),
        pytest.param(10**5000, "of thousands of digits is not between", id="long"),
        (-1, "between"),
        (2**64, "between"),
        ([1], "1 for 2"),
    ],
)
def test_what_is_no_seed(seed, message) -> None:
    with pytest.raises(ValueError, match=f"seed: .*{message}"):
        seed_list(seed, 2)


@pytest.mark.parametrize("label", [1, "1", "bike", [1], np.array(1), torch.tensor(1), torch.tensor([1])])
def test_labels_of_usual_types(label) -> None:
    assert class_numbers(label, 3, ["car", "bike", "dog"]) == [1]


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (True, "unknown label True"),
        ([torch.tensor(True)], r"unknown label tensor\(True\)"),
        (torch.tensor(1.0), r"unknown label tensor\(1\.\)"),
        ({1: 2}, r"unknown label \{1: 2\}"),
        ("x" * 100_000, "unknown label xxx"),
        (10**5000, "label int of thousands of digits is not one of"),
        ([[10**5000]], "unknown label list of thousands of digits"),
    ],
    ids=range(7),
)
def test_what_is_no_label(label, said) -> None:
    with pytest.raises(ValueError, match=f"^{said}") as error:
        class_numbers(label, 3, ["car", "bike", "dog"])
    assert len(str(error.value)) < 200


def test_all_64_bits_of_a_seed_count(model) -> None:
    seeds = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**63, 2**64 - 1]
    rows = uniforms(seeds, 8, "cpu")
    assert len({tuple(row.tolist()) for row in rows}) == len(seeds)
    assert torch.equal(uniforms(seeds, 5, "cpu"), rows[:, :5]), "longer jobs begin alike"
    known = torch.rand(8, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert torch.equal(uniforms([7], 8, "cpu")[0], known), "clips of small seeds stay"
    clips = model.generate_video([PROMPT] * 2, seed=[0, 2**32], temperature=2.0, output="ids")
    assert not torch.equal(*clips)


def test_outputs_in_other_forms(model) -> None:
    pixels = model.generate_video([PROMPT] * 2, frames=5)
    images = model.generate_video([PROMPT] * 2, frames=5, output="pil")
    assert [len(clip) for clip in images] == [5, 5]
    assert np.array_equal(np.array(images[1][4]), pixels[1, 4].numpy())
    array = model.generate_video([PROMPT] * 2, frames=5, output="np")
    assert array.dtype == np.float32 and np.array_equal(np.rint(array * 255), pixels.numpy())
    tensor = model.generate_video([PROMPT] * 2, frames=5, output="pt")
    assert torch.equal(tensor, torch.tensor(array).movedim(-1, 2))
    with pytest.raises(ValueError, match="'mp4' is not one of uint8, ids, pil, np, pt"):
        model.generate_video(PROMPT, output="mp4")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "prompt: an empty list"),
        (3, "prompt: 3 is not a text"),
        (b"dog", "prompt: b'dog' is not a text"),
        ({"a dog": 1}, "prompt: {'a dog': 1} is not a text"),
        (["a dog", None], "prompt: None is not a text"),
        ("a \ud800", r"prompt 'a \\ud800': holds half a character"),
        (np.array(["a dog", "a cat"]), None),
        (iter(["a dog", "a cat"]), None),
    ],
)
def test_prompts_are_texts(model, loaded, prompt, said) -> None:
    if said is None:
        assert len(model._condition(prompt, None, None)) == 2
        return
    for generate in (model.generate_video, loaded.generate):
        with pytest.raises(ValueError, match=said):
            generate(prompt)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("a dog", "a str is neither a Condition nor its tensors"),
        ([[0] * 16], "a list is neither"),
        (torch.zeros(1, 16), "ids are whole numbers from 0 to"),
        (torch.full((1, 16), 10_000), "ids are whole numbers from 0 to"),
        (torch.full((1, 16), -1), "ids are whole numbers from 0 to"),
        (torch.zeros(1, 3, dtype=torch.long), "the condition has 3 slots, the model takes 16"),
        (torch.zeros(0, 16, dtype=torch.long), r"shape \[0, 16\], expected one row"),
        (torch.tensor(1), r"shape \[\], expected one row"),
        ((), "a tuple is neither"),
        ((1, 2), "a tuple is neither"),
        ((torch.zeros(1, 16), torch.ones(1, 16), 3), "a tuple is neither"),
    ],
)
def test_what_is_no_condition(model, condition, said) -> None:
    with pytest.raises(ValueError, match=said):
        model.generate_video(condition=condition)


def test_options_of_another_call_are_not_its_own_meaning(model, loaded) -> None:
    given = torch.zeros(1, 16, dtype=torch.long)
    for call, options in (
        (model.stream_video, {"output": "pil"}),
        (loaded.generate, {"output": "ids"}),
        (loaded.generate, {"condition": given}),
    ):
        with pytest.raises(ValueError, match=f"^{next(iter(options))}: not an option of this call"):
            call(PROMPT, **options)
    for name in ("defaults", "cls", "side"):
        for call in (loaded.generate, model.generate_video, model.stream_video):
            with pytest.raises(ValueError, match=f"unknown option {name}"):
                call(PROMPT, **{name: 1})
    for settings in ({}, 3, "greedy"):
        with pytest.raises(UserError, match=f"settings: a {type(settings).__name__} is no SamplingSettings"):
            loaded.generate(PROMPT, settings=settings)


def test_numbers_of_any_library_are_python_numbers(model) -> None:
    half = {"temperature": Fraction(1, 2), "top_p": Fraction(1, 2), "guidance": Fraction(3, 2)}
    expected = model.generate_video(PROMPT, temperature=0.5, top_p=0.5, guidance=1.5, top_k=9, output="ids")
    got = model.generate_video(PROMPT, **half, top_k=np.int64(9), output="ids")
    assert torch.equal(got, expected)
    settings = sampling_settings({**half, "top_k": np.int64(9)})
    assert [type(settings.guidance), type(settings.first.top_p), type(settings.first.top_k)] == [
        float,
        float,
        int,
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"later_passes": [1] * 100_000},
        {"later_passes": [0] * 100_000},
        {"later_passes": [10**5000]},
        {"later_passes": 10**5000},
        {"row_passes": 10**5000},
        {"overlap": 10**400 + 1},
        {"frames": -(10**5000)},
        {"temperature": 10**5000},
        {"temperature": 10**400},
        {"draft": "x" * 100_000},
        {"seed": -(10**5000)},
        {"seed": "1" * 100_000},
        {"x" * 100_000: 1},
    ],
    ids=range(13),
)
def test_errors_show_the_beginning_of_what_is_long(loaded, options) -> None:
    with pytest.raises(UserError) as error:
        loaded.generate(PROMPT, **options)
    said = str(error.value)
    assert len(said) < 700 and "\n" not in said and next(iter(options))[:60] in said


@pytest.mark.parametrize("size", [0, -1, 1.5, "2"])
def test_batches_have_clips(loaded, size) -> None:
    with pytest.raises(UserError, match=f"batch_size: {size!r} is not a positive number"):
        loaded.generate(PROMPT, batch_size=size)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("num_frames", "frames"),
        ("guidance_scale", "guidance"),
        ("temprature", "temperature"),
        ("image", "first_frame"),
    ],
)
def test_unknown_names_name_what_was_meant(model, loaded, name, meant) -> None:
    for generate in (
        model.generate_video,
        loaded.generate,
        lambda *a, **o: list(model.stream_video(*a, **o)),
    ):
        with pytest.raises(ValueError, match=f"unknown option {name}, did you mean {meant}.* top_p"):
            generate(PROMPT, **{name: 9})


def test_options_that_nothing_is_like_are_answered_with_the_list(model) -> None:
    with pytest.raises(ValueError, match=r"unknown option num_inference_steps\. There are prompt, .* draft"):
        model.generate_video(PROMPT, num_inference_steps=50)


def test_help_names_every_option() -> None:
    named = set(inspect.signature(VRCForVideoGeneration.generate_video).parameters)
    assert named >= {
        *SAMPLING_OPTIONS,
        "label",
        "condition",
        "first_frame",
        "clip",
        "frames",
        "overlap",
        "seed",
    }


@pytest.mark.parametrize(
    "name", ["temperature", "later_temperature", "guidance", "later_guidance", "plausibility"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(model, name, value) -> None:
    with pytest.raises(ValueError, match=f"{name}: {value} is not a finite number"):
        model.generate_video(PROMPT, **{name: value})
