"""A frozen CLIP with its tokenizer and its image preprocessing: a stock CLIPModel, or one of open_clip's."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Literal, get_args

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from ..errors import CoopError, UsageError
from ..hub import prepare_hub
from .openclip import INSTALL, PREFIX, OpenClipModel, load_open_clip
from .pixels import centre
from .text_encoder import TextEncoder

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

DEFAULT_MODEL = "openai/clip-vit-base-patch16"
MINI = "mini"
MINI_FOLDER = Path(__file__).parents[1] / "mini"
SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"

# Pictures that the image tower sees at once, never more and never fewer: a kernel may round the same picture differently in
# batches of different sizes, and a feature must not depend on what it was encoded with, or the cache would change results.
# In batches of one size it does not, whatever the other places hold. Small batches are also the faster ones on a CPU.
IMAGE_BATCH = {"cpu": 8, "cuda": 256}

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Backbone:
    """A CLIP ready for use; nothing in it learns.

    `fingerprint` names weights, tokenizer and preprocessing by content: equal for equal models, wherever they lie.
    `logit_scale` is the factor on cosine similarities, exp of the model's parameter before any rounding: 100 for OpenAI's.
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

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The text tower, put together when it is first needed: images are classified without it by class features kept."""
        with torch.inference_mode(False):  # or what is made here while images are classified could not be trained through
            return TextEncoder(self.model)

    @property
    def model_key(self) -> str:
        """What a feature depends on besides its input; one device's or dtype's features are not another's to the bit."""
        return f"{self.fingerprint}/{self.dtype}/{self.device.type}"

    @property
    def feature_width(self) -> int:
        """p, the size of an image or text feature."""
        return int(self.model.text_projection.weight.shape[0])

    @property
    def token_width(self) -> int:
        """d, the size of a token embedding and of a context vector."""
        return int(self.model.text_model.embeddings.token_embedding.weight.shape[1])

    @property
    def image_size(self) -> int:
        """Side in pixels of the square picture that the image tower sees."""
        process = self.image_processor
        return int((process.crop_size if process.do_center_crop else process.size)["height"])

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Image features of one or more resized images: uint8 [n, 3, s, s] -> L2-normalised float32 [n, p] on the CPU.

        Each depends on its own picture alone, to the bit: batches are all of one size, the last filled up with zeros.
        """
        size = IMAGE_BATCH[self.device.type]
        filled = torch.cat([pixels, pixels.new_zeros(-len(pixels) % size, *pixels.shape[1:])])
        return torch.cat([self.image_tower(part).cpu() for part in filled.split(size)])[: len(pixels)]

    def image_tower(self, pixels: Tensor) -> Tensor:
        """The same of one batch on the model's device, with gradients where its weights ask for them."""
        process = self.image_processor
        inputs = pixels.to(self.device).float()
        if process.do_rescale:
            inputs = inputs * process.rescale_factor
        if process.do_normalize:
            mean, std = (
                torch.tensor(values, device=self.device).view(-1, 1, 1) for values in (process.image_mean, process.image_std)
            )
            inputs = (inputs - mean) / std
        features = self.model.get_image_features(pixel_values=inputs.to(self.model.dtype)).pooler_output
        return torch.nn.functional.normalize(features.float(), dim=-1)


def short_name(name: str) -> str:
    """A model's name in the names of files and in legends: `clip-vit-base-patch16`, `RN50-openai`."""
    arch, _, weights = name.removeprefix(PREFIX).partition("/")
    return f"{arch}-{Path(weights).stem}" if name.startswith(PREFIX) else Path(name).name


def pick_device(device: Device) -> torch.device:
    """`auto` takes the GPU where there is one. Raises UsageError for `cuda` without one, and for any other device."""
    if device not in get_args(Device):
        raise UsageError(f'"{device}" is no device: {", ".join(get_args(Device))}')
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this PyTorch sees no CUDA device; use --device cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def load_backbone(
    name: str = DEFAULT_MODEL,
    revision: str | None = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    allow_pickle: bool = False,
) -> Backbone:
    """Load a CLIPModel from the hub, from a local folder, or the embedded one (`mini`); or `open_clip:ARCH/WEIGHTS`.

    Weights are read from safetensors only, unless `allow_pickle`; code that comes with a model is never run.
    Raises CoopError when the model cannot be had or is of another kind.
    """
    if dtype not in get_args(Dtype):
        raise UsageError(f'"{dtype}" is no dtype: {", ".join(get_args(Dtype))}')
    target = pick_device(device)
    if target.type == "cuda":
        # To be said before the first product: with it sums are in a fixed order, and float32 means float32.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.allow_tf32 = False
    if not name.startswith(PREFIX):
        model, tokenizer, processor = _load_clip(name, revision, allow_pickle)
        commit = getattr(model.config, "_commit_hash", None)
    elif revision is None:
        model, tokenizer, processor = load_open_clip(name, allow_pickle)
        commit = None
    else:
        raise UsageError(f'--revision {revision}: the weights of "{name}" have no revisions')
    model = model.eval().requires_grad_(False)
    fingerprint = fingerprint_of(model, tokenizer, processor)
    logit_scale = float(model.logit_scale.exp())
    _move(model, target, dtype)
    return Backbone(name, commit, model, tokenizer, processor, fingerprint, target, dtype, logit_scale)


