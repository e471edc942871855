"""Load models with open_clip, such as the paper's ResNets: its image tower, and its text tower converted to the stock one."""

from __future__ import annotations

import difflib
import gzip
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CoopError, UsageError
from ..hub import prepare_hub
from ..names import OPEN_CLIP
from .integrity import check_tokenizer
from .tokens import byte_letters

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil, CLIPTextModelWithProjection, CLIPTokenizer
    from transformers.modeling_outputs import BaseModelOutputWithPooling

FORM = f"{OPEN_CLIP}ARCH/WEIGHTS"
INSTALL = "pip install 'coopcli[open_clip]'"
N_MERGES = 49_152 - 256 - 2  # merges that OpenAI's tokenizer uses; the file holds more
# CLIP's own kind of text tower; without the causal mask it is MobileCLIP's, which sees the zeros after EOS.
PLAIN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "no_causal_mask"}
FILL = 0
# MetaCLIP 2 ("worldwide"): the same tower with another tokenizer, and EOS by its id.
XLM_V = {"hf_tokenizer_name": "facebook/xlm-v-base", "pool_type": "eos", "eos_id": 2}
INSTEAD = {"SigLIP": "google/siglip2-base-patch16-224", "worldwide": "facebook/metaclip-2-worldwide-b32"}

