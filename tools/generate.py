"""Video from a converted folder: text, class labels, a file of prompts (resumes), optionally a first picture."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("generate")