def _move(model: torch.nn.Module, device: torch.device, dtype: Dtype) -> None:
    """Put the model there and into that dtype; a ResNet's batch norms stay float32: rounded, they double the error."""
    for module in model.modules():
        if not isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.to(getattr(torch, dtype))
    model.to(device)


def _load_clip(name: str, revision: str | None, allow_pickle: bool) -> tuple[CLIPModel, CLIPTokenizer, CLIPImageProcessorPil]:
    """A stock CLIPModel in float32 on the CPU, with what goes before its towers."""
    source = str(MINI_FOLDER) if name == MINI else name
    if not Path(source).exists():
        prepare_hub()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
        from transformers import AutoConfig, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        # Said outright: by default transformers would ask the user whether to run a model's own code.
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        if not isinstance(config, CLIPConfig):
            raise CoopError(f'model "{name}" is a {config.model_type} model; coop needs a CLIPModel (model_type "clip")')
        if not allow_pickle and _index_names_pickles(source, revision):
            raise CoopError(_only_pickled(name))
        model = CLIPModel.from_pretrained(
            source,
            config=config,
            # Said outright: only for "main" does transformers look for the hub's own conversion of an older model.
            revision=revision or "main",
            dtype=torch.float32,
            use_safetensors=None if allow_pickle else True,
        )
        tokenizer = CLIPTokenizer.from_pretrained(source, revision=revision)
        # The Pillow backend by name: another backend's resampling differs from the reference's.
        processor = CLIPImageProcessorPil.from_pretrained(source, revision=revision)
        _check_pictures(name, processor, config.vision_config.image_size)
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError, KeyError, TypeError, AttributeError) as error:
        if not allow_pickle and _has_only_pickled_weights(source, revision):
            raise CoopError(_only_pickled(name)) from error
        raise CoopError(_why_not_loaded(name, error)) from error
    return model, tokenizer, processor


def _check_pictures(name: str, process: CLIPImageProcessorPil, side: int) -> None:
    """Raises CoopError unless what comes before the image tower makes the squares that the tower takes."""
    made = centre(process, Image.new("RGB", (side + 10, side))).shape[1:]
    if made != (side, side):
        raise CoopError(
            f'model "{name}" takes pictures of {side} x {side} pixels and its preprocessor makes {made[0]} x {made[1]}; '
            "mend size and crop_size in its preprocessor_config.json"
        )


def _only_pickled(name: str) -> str:
    return (
        f'model "{name}" has its weights as a pickle only (pytorch_model.bin), which could run code as it is read; '
        "use --allow-pickle-weights if you trust where it comes from"
    )


def _index_names_pickles(source: str, revision: str | None) -> bool:
    """Whether a safetensors index sends the reader to other files: transformers goes by the ending of each."""
    from transformers.utils import cached_file

    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    index = cached_file(source, f"{SAFETENSORS}.index.json", revision=revision, **quiet)
    if index is None:
        return False
    shards = json.loads(Path(index).read_bytes())["weight_map"].values()
    return not all(str(shard).endswith(".safetensors") for shard in shards)


def _has_only_pickled_weights(source: str, revision: str | None) -> bool:
    from huggingface_hub import file_exists, try_to_load_from_cache

    def has(*names: str) -> bool:
        if Path(source).exists():
            return any((Path(source) / name).exists() for name in names)
        if any(isinstance(try_to_load_from_cache(source, name, revision=revision), str) for name in names):
            return True
        return any(file_exists(source, name, revision=revision) for name in names)

    try:
        pickled = has(PICKLED, f"{PICKLED}.index.json")
    except Exception:  # of the network; this only words an error
        return False
    try:
        return pickled and not has(SAFETENSORS, f"{SAFETENSORS}.index.json")
    except Exception:  # offline, with a pickle in the cache
        return pickled


def _why_not_loaded(name: str, error: Exception) -> str:
    if Path(name).exists():
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return f'model folder "{name}" holds no complete CLIPModel (config, weights, tokenizer, preprocessor): {reason}'
    if resnet := re.search(r"(?<![a-z])RN\d+(x\d+)?|resnet", name, re.IGNORECASE):
        arch = "RN50" if resnet[0].lower() == "resnet" else resnet[0].upper().replace("X", "x")
        return f'model "{name}": a CLIPModel has no ResNet; use --model {PREFIX}{arch}/openai ({INSTALL})'
    return (
        f'model "{name}" is not on this machine and could not be fetched from the Hugging Face hub; '
        "use --model mini (the small embedded model) or --model FOLDER (a local copy of a CLIPModel)"
    )


def fingerprint_of(model: CLIPModel | OpenClipModel, tokenizer: CLIPTokenizer, processor: CLIPImageProcessorPil) -> str:
    """SHA-256 (32 hex digits of it) over float32 weights, activation functions, vocabulary and preprocessing settings."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.detach().float().contiguous().cpu().numpy().data)
    for tower in (model.text_model, getattr(model, "vision_model", None)):  # open_clip's have one activation
        digest.update(tower.config.hidden_act.encode() if tower else b"")
    digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    settings = processor.to_dict()
    kept = {key: settings.get(key) for key in PREPROCESSING_KEYS}
    digest.update(json.dumps(kept, sort_keys=True, default=lambda value: dict(value)).encode())
    return digest.hexdigest()[:32]


PREPROCESSING_KEYS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std",
)  # fmt: skip
