"""A frozen CLIP with its tokenizer and image preprocessing: a stock CLIPModel, or a model of open_clip."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from ..choices import DEFAULT_MODEL, Device, Dtype
from ..errors import CoopError, UsageError
from ..machine import pick_device
from ..names import OPEN_CLIP
from .cache import FeatureCache
from .hf_clip import load_hf_clip
from .image_encoder import ImageEncoder, read_image_encoder
from .image_weights import read_tower_weights, tower_settings
from .integrity import check_features, check_numbers
from .known import Facts, ModelFiles, find_files, recall, remember
from .openclip import OpenClipModel, load_open_clip
from .pixels import Preprocessing, read_preprocessing
from .text_encoder import TextEncoder
from .tokens import ends_of
from .towers import feature_width, read_tower, token_width

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer


# Images that the image tower sees at once, never more and never fewer: kernels may round the same image differently in
# batches of different sizes, and a feature must not depend on what it was encoded with, or the cache would change results.
# In batches of one size it does not, whatever else is in the batch. On a CPU small batches are also faster.
IMAGE_BATCH = {"cpu": 8, "cuda": 256}
PARTS = ("model", "tokenizer", "image_processor")
Parts = tuple[Any, ...]


@dataclass(frozen=True, repr=False)
class Backbone:
    """A CLIP ready for use; nothing in it learns.

    `fingerprint` identifies weights, tokenizer and preprocessing by content: equal models have equal fingerprints,
    wherever they are stored. `logit_scale` is the factor on cosine similarities, exp of the model's parameter before any
    rounding: 100 for OpenAI's models. `logit_bias` is what SigLIP adds to its logits before a sigmoid; None in other models.
    With `exif`, images are first turned by their EXIF orientation. With `raw`, image features keep their length.
    """

    name: str
    revision: str | None
    model: CLIPModel | OpenClipModel
    tokenizer: CLIPTokenizer
    image_processor: CLIPImageProcessorPil
    fingerprint: str
    device: torch.device
    dtype: Dtype
    logit_scale: float
    logit_bias: float | None = None
    exif: bool = False
    raw: bool = False

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Load the towers, tokenizer and image processor of a model whose facts are known when one is first used."""
            if name not in PARTS or "source" not in vars(self):
                return super().__getattribute__(name)  # raises what a property raised, or that there is no such attribute
            vars(self).update(zip(PARTS, vars(self)["source"].load(self), strict=True))
            return vars(self)[name]

    def __repr__(self) -> str:
        """Name the model, where it computes and in what, and its fingerprint; loads nothing."""
        at = f"@{self.revision[:12]}" if self.revision else ""
        turned = ", images turned by EXIF" if self.exif else ""
        kind = type(self).__name__
        return f"<{kind} {self.name}{at} on {self.device.type}, {self.dtype}{turned}, fingerprint {self.fingerprint[:12]}>"

    @property
    def loaded(self) -> bool:
        """Whether the towers are in memory: those of a known model are not before they are first used."""
        return PARTS[0] in vars(self)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: the encoders, whose weights are packed for this machine, are built again on first use."""
        return {name: value for name, value in vars(self).items() if name not in ("text_encoder", "image_encoder")}

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The text tower, built on first use: cached class features classify images without it."""
        with torch.inference_mode(False):  # tensors made in inference mode could not be trained through
            return TextEncoder(read_tower(self.model, self.tokenizer.pad_token_id))

    @cached_property
    def image_encoder(self) -> ImageEncoder | None:
        """The image tower in the form that is fast on this machine, built on first use; None where the stock one is run.

        That of a known model is read from its weight file, where that is possible, without loading the rest of the model.
        """
        if self.device.type != "cpu":
            return None
        with torch.inference_mode(False):
            return read_image_encoder((None if self.loaded else vars(self)["source"].image_tower(self)) or self.model)

    @cached_property
    def tower_settings(self) -> dict[str, Any] | None:
        """What it takes to read the image tower from its weight file; None where it is read from the loaded model."""
        return tower_settings(self.model)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """How pixels are made of images."""
        return read_preprocessing(self.name, self.image_processor)

    def with_exif(self, exif: bool) -> Backbone:
        """The same model, with images turned by their EXIF orientation or not."""
        return self if exif == self.exif else self._with("exif", exif)

    def with_raw(self, raw: bool) -> Backbone:
        """The same model, with image features of the length that the tower gives them, or L2-normalised."""
        return self if raw == self.raw else self._with("raw", raw)

    def _with(self, name: str, value: bool) -> Backbone:
        other = Backbone.__new__(Backbone)  # `replace` would call the constructor of a CLIP, which loads a model
        vars(other).update(vars(self) | {name: value})
        return other

    @property
    def model_key(self) -> str:
        """What a feature depends on besides its input: devices and dtypes round differently, so they are part of it."""
        return f"{self.fingerprint}/{self.dtype}/{self.device.type}" + "/raw" * self.raw

    @cached_property
    def feature_width(self) -> int:
        """p, the size of an image or text feature."""
        return feature_width(self.model)

    @cached_property
    def token_width(self) -> int:
        """d, the size of a token embedding and of a context vector."""
        return token_width(self.model)

    @property
    def image_size(self) -> int:
        """Side in pixels of the square image that the image tower sees."""
        return self.preprocessing.side

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor, names: Sequence[str] = ()) -> Tensor:
        """Encode preprocessed images: uint8 [n, 3, s, s] -> L2-normalised float32 [n, p] on the CPU.

        Each feature depends on its own image alone, to the bit: all batches have one size, the last is padded with zeros.
        Raises CoopError for features that are not finite, with the first image's name, or its number without `names` [n].
        """
        size = IMAGE_BATCH[self.device.type]
        filled = torch.cat([pixels, pixels.new_zeros(-len(pixels) % size, *pixels.shape[1:])])
        features = torch.cat([self.image_tower(part).cpu() for part in filled.split(size)])[: len(pixels)]
        check_features(features, "image", names or [str(number) for number in range(1, len(pixels) + 1)])
        return features

    def image_tower(self, pixels: Tensor) -> Tensor:
        """Encode one batch on the model's device: L2-normalised float32 [B, p].

        Outside of inference mode on the stock tower, with gradients where the weights require them.
        """
        how = self.preprocessing
        inputs = pixels.to(self.device).float()
        if how.factor is not None:
            inputs = inputs * how.factor - float(how.offset)
        if how.mean is not None:
            mean, std = (torch.tensor(values, device=self.device).view(-1, 1, 1) for values in (how.mean, how.std))
            inputs = (inputs - mean) / std
        if torch.is_inference_mode_enabled() and self.image_encoder:
            features = self.image_encoder(inputs)
        else:
            features = self.model.get_image_features(pixel_values=inputs.to(self.model.dtype)).pooler_output
        if features.shape[-1] != self.feature_width:  # possible where the image tower ends without a projection
            raise CoopError(
                f'model "{self.name}": its image features have {features.shape[-1]} numbers and its text features '
                f"{self.feature_width}; correct the projection's size in its config.json"
            )
        return features.float() if self.raw else torch.nn.functional.normalize(features.float(), dim=-1)