# open_clip's names in a block of the text tower, and the stock ones.
BLOCK_NAMES = {
    "ln_1": "layer_norm1", "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
logger = logging.getLogger(__name__)


class OpenClipModel(torch.nn.Module):
    """open_clip's towers behind the attributes of a CLIPModel that coop uses."""

    def __init__(
        self, visual: torch.nn.Module, text: CLIPTextModelWithProjection, logit_scale: Tensor, fill: int | None = None
    ) -> None:
        """`fill` is the id that fills every prompt where attention is not causal; None where it is."""
        super().__init__()
        self.fill = fill
        self.visual = visual
        self.text_model, self.text_projection = text.text_model, text.text_projection
        self.logit_scale = torch.nn.Parameter(logit_scale, requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the towers compute in."""
        return self.text_projection.weight.dtype

    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Image features [B, p] of normalised pixels [B, 3, s, s], as the `pooler_output`."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pooler_output=self.visual(pixel_values))


def load_open_clip(name: str, allow_pickle: bool = False) -> tuple[OpenClipModel, CLIPTokenizer, CLIPImageProcessorPil]:
    """Load `open_clip:ARCH/WEIGHTS` in float32 on the CPU. WEIGHTS is one of open_clip's tags, such as `openai`, or a file.

    Weights are read from safetensors only, unless `allow_pickle`. Raises UsageError for a name that open_clip does not know,
    CoopError when the extra or the weights are missing, or when the text tower is of another kind than CLIP's.
    """
    arch, _, weights = name.removeprefix(OPEN_CLIP).partition("/")
    if not arch or not weights:
        raise UsageError(f'model "{name}" must have the form {FORM}: {OPEN_CLIP}RN50/openai, or a file for WEIGHTS')
    prepare_hub()
    with _quiet():
        open_clip = _import(name)
        config = _config(open_clip, name, arch)
        file, tag = _find(open_clip, name, arch, weights)
        if file.suffix != ".safetensors" and not allow_pickle:
            raise CoopError(
                f'model "{name}" has its weights as a pickle ({file.name}), which could run code when loaded; '
                "use --allow-pickle-weights if you trust where it comes from"
            )
        # The tag knows which activation its weights were trained with, whatever the architecture's name says.
        quick_gelu = bool((tag or config).get("quick_gelu"))
        try:
            model = open_clip.create_model(
                arch,
                str(file),
                quick_gelu=quick_gelu,
                force_preprocess_cfg={key: tag.get(key) for key in ("mean", "std", "interpolation", "resize_mode")},
                weights_only=not allow_pickle,
            )
        except Exception as error:  # a foreign file can fail in any way
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CoopError(f'"{file}" does not hold weights for open_clip\'s {arch}: {reason}') from error
        if not tag and not quick_gelu and f"{arch}-quickgelu" in open_clip.list_models():
            logger.warning("%s is read as trained with GELU; for weights of OpenAI use %s-quickgelu", file.name, arch)
    text = getattr(model, "text", model).state_dict()
    tower = stock_text_tower(text, config["text_cfg"]["heads"], "quick_gelu" if quick_gelu else "gelu")
    processor = _image_processor(name, model.visual.preprocess_cfg)
    fill = FILL if config["text_cfg"].get("no_causal_mask") else None
    towers = OpenClipModel(model.visual, tower, model.logit_scale.detach(), fill)
    tokenizer = _tokenizer(name, config["text_cfg"].get("hf_tokenizer_name"))
    check_tokenizer(name, tokenizer, tower.config.vocab_size)
    return towers, tokenizer, processor


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings and open_clip's calls of the root logger, which would set up logging for the whole program."""
    silent = logging.NullHandler()
    logging.root.addHandler(silent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.removeHandler(silent)


def _import(name: str) -> Any:
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise CoopError(f'model "{name}" needs the optional package {error.name}: {INSTALL}') from error
    except Exception as error:  # for example a torchvision built for another torch
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CoopError(f'model "{name}" needs open_clip, which cannot be imported here: {reason}') from error
    return open_clip


def _config(open_clip: Any, name: str, arch: str) -> dict[str, Any]:
    """Get the architecture's description. Raises CoopError for a text tower of another kind than CLIP's."""
    known = open_clip.list_models()
    if arch not in known:
        near = difflib.get_close_matches(arch, known, 3, 0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f'model "{name}": open_clip has no architecture "{arch}"{hint}')
    config: dict[str, Any] = open_clip.get_model_config(arch)
    text = config["text_cfg"]
    plain = PLAIN_TEXT | (set(XLM_V) if all(text.get(key) == value for key, value in XLM_V.items()) else set())
    if foreign := sorted(key for key in text if key not in plain and text[key]):
        kin = [hub_id for word, hub_id in INSTEAD.items() if word in arch]
        hint = f"; coop takes its family from the hub, such as --model {kin[0]}" if kin else "; coop needs CLIP's"
        raise CoopError(f'model "{name}" has a text tower of another kind than CLIP\'s ({", ".join(foreign)}){hint}')
    return config


def _tokenizer(name: str, hub_id: str | None) -> CLIPTokenizer:
    """OpenAI's tokenizer, or that of a hub id. Raises CoopError when it is not here and cannot be fetched."""
    if hub_id is None:
        return openai_tokenizer()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(hub_id, trust_remote_code=False)
    except Exception as error:  # the network's, or a package is missing
        raise CoopError(
            f'model "{name}" needs the tokenizer "{hub_id}", which is not on this machine and could not be fetched'
        ) from error


def _find(open_clip: Any, name: str, arch: str, weights: str) -> tuple[Path, dict[str, Any]]:
    """Find the weights' file, fetched if need be, and open_clip's description of them: empty for the user's own file."""
    tag: dict[str, Any] = open_clip.get_pretrained_cfg(arch, weights)
    if not tag:
        if not Path(weights).is_file():
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(arch)) or "none"
            raise UsageError(f'model "{name}": "{weights}" is neither a file nor a tag of {arch} in open_clip ({tags})')
        return Path(weights).absolute(), {}  # absolute: cannot be mistaken for a tag
    try:
        return Path(open_clip.download_pretrained(tag)), tag
    except Exception as error:  # the network's
        raise CoopError(
            f'model "{name}": the weights are not on this machine and could not be fetched; '
            f"use --model {OPEN_CLIP}{arch}/FILE with a local copy of them"
        ) from error


def stock_text_tower(weights: Mapping[str, Tensor], heads: int, activation: str) -> CLIPTextModelWithProjection:
    """Convert open_clip's text tower, a float32 state dict of the tower or of the whole model, to the stock one.

    Both compute the same: open_clip keeps queries, keys and values in one matrix and the projection transposed.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vocabulary, width = weights["token_embedding.weight"].shape
    stock = {
        "text_projection.weight": weights["text_projection"].T,
        "text_model.embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": weights["positional_embedding"],
    }
    layers = 1 + max(int(key.split(".")[2]) for key in weights if key.startswith("transformer.resblocks."))
    for kind in ("weight", "bias"):
        stock[f"text_model.final_layer_norm.{kind}"] = weights[f"ln_final.{kind}"]
        for layer in range(layers):
            ours, theirs = f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            for their_name, our_name in BLOCK_NAMES.items():
                stock[f"{ours}.{our_name}.{kind}"] = weights[f"{theirs}.{their_name}.{kind}"]
            for part, matrix in zip("qkv", weights[f"{theirs}.attn.in_proj_{kind}"].chunk(3), strict=True):
                stock[f"{ours}.self_attn.{part}_proj.{kind}"] = matrix
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        projection_dim=weights["text_projection"].shape[1],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=weights["positional_embedding"].shape[0],
        hidden_act=activation,
    )
    tower = CLIPTextModelWithProjection(config)
    tower.load_state_dict(stock)
    return tower


def openai_tokenizer() -> CLIPTokenizer:
    """Build OpenAI's byte-pair tokenizer (49,408 tokens) from the table in open_clip_torch, which need not be importable.

    Raises CoopError where that package is not installed.
    """
    from transformers import CLIPTokenizer

    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise CoopError(f"OpenAI's token table comes with the optional package open_clip_torch: {INSTALL}")
    table = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(table.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 1 + N_MERGES]]  # the first line is a comment
    letters = list(byte_letters().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)


def _image_processor(name: str, settings: Mapping[str, Any]) -> CLIPImageProcessorPil:
    """Build Pillow preprocessing from open_clip's settings. Raises CoopError unless it makes squares without padding."""
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    sides = settings["size"]
    height, width = (sides, sides) if isinstance(sides, int) else sides
    if height != width or settings["resize_mode"] not in ("shortest", "squash"):
        raise CoopError(
            f'model "{name}" takes images of {height} x {width} by "{settings["resize_mode"]}"; coop supports squares by '
            '"shortest" or "squash"'
        )
    squash = settings["resize_mode"] == "squash"
    return CLIPImageProcessorPil(
        size={"height": height, "width": width} if squash else {"shortest_edge": height},
        do_center_crop=not squash,
        crop_size={"height": height, "width": width},
        resample=Image.Resampling[settings["interpolation"].upper()],
        image_mean=list(settings["mean"]),
        image_std=list(settings["std"]),
    )
