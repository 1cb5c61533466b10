"""Generate a clip from a converted folder with transformers alone, and write a GIF.

megavrc need not be installed, unless the folder has no code of its own, as examples/scenes.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModel

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", help="converted folder")
parser.add_argument("prompt", help="what the clip should show")
parser.add_argument("--seed", type=int, default=0, help="another seed, another clip (default 0)")
parser.add_argument("--out", default="clip.gif", help="file to write (default clip.gif)")
options = parser.parse_args()

try:
    if not Path(options.model, "config.json").is_file():
        raise ValueError(f"{options.model}: no converted folder: it has no config.json")
    if Path(options.model, "modeling_vrc.py").is_file():
        model = AutoModel.from_pretrained(options.model, trust_remote_code=True)
    else:
        from megavrc.model.modeling_vrc import VRCForVideoGeneration

        model = VRCForVideoGeneration.from_pretrained(options.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    frames_THWC = model.generate_video(options.prompt, seed=options.seed)[0].cpu().numpy()
    first, *later = [Image.fromarray(frame) for frame in frames_THWC]
    first.save(options.out, save_all=True, append_images=later, duration=125, loop=0)
except (ImportError, OSError, ValueError) as error:
    parser.exit(2, f"error: {' '.join(str(error).split())}\n")
print(f"{options.out}: {len(frames_THWC)} frames")