@dataclass(frozen=True)
class Source:
    """Where a model's parts come from once they are used; `files` are what its facts were kept for."""

    revision: str | None
    allow_pickle: bool
    files: ModelFiles

    def load(self, known: Backbone) -> Parts:
        """Load the parts of a model whose facts are known. Raises CoopError where its files have changed meanwhile."""
        parts = _load(known.name, self.revision, self.allow_pickle)
        if find_files(known.name, self.revision) != self.files and fingerprint_of(*parts) != known.fingerprint:
            raise CoopError(f'the files of model "{known.name}" changed while coop was running; run the command again')
        _move(parts[0], known.device, known.dtype)
        return parts

    def image_tower(self, known: Backbone) -> Any:
        """Read the image tower from the weight file; None where the whole model must be loaded instead."""
        tower = read_tower_weights(self.files.folder, known.tower_settings, getattr(torch, known.dtype))
        return tower if find_files(known.name, self.revision) == self.files else None  # else loading it raises


def load_backbone(
    name: str = DEFAULT_MODEL,
    revision: str | None = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    allow_pickle: bool = False,
    cache: FeatureCache | None = None,
) -> Backbone:
    """Load a CLIPModel from the hub, from a local folder, or the embedded one (`mini`); or `open_clip:ARCH/WEIGHTS`.

    Weights are read from safetensors only, unless `allow_pickle`; code that comes with a model is never run. With a `cache`,
    a model whose files have not changed since an earlier call is loaded when one of its parts is first used: features that
    the cache holds need none. Raises CoopError when the model cannot be loaded or is of another kind.
    """
    if dtype not in get_args(Dtype):
        raise UsageError(f'unknown dtype "{dtype}"; choose {" or ".join(get_args(Dtype))}')
    target = pick_device(device)
    if target.type == "cuda":
        # Must be set before the first matrix product. It fixes the order of sums; and float32 then means float32.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.allow_tf32 = False
    files = find_files(name, revision)
    if cache and files and (facts := recall(cache, files, allow_pickle)):
        known = Backbone.__new__(Backbone)
        vars(known).update(vars(facts), name=name, revision=files.commit, device=target, dtype=dtype)
        vars(known)["source"] = Source(revision, allow_pickle, files)
        return known
    model, tokenizer, processor = _load(name, revision, allow_pickle)
    check_numbers(name, model)
    fingerprint = fingerprint_of(model, tokenizer, processor)
    logit_scale, logit_bias = _logit_scale(name, model), _logit_bias(name, model)
    _move(model, target, dtype)
    commit = files.commit if files else None
    backbone = Backbone(name, commit, model, tokenizer, processor, fingerprint, target, dtype, logit_scale, logit_bias)
    if cache:
        facts = Facts(**{field.name: getattr(backbone, field.name) for field in fields(Facts)})
        remember(cache, files, find_files(name, commit or revision), facts, allow_pickle)
    return backbone


