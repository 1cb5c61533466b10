"""LLMC+: fewer visual tokens and fewer bits in vision-language models: methods, one run, benchmark, report."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("compress_vlm")
