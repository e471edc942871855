"""The values that options of commands and arguments of functions choose among, and what they are by default.

Nothing heavy is imported here: the command line reads them before PyTorch is loaded.
"""

from __future__ import annotations

from typing import Literal

DEFAULT_MODEL = "openai/clip-vit-base-patch16"
MINI = "mini"  # the embedded model

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]
Position = Literal["end", "middle", "front"]
Classes = Literal["all", "base", "new"]
RecipeName = Literal["paper", "fast"]
OnError = Literal["fail", "skip"]
Metric = Literal["euclidean", "cosine"]  # distance of a token from a vector; cosine: 1 - the cosine similarity
