"""megavrc trains, runs and studies VRC, a language model that generates video by predicting whole frame segments.

Importing this package imports nothing else: take what you need from `megavrc.model`, `megavrc.tokenizers`, ...
"""

__version__ = "0.1.0"
