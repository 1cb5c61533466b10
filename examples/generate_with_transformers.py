"""Generate a clip with a converted folder and transformers alone: megavrc need not be installed.

python examples/generate_with_transformers.py runs/demo/hf "a red square moves left" clip.gif
"""

import sys

from PIL import Image
from transformers import AutoModel


def main(folder: str, prompt: str, out: str) -> None:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    frames_BTHWC = model.generate_video(prompt, seed=1)
    images = [Image.fromarray(frame.numpy()) for frame in frames_BTHWC[0].cpu()]
    images[0].save(out, save_all=True, append_images=images[1:], duration=125, loop=0)
    print(f"{out}: {len(images)} frames of {images[0].width}x{images[0].height}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
