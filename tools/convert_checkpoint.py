"""Runs to Hugging Face format and back (to-hf, from-hf), their check (verify), and what other programs trained."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("convert_checkpoint")
