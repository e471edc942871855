"""The values that command options and function arguments accept, and their defaults.

Imports nothing heavy: the command line reads this module before PyTorch is loaded.
"""

from __future__ import annotations

from typing import Literal

DEFAULT_MODEL = "openai/clip-vit-base-patch16"
MINI = "mini"  # the embedded model

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]
FeatureDtype = Literal["float32", "float16"]  # of features in files
Position = Literal["end", "middle", "front"]
Classes = Literal["all", "base", "new"]
RecipeName = Literal["paper", "fast"]
OnError = Literal["fail", "skip"]
Probabilities = Literal["softmax", "sigmoid"]  # of one class among all, or of each class on its own
Metric = Literal["euclidean", "cosine"]  # distance of a token from a vector; cosine: 1 - the cosine similarity
