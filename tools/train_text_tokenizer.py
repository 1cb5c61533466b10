"""Train the text tokenizer (a sentencepiece model) on captions."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("train_text_tokenizer")
