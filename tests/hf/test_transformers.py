"""A converted folder in transformers, and the same folder without it."""

import base64
import http.server
import json
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megavrc.config import UserError
from megavrc.hf.folder import Folder, load_folder
from megavrc.model.clips import sampling_settings

PROMPTS = ["a red square moves left", "a blue dog"]


@pytest.fixture(scope="module")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What transformers computes in a fresh process in which megavrc cannot be imported."""
    out = tmp_path_factory.mktemp("fresh")
    run = subprocess.run(
        [sys.executable, "-I", Path(__file__).with_name("fresh.py"), folder, out],
        cwd=out,
        env=os.environ | {"HF_HOME": str(out), "HF_MODULES_CACHE": str(out / "modules")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return load_file(out / "results.safetensors")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Folder:
    return load_folder(folder)


def test_the_same_clips_with_and_without_transformers(results, loaded) -> None:
    _, frames = loaded.generate(PROMPTS, seeds=[5, 6])
    assert frames.shape == (2, 17, 16, 16, 3) and frames.dtype == torch.uint8
    assert torch.equal(frames, results["default"])
    layers = dict(temperature=0.0, guidance=2.0, later_temperature=1.0)
    ids, _ = loaded.generate(PROMPTS, seeds=[5, 9], settings=sampling_settings(layers))
    assert torch.equal(ids, results["cold"])
    one = loaded.generate(PROMPTS[:1], seeds=[5], frames=9)[1]
    assert one.shape[1] == 9 and torch.equal(one, results["one"])


def test_given_frames_are_kept(results, loaded) -> None:
    clip = results["default"]
    ids, frames = loaded.generate(PROMPTS, seeds=[5, 6], first_frame=clip[:, 0])
    assert torch.equal(frames, results["image"])
    assert torch.equal(ids[:, :1], loaded.video_tokenizer.encode(clip[:, :1]))
    ids, frames = loaded.generate(PROMPTS, seeds=[5, 6], clip=clip[:, :5])
    assert torch.equal(frames, results["clip"])
    assert torch.equal(ids[:, :2], loaded.video_tokenizer.encode(clip[:, :5]))


def test_text_ids_and_half_precision(results, source) -> None:
    assert results["text"].tolist() == [source.text.encode(prompt, 16) for prompt in PROMPTS]
    assert results["bfloat16"].shape == results["float16"].shape == results["default"].shape


def test_batches_do_not_change_a_clip(loaded) -> None:
    whole = loaded.generate(PROMPTS, seeds=[5, 6])[0]
    assert torch.equal(loaded.generate(PROMPTS, seeds=[5, 6], batch_size=1)[0], whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(prompts=["a red square moves left " * 4], seeds=[0]), "shorten it"),
        (dict(labels=[1], seeds=[0]), "generated from prompts"),
        (dict(prompts=["a"], seeds=[0, 1]), "2 for 1 clips"),
        (dict(prompts=["a"], seeds=[0], frames=21), "at most 17"),
        (dict(prompts=["a"], seeds=[0], frames=6), r"1 \+ 4k"),
        (dict(prompts=["a"], seeds=[0], first_frame=torch.zeros(1, 8, 8, 3, dtype=torch.uint8)), "16, 16, 3"),
    ],
)
def test_wrong_inputs_are_one_line(loaded, arguments, message) -> None:
    with pytest.raises(UserError, match=message) as error:
        loaded.generate(**arguments)
    assert "\n" not in str(error.value)


def test_wrong_inputs_in_transformers(folder) -> None:
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    model = VRCForVideoGeneration.from_pretrained(folder)
    with pytest.raises(ValueError, match="at most 15: shorten it"):
        model.generate_video("a red square moves left " * 4)
    with pytest.raises(ValueError, match="conditioned on text"):
        model.generate_video(label=0)
    with pytest.raises(ValueError, match="unknown sampling option heat"):
        model.generate_video("a", heat=1)
    with pytest.raises(ValueError, match="exactly one"):
        model.generate_video()


def test_a_folder_that_lacks_tensors_does_not_load_with_random_ones(folder, tmp_path) -> None:
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    tensors = load_file(folder / "model.safetensors")
    tensors.pop("vrc.head.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"vrc\.head are missing"):
        VRCForVideoGeneration.from_pretrained(tmp_path)


def test_the_example_writes_a_clip_without_megavrc(folder, tmp_path) -> None:
    example = Path(__file__).parents[2] / "examples" / "generate.py"
    command = [
        sys.executable,
        "-I",
        example,
        folder,
        PROMPTS[0],
        "--seed",
        "5",
        "--out",
        tmp_path / "clip.gif",
    ]
    run = subprocess.run(
        command, env=os.environ | {"HF_HOME": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0 and "clip.gif: 17 frames" in run.stdout, run.stderr
    assert (tmp_path / "clip.gif").read_bytes()[:4] == b"GIF8"


class Hub(http.server.BaseHTTPRequestHandler):
    """What push_to_hub asks a hub for; keeps the files of the commit."""

    files: dict[str, bytes] = {}

    @property
    def hub(self) -> str:
        return f"http://{self.headers['Host']}"

    def do_GET(self) -> None:
        self.answer({"id": "me/vrc", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self.answer({"url": f"{self.hub}/me/vrc", "name": "me/vrc"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer(
                {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            )
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.files |= {file["path"]: base64.b64decode(file["content"]) for file in files}
            self.answer({"success": True, "commitUrl": f"{self.hub}/me/vrc/commit/0", "commitOid": "0" * 40})
        else:  # checks of the model card
            self.answer({"errors": [], "warnings": []})

    def answer(self, content: dict[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_push_to_hub_sends_the_whole_folder_and_nothing_of_this_machine(folder, tmp_path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = (
        "import sys; sys.modules['megavrc'] = None\n"
        "from transformers import AutoModel\n"
        "AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).push_to_hub('me/vrc', token='hf_no')\n"
    )
    private = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    private |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "NO_PROXY": "127.0.0.1"}
    run = subprocess.run(
        [sys.executable, "-I", "-c", script, folder],
        env=os.environ | private,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    server.shutdown()
    assert run.returncode == 0, run.stderr
    assert Hub.files.keys() >= {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    pushed = tmp_path / "pushed"
    pushed.mkdir()
    for name, content in Hub.files.items():
        (pushed / name).write_bytes(content)
    assert_names_no_machine(pushed, folder, tmp_path)
    clips = [load_folder(path).generate(PROMPTS, seeds=[1, 2])[1] for path in (folder, pushed)]
    assert torch.equal(*clips)


def test_saving_again_names_no_machine(folder, tmp_path) -> None:
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    VRCForVideoGeneration.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert_names_no_machine(tmp_path / "again", folder, tmp_path)


def assert_names_no_machine(pushed: Path, *places: Path) -> None:
    secrets = [str(place) for place in (*places, Path(__file__).parents[2])]
    for word in (*secrets, f"{Path.home()}/", platform.node(), "/tmp/", "hf_no"):
        found = [
            path.name for path in pushed.iterdir() if len(word) > 3 and word.encode() in path.read_bytes()
        ]
        assert not found, (word, found)
