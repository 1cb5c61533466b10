"""Folders in Hugging Face format: made from a run, checked, and read again with or without transformers."""
