"""Train the mini-VLM of LLMC+: `pretrain_vlm.py --config mini_vlm_image [--dotted.key value ...]`; it resumes."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("pretrain_vlm")
