"""A learned classifier over image features, which every method but prompt learning gives, and its file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CoopError
from ..files import TUNED_FOLDER, write_atomically
from ..names import places
from .origin import ORIGIN_CHECKS, Origin, exif_entry, origin_of
from .safefile import Checks, Contents, TensorSpecs, content_of, is_text

if TYPE_CHECKING:
    from ..clip.backbone import Backbone

RAW = "raw"  # in the header of a head that was learned from features that are not normalised
AT_ONCE = 1 << 25  # affinities of images with keys in memory: 128 MiB, and as much again while they are computed
MAX_KEYS, MAX_SCALE = 2**24, 1e6  # of a cache: its keys, its alpha and beta


@dataclass(frozen=True, repr=False)
class Head(Origin):
    """A classifier over L2-normalised image features x [n, p] of one backbone: x @ weights.T + bias + cache(x).

    `weights` are float32 [K, p] with every scale multiplied in, `bias` [K] or None. The cache of Tip-Adapter adds
    alpha * exp(-beta * (1 - x @ keys.T)) @ onehot(values), with `keys` float32 [m, p] and `values` int64 [m] in 0..K-1,
    both None where there is none. `tuned` is the backbone that was trained with the head, on its way to the disk: a file
    names it by the folder `model` beside it. With `raw`, x are features of the length that the tower gives them.
    """

    method: str
    weights: Tensor
    bias: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    alpha: float = 0.0
    beta: float = 0.0
    tuned: Backbone | None = None
    raw: bool = False

    def __repr__(self) -> str:
        """The method, the classes and the model."""
        return f"<{type(self).__name__} {self.method}, {self}>"

    def logits(self, images: Tensor) -> Tensor:
        """Logits [n, K] of image features [n, p]. Raises CoopError for features of another width."""
        if images.shape[-1] != self.weights.shape[1]:
            raise CoopError(f"this head reads features of {self.weights.shape[1]} numbers; the model's have {images.shape[-1]}")
        logits = F.linear(images, self.weights, self.bias)
        if self.keys is None or self.values is None:
            return logits
        return logits + self.alpha * cache_logits(images, self.keys, self.values, self.beta, len(self.weights))

    def among(self, class_names: Sequence[str]) -> Head:
        """Get the head for some of its classes, in this order. Raises CoopError for any other class."""
        own = places(self.class_names, class_names)
        strangers = [name for name, row in zip(class_names, own, strict=True) if row is None]
        if strangers:
            raise CoopError(
                f'this {self.method} head knows its own {len(self.class_names)} classes and not "{strangers[0]}"'
                + (f" or {len(strangers) - 1} more" if len(strangers) > 1 else "")
                + "; a prompt that `coop fit` learned works with any class list"
            )
        rows = [row for row in own if row is not None]
        chosen = replace(
            self,
            weights=self.weights[rows],
            bias=None if self.bias is None else self.bias[rows],
            class_names=tuple(class_names),
            folders=tuple(self.folders[row] for row in rows),
            keys=None,
            values=None,
        )
        if self.keys is None or self.values is None:
            return chosen
        new_row = self.values.new_full((len(self.weights),), -1)
        new_row[rows] = new_row.new_tensor(range(len(rows)))
        kept = new_row[self.values] >= 0
        return replace(chosen, keys=self.keys[kept], values=new_row[self.values[kept]]) if kept.any() else chosen

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file in one step, and before it the tuned backbone, if any.

        Raises CoopError, before anything is written, for a head that could not be read again.
        """
        self.check_lengths()
        tensors = {"values": self.values, "bias": self.bias, "keys": self.keys, "weights": self.weights}
        entry = {
            "method": self.method,
            "model": self.model,
            "own_model": self.tuned is not None,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            **exif_entry(self),
            **({RAW: True} if self.raw else {}),
            "bias": self.bias is not None,
            "keys": 0 if self.keys is None else len(self.keys),
            "alpha": self.alpha,
            "beta": self.beta,
            "class_names": self.class_names,
            "folders": self.folders,
            "training": self.training,
        }
        given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        content = content_of(Path(path), entry, given, _head_of)
        if self.tuned:
            _save_model(Path(path).parent / TUNED_FOLDER, self.tuned)
        write_atomically(Path(path), content)


def cache_logits(images: Tensor, keys: Tensor, values: Tensor, beta: float, n_classes: int) -> Tensor:
    """exp(-beta * (1 - x @ keys.T)) @ onehot(values), [n, K]; Tip-Adapter, Equation 5."""
    at_once = max(1, AT_ONCE // len(keys))
    if not torch.compiler.is_compiling() and len(images) > at_once:
        return torch.cat([cache_logits(part, keys, values, beta, n_classes) for part in images.split(at_once)])
    affinity = (-beta * (1 - images @ keys.T)).exp()
    return affinity.new_zeros(images.shape[0], n_classes).index_add_(1, values, affinity)


def head_of(contents: Contents) -> Head:
    """Read the head that a file holds. Raises CoopError for a file that contradicts itself."""
    head = _head_of(contents)
    if not contents.entry["own_model"]:
        return head
    folder = contents.path.parent / TUNED_FOLDER
    if not folder.is_dir():  # or the hub would be asked for a model of this name
        raise CoopError(f'"{contents.path}" belongs to a fine-tuned model, but there is no folder "{folder}"')
    return replace(head, model=str(folder), revision=None)


def _head_of(contents: Contents) -> Head:
    contents.check({**_CHECKS, **({RAW: lambda entry: type(entry) is bool} if RAW in contents.entry else {})})
    entry, path, origin = contents.entry, contents.path, origin_of(contents)
    n_classes, n_keys = len(origin.class_names), entry["keys"]
    # The width is what the numbers leave.
    width = (len(contents.numbers) - 8 * n_keys - 4 * n_classes * entry["bias"]) // (4 * (n_classes + n_keys))
    specs: TensorSpecs = {
        **({"values": ("I64", [n_keys])} if n_keys else {}),
        **({"bias": ("F32", [n_classes])} if entry["bias"] else {}),
        **({"keys": ("F32", [n_keys, width])} if n_keys else {}),
        "weights": ("F32", [n_classes, width]),
    }
    tensors = contents.tensors(specs)
    values = tensors.get("values")
    if values is not None and not 0 <= int(values.min()) <= int(values.max()) < n_classes:
        raise CoopError(f'"{path}" has keys of a class that it does not name')
    return Head(
        **vars(origin),
        method=entry["method"],
        weights=tensors["weights"],
        bias=tensors.get("bias"),
        keys=tensors.get("keys"),
        values=values,
        alpha=float(entry["alpha"]),
        beta=float(entry["beta"]),
        raw=entry.get(RAW, False),
    )


def _is_number(entry: object) -> bool:
    return isinstance(entry, (int, float)) and type(entry) is not bool and 0 <= entry <= MAX_SCALE  # False for NaN


_CHECKS: Checks = {
    **ORIGIN_CHECKS,
    "method": is_text,
    "own_model": lambda entry: type(entry) is bool,
    "bias": lambda entry: type(entry) is bool,
    "keys": lambda entry: type(entry) is int and 0 <= entry <= MAX_KEYS,
    "alpha": _is_number,
    "beta": _is_number,
}


def _save_model(folder: Path, backbone: Backbone) -> None:
    """Write a CLIPModel folder, whole or not at all. Raises CoopError when it cannot be written."""
    partial = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        parts: tuple[Any, ...] = (backbone.model, backbone.tokenizer, backbone.image_processor)
        for part in parts:
            part.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise CoopError(f'"{folder}" cannot be written: {error.strerror or error}') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
