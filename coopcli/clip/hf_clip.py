"""Load a stock CLIPModel or a dual encoder of a related family: from the hub, a local folder, or the embedded `mini`."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from ..choices import MINI
from ..errors import CoopError
from ..hub import prepare_hub
from ..names import OPEN_CLIP
from .integrity import check_config, check_tokenizer, check_weights, warn_of_length
from .known import MINI_FOLDER as MINI_FOLDER
from .openclip import INSTALL
from .pixels import centre, read_preprocessing
from .tokens import lower_case

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer


@dataclass(frozen=True)
class Family:
    """transformers' classes of a family, by name; the tokenizer of most families is the one that its files name."""

    model: str
    image_processor: str
    tokenizer: str = "AutoTokenizer"


# By the model_type of the config. Image processors are the ones based on Pillow: the resampling of others differs.
FAMILIES = {
    "clip": Family("CLIPModel", "CLIPImageProcessorPil", "CLIPTokenizer"),
    "metaclip_2": Family("MetaClip2Model", "CLIPImageProcessorPil"),
    "siglip": Family("SiglipModel", "SiglipImageProcessorPil"),
    "chinese_clip": Family("ChineseCLIPModel", "ChineseCLIPImageProcessorPil"),
    "altclip": Family("AltCLIPModel", "CLIPImageProcessorPil"),
    "align": Family("AlignModel", "EfficientNetImageProcessorPil"),
}
LEFT_OUT = {
    "siglip2": "its NaFlex images are no squares; use a SigLIP 2 of fixed size, such as google/siglip2-base-patch16-224",
    "tipsv2": "its preprocessing needs torchvision",
    "blip": "its text tower is a captioner's",
    "blip-2": "its text tower is a captioner's",
    "flava": "its text features are one for each token",
    "aimv2": "its attention depends on the padding",
}
SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
INSTALL_SIGLIP = "pip install 'coopcli[siglip]'"


def load_hf_clip(name: str, revision: str | None, allow_pickle: bool) -> tuple[CLIPModel, CLIPTokenizer, CLIPImageProcessorPil]:
    """Load a stock CLIPModel in float32 on the CPU, with its tokenizer and image processor."""
    source = str(MINI_FOLDER) if name == MINI else name
    if not Path(source).exists():
        prepare_hub()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        # Explicit: by default transformers asks the user whether to run a model's own code.
        config = transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        family = _family(name, config.model_type)
        if not allow_pickle and _index_names_pickles(source, revision):
            raise CoopError(_only_pickled(name))
        check_config(name, config, _weights_bytes(source))
        model, loading = getattr(transformers, family.model).from_pretrained(
            source,
            config=config,
            # Explicit: only for "main" does transformers look for the hub's own conversion of an older model.
            revision=revision or "main",
            dtype=torch.float32,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_weights names them
        )
        check_weights(name, family.model, loading)
        tokenizer = getattr(transformers, family.tokenizer).from_pretrained(source, revision=revision, trust_remote_code=False)
        text = config.text_config
        # In other families' configs these ids are not used, and often wrong.
        eos = text.eos_token_id if config.model_type in ("clip", "metaclip_2") else None
        check_tokenizer(name, tokenizer, text.vocab_size, eos, text.pad_token_id, legacy=config.model_type == "clip")
        if config.model_type == "clip":
            warn_of_length(name, tokenizer, text.max_position_embeddings)
        if config.model_type == "siglip":
            lower_case(tokenizer)
        processor = getattr(transformers, family.image_processor).from_pretrained(source, revision=revision)
        if getattr(processor, "include_top", False):
            raise CoopError(f'model "{name}": include_top in its preprocessor_config.json must be false')
        # A convolutional tower takes images of any size.
        side = processor.crop_size["height"] if config.model_type == "align" else config.vision_config.image_size
        _check_image_size(name, processor, side)
    except CoopError:
        raise
    except Exception as error:  # foreign files fail in any way
        if not allow_pickle and _has_only_pickled_weights(source, revision):
            raise CoopError(_only_pickled(name)) from error
        raise CoopError(_why_not_loaded(name, error)) from error
    return model, tokenizer, processor


def _family(name: str, model_type: str) -> Family:
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if model_type in LEFT_OUT:
        raise CoopError(f'model "{name}" is a {model_type} model, which coop does not support: {LEFT_OUT[model_type]}')
    raise CoopError(f'model "{name}" is a {model_type} model; coop supports those of type {", ".join(FAMILIES)}')


def _check_image_size(name: str, process: CLIPImageProcessorPil, side: int) -> None:
    """Raise CoopError unless preprocessing makes the square images that the image tower takes."""
    made = centre(read_preprocessing(name, process), Image.new("RGB", (side + 10, side))).shape[1:]
    if made != (side, side):
        raise CoopError(
            f'model "{name}" takes images of {side} x {side} pixels and its preprocessor makes {made[0]} x {made[1]}; '
            "correct size and crop_size in its preprocessor_config.json"
        )


def _weights_bytes(source: str) -> int | None:
    """Size in bytes of the weight files in a local folder; None for a folder without any, or a model of the hub."""
    folder = Path(source)
    if not folder.is_dir():
        return None
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin")) or None


def _only_pickled(name: str) -> str:
    return (
        f'model "{name}" has its weights only as a pickle (pytorch_model.bin), which could run code when loaded; '
        "use --allow-pickle-weights if you trust where it comes from"
    )


def _index_names_pickles(source: str, revision: str | None) -> bool:
    """Whether a safetensors index lists files of another kind: transformers loads each by its ending."""
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
    except Exception:  # the network's; this only words an error
        return False
    try:
        return pickled and not has(SAFETENSORS, f"{SAFETENSORS}.index.json")
    except Exception:  # offline, with a pickle in the cache
        return pickled


def _why_not_loaded(name: str, error: Exception) -> str:
    if any(package in str(error) for package in ("sentencepiece", "SentencePiece", "protobuf", "tiktoken")):
        return f'the tokenizer of model "{name}" needs sentencepiece and protobuf: {INSTALL_SIGLIP}'
    if name == MINI or Path(name).exists():
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return f'model folder "{name}" is not a complete CLIPModel (config, weights, tokenizer, preprocessor): {reason}'
    if resnet := re.search(r"(?<![a-z])RN\d+(x\d+)?|resnet", name, re.IGNORECASE):
        arch = "RN50" if resnet[0].lower() == "resnet" else resnet[0].upper().replace("X", "x")
        return f'model "{name}": a CLIPModel cannot be a ResNet; use --model {OPEN_CLIP}{arch}/openai ({INSTALL})'
    return (
        f'model "{name}" is not on this machine and could not be fetched from the Hugging Face hub; '
        "use --model mini (the small embedded model) or --model FOLDER (a local copy of a CLIPModel)"
    )
