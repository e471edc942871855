"""Refuse models that are not whole: impossible configs, missing weights, a foreign tokenizer, numbers that are not finite."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CoopError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# The most that a size may be: beyond every published model, and small enough to be built or refused at once.
MOST = {
    "num_hidden_layers": 256, "num_attention_heads": 256, "hidden_size": 1 << 15, "intermediate_size": 1 << 17,
    "projection_dim": 1 << 15, "vocab_size": 1 << 22, "max_position_embeddings": 1 << 15, "image_size": 1 << 12,
    "patch_size": 1 << 12, "num_channels": 16,
}  # fmt: skip
MOST_PARAMETERS = 20_000_000_000  # 80 GB in float32; the largest published CLIP has 18 billion
UNBOUNDED = 1 << 20  # tokens; transformers writes 10^30 where no length is known
# A buffer in the files of older models, OpenAI's among them: newer versions of transformers pass over it themselves.
NO_WEIGHT = ".position_ids"
LEGACY_EOS = 2  # in configs of OpenAI's models it means "EOS is the largest id" (transformers' modeling_clip.py)


logger = logging.getLogger(__name__)


def check_config(name: str, config: Any, weights_bytes: int | None) -> None:
    """Raise CoopError for a quantised model, and and for sizes that cannot be, or not with `weights_bytes`."""
    parameters = 0
    for part in (config, config.text_config, config.vision_config):  # every family has both towers
        if quantised := getattr(part, "quantization_config", None):
            method = quantised.get("quant_method") if isinstance(quantised, dict) else None
            raise CoopError(
                f'model "{name}" is quantised ({method or "quantization_config in its config.json"}); '
                "use the model that it was made from, in float32, float16 or bfloat16"
            )
    for part in (config.text_config, config.vision_config):
        for key, most in MOST.items():
            size = getattr(part, key, None)
            if isinstance(size, int) and not 1 <= size <= most:
                shown = size if abs(size) < 10**12 else f"{'-' if size < 0 else ''}a number of {len(str(abs(size)))} digits"
                raise CoopError(
                    f'model "{name}" cannot be built: {key} of its {_tower(part)} is {shown} in the config; use 1 to {most}'
                )
        parameters += _parameters(part)
    bound = MOST_PARAMETERS if weights_bytes is None else min(MOST_PARAMETERS, weights_bytes)
    if parameters > bound:
        held = "" if weights_bytes is None else f" and its weight files hold {weights_bytes:,} bytes"
        raise CoopError(
            f'model "{name}" cannot be built: its config describes {parameters:,} parameters{held}; '
            "use the config.json that belongs to the weights"
        )


def _tower(part: Any) -> str:
    return "text tower" if hasattr(part, "vocab_size") else "image tower"


def _parameters(part: Any) -> int:
    """Number of parameters in the matrices of a transformer; 0 for other image towers."""
    width, layers = getattr(part, "hidden_size", 0), getattr(part, "num_hidden_layers", 0)
    matrices = layers * (4 * width + 2 * getattr(part, "intermediate_size", 0))
    return width * (matrices + getattr(part, "vocab_size", 0) + getattr(part, "max_position_embeddings", 0))


def check_weights(name: str, kind: str, loading: Mapping[str, Any]) -> None:
    """Raise CoopError unless the files held exactly the weights of the model; `loading` is transformers' loading info."""
    missing = sorted(loading["missing_keys"])
    unexpected = sorted(key for key in loading["unexpected_keys"] if not key.endswith(NO_WEIGHT))
    misshapen = sorted((key, list(got), list(wanted)) for key, got, wanted in loading["mismatched_keys"])
    faults = []
    if missing:
        faults.append(f'lacks {_count(missing)} (first: "{missing[0]}")')
    if misshapen:
        key, got, wanted = misshapen[0]
        faults.append(f'has {_count(misshapen)} of another shape (first: "{key}", {got} instead of {wanted})')
    if unexpected:
        faults.append(f'has {_count(unexpected)} that a {kind} does not have (first: "{unexpected[0]}")')
    faults += list(loading["error_msgs"])[:1]
    if faults:
        reason = " and ".join(" ".join(fault.split()) for fault in faults)
        raise CoopError(f'model "{name}" {reason}; use a complete copy of the model and the config.json that belongs to it')


def _count(weights: Sequence[object]) -> str:
    return "1 weight" if len(weights) == 1 else f"{len(weights)} weights"


