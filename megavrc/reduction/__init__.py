"""Token reduction: fewer visual tokens, as pure functions on tensors. Imports torch and nothing of the rest of megavrc.

A host (a VLM, a grid of video tokens) puts what it knows of one image or one clip into `Tokens`, asks for a number of
tokens, and gets a `Reduction`: the tokens that are left, the places they take, and where every token went.

    from megavrc.reduction import Tokens, find_method, reduce_tokens, schedule

    method = find_method("divprune")                 # METHODS: all of them by name; method.describe() in words
    stages = schedule(method, keep=0.25, total=576)  # {layer of the LLM: tokens from there on}; {0: 144} before the LLM
    tokens = Tokens(features_ND, grid=(1, 24, 24))   # and the fields that method.needs names
    left = reduce_tokens(tokens, "divprune", stages[0])
    left.features, left.index, left.assign, left.size

A method composes functions of the stages `segment -> score -> budget -> select -> assign -> merge -> order`, one
module each, and states where it acts, what it needs and what of its paper is left out. The budget is one number for
all, `budget.layer_weighted`. Whether kept tokens keep their positions is for the host to say (`Reduction.index`).
Mistakes are ValueErrors of one line.
"""

from . import assign, attention, baselines, clips, merge, order, score, segment, select, similarity
from .budget import layer_counts, layer_weighted, token_count, tower_schedule
from .method import METHODS, Method, calibrate, find_method, reduce_tokens, register, schedule
from .tokens import Reduction, Tokens

__all__ = [
    "METHODS",
    "Method",
    "Reduction",
    "Tokens",
    "assign",
    "attention",
    "baselines",
    "calibrate",
    "clips",
    "find_method",
    "layer_counts",
    "layer_weighted",
    "merge",
    "order",
    "reduce_tokens",
    "register",
    "schedule",
    "score",
    "segment",
    "select",
    "similarity",
    "token_count",
    "tower_schedule",
]