def _load(name: str, revision: str | None, allow_pickle: bool) -> Parts:
    if not name.startswith(OPEN_CLIP):
        parts: Parts = load_hf_clip(name, revision, allow_pickle)
    elif revision is None:
        parts = load_open_clip(name, allow_pickle)
    else:
        raise UsageError(f'--revision {revision}: the weights of "{name}" have no revisions; leave --revision out')
    parts[0].eval().requires_grad_(False)
    return parts


def _logit_scale(name: str, model: torch.nn.Module) -> float:
    """exp of the model's logit scale, or in ALIGN 1 / temperature. Raises CoopError for a scale that is not finite."""
    parameter = float(model.temperature if hasattr(model, "temperature") else model.logit_scale)  # type: ignore[arg-type]
    inverse = hasattr(model, "temperature")
    scale = 1 / (parameter or math.nan) if inverse else float(model.logit_scale.exp())  # type: ignore[operator]
    if not math.isfinite(scale):
        raise CoopError(f'model "{name}": its logit_scale or temperature is {parameter:g}, which makes logits infinite')
    return scale


def _logit_bias(name: str, model: torch.nn.Module) -> float | None:
    """The model's logit bias, or None where it has none. Raises CoopError for one that is not finite."""
    parameter = getattr(model, "logit_bias", None)
    if parameter is None:
        return None
    if not math.isfinite(bias := float(parameter)):
        raise CoopError(f'model "{name}": its logit_bias is {bias:g}, which makes logits infinite')
    return bias


def _move(model: torch.nn.Module, device: torch.device, dtype: Dtype) -> None:
    """Move the model to a device and dtype; a ResNet's batch norms stay float32: rounded, they would double the error."""
    for module in model.modules():
        if not isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.to(getattr(torch, dtype))
    model.to(device)


def fingerprint_of(model: CLIPModel | OpenClipModel, tokenizer: CLIPTokenizer, processor: CLIPImageProcessorPil) -> str:
    """First 32 hex digits of a SHA-256 over float32 weights, activation functions, vocabulary and preprocessing settings."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.detach().float().contiguous().cpu().numpy().data)
    for tower in (model.text_model, getattr(model, "vision_model", None)):  # open_clip's models have one activation
        digest.update(tower.config.hidden_act.encode() if tower else b"")
    digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    settings = processor.to_dict()
    kept = {key: settings.get(key) for key in FINGERPRINTED}
    kind = getattr(getattr(model, "config", None), "model_type", "clip")
    if kind != "clip":  # saved prompts keep their fingerprints
        text = [kind, ends_of(tokenizer), tokenizer.pad_token_id, tokenizer("CAT").input_ids]
        kept |= {"text": text, "rescale_offset": settings.get("rescale_offset")}
    if getattr(model, "fill", None) is not None:
        kept |= {"fill": model.fill}
    digest.update(json.dumps(kept, sort_keys=True, default=lambda value: dict(value)).encode())
    return digest.hexdigest()[:32]


FINGERPRINTED = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std",
)  # fmt: skip


class CLIP(Backbone):
    """A frozen CLIP by its name: a hub id, a local folder, `open_clip:ARCH/WEIGHTS`, or `mini`, the small embedded one.

    `device` is auto, cpu or cuda; `dtype`, that of the towers, float32 or bfloat16; with `exif`, images are first turned by
    their EXIF orientation. Raises CoopError when the model cannot be loaded, as `load_backbone` does.
    """

    def __init__(
        self,
        name: str = DEFAULT_MODEL,
        revision: str | None = None,
        device: Device = "auto",
        dtype: Dtype = "float32",
        allow_pickle: bool = False,
        exif: bool = False,
        cache: FeatureCache | None = None,
    ) -> None:
        vars(self).update(vars(load_backbone(name, revision, device, dtype, allow_pickle, cache)) | {"exif": exif})