def warn_of_length(name: str, tokenizer: CLIPTokenizer, positions: int) -> None:
    """Warn of a tokenizer that was made for texts of another length: that of another model, of the same vocabulary."""
    if tokenizer.model_max_length != positions and tokenizer.model_max_length < UNBOUNDED:
        logger.warning(
            'the tokenizer of model "%s" is for texts of %d tokens and its text tower for %d: is it the model\'s own?',
            name, tokenizer.model_max_length, positions,
        )  # fmt: skip


def check_tokenizer(
    name: str, tokenizer: CLIPTokenizer, vocab_size: int, eos: int | None = None, pad: int | None = None, legacy: bool = True
) -> None:
    """Raise CoopError for a tokenizer that is incomplete or belongs to another model.

    `vocab_size` is that of the text tower; `eos` and `pad` are the ids in its config, if it names any; with
    `legacy` an `eos` of 2 means the largest id.
    """
    vocabulary = tokenizer.get_vocab()
    largest = max(vocabulary.values(), default=-1)
    if largest >= vocab_size:
        raise _other_tokenizer(name, f"has ids up to {largest}, the text tower {vocab_size} tokens")
    if 2 * len(vocabulary) < vocab_size:
        raise _other_tokenizer(name, f"knows {len(vocabulary)} of {vocab_size} tokens; its files are missing or incomplete")
    if (merges := _merges(tokenizer)) is not None and 4 * merges < len(vocabulary):
        raise _other_tokenizer(name, f"has {merges} merges for {len(vocabulary)} tokens; its files are missing or incomplete")
    ends = tokenizer("").input_ids
    if not ends or not all(0 <= token_id < vocab_size for token_id in ends):
        raise _other_tokenizer(name, f"puts the ids {ends} around a text; tokens of the beginning and the end were expected")
    ordinary = max(set(vocabulary.values()) - set(tokenizer.added_tokens_decoder), default=-1)
    if legacy and eos == LEGACY_EOS != ends[-1]:
        if ends[-1] < ordinary:
            raise _other_tokenizer(
                name, f"ends a text with id {ends[-1]}, and the config expects the largest id, {ordinary} or more"
            )
    elif eos is not None and ends[-1] != eos:
        raise _other_tokenizer(name, f"ends a text with id {ends[-1]}, and the config with eos_token_id {eos}")
    if pad is not None and not -1 <= pad < vocab_size:
        raise CoopError(f'model "{name}": pad_token_id {pad} in its config is not one of the {vocab_size} tokens')


def _merges(tokenizer: CLIPTokenizer) -> int | None:
    """Number of merges of a byte-pair tokenizer; None for tokenizers of other kinds."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend else {}
    return len(model["merges"]) if model.get("type") == "BPE" else None


def _other_tokenizer(name: str, reason: str) -> CoopError:
    return CoopError(
        f'the tokenizer of model "{name}" does not belong to its weights: it {reason}; '
        "use a complete copy of the model (tokenizer.json, or vocab.json and merges.txt)"
    )


def check_numbers(name: str, model: torch.nn.Module) -> None:
    """Raise CoopError for weights with numbers that are not finite (NaN or infinite), and for the codes of quantised ones."""
    faulty = []
    for key, weight in model.state_dict().items():
        if weight.is_floating_point() and not weight.isfinite().all():
            faulty.append((key, int((~weight.isfinite()).sum())))
        elif _are_codes(weight):
            raise CoopError(
                f'model "{name}" is quantised: "{key}" holds whole numbers from {int(weight.min())} to {int(weight.max())}; '
                "use the model that it was made from, in float32, float16 or bfloat16"
            )
    if faulty:
        key, count = faulty[0]
        raise CoopError(
            f'model "{name}" has {_count(faulty)} with numbers that are not finite (first: {count} in "{key}"); '
            "its files are damaged, or its training failed"
        )


def _are_codes(weight: Tensor) -> bool:
    """Whether a matrix holds whole numbers alone, as int8 weights do that were loaded as they are; an identity does, too."""
    if weight.ndim < 2 or not weight.is_floating_point() or not _are_whole(weight[0]) or not _are_whole(weight):
        return False
    return bool(weight.max() - weight.min() > 1)


def _are_whole(numbers: Tensor) -> bool:
    return bool((numbers == numbers.round()).all())


def check_features(features: Tensor, what: str, names: Collection[str]) -> None:
    """Raise CoopError, naming the first of `names` [n] whose feature [n, ...] has numbers that are not finite."""
    whole = features.isfinite().flatten(1).all(dim=1)
    if not whole.all():
        name = list(names)[int((~whole).nonzero()[0, 0])]
        raise CoopError(
            f'the feature of {what} "{name}" has numbers that are not finite ({int((~whole).sum())} of {len(whole)} features); '
            "the model is damaged, or --dtype bfloat16 is too coarse for it"
        )
