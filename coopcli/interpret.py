"""What the learned vectors are near to: the closest rows of the same model's token embedding (CoOp, Section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


@dataclass(frozen=True)
class NearToken:
    """A token near a context vector, and its Euclidean distance from it."""

    token: str
    token_id: int
    distance: float


def nearest_tokens(context: Tensor, token_embedding: Tensor, tokenizer: CLIPTokenizer, top: int) -> list[list[NearToken]]:
    """For each context vector the `top` nearest tokens, nearest first.

    `context` is [R, d], `token_embedding` [V, d]. Distances are computed in float64: close ones keep their order.
    """
    distances = torch.cdist(context.double().cpu(), token_embedding.double().cpu(), compute_mode="donot_use_mm_for_euclid_dist")
    near = distances.topk(min(top, distances.shape[1]), dim=1, largest=False)
    return [
        [
            NearToken(readable_token(tokenizer, int(i)), int(i), float(d))
            for d, i in zip(of_vector_distances, of_vector_ids, strict=True)
        ]
        for of_vector_distances, of_vector_ids in zip(near.values, near.indices, strict=True)
    ]


def readable_token(tokenizer: CLIPTokenizer, token_id: int) -> str:
    """The token's text; a piece that does not end a word is marked with a trailing hyphen: "photo", "phot-".

    Bytes that are no text of their own, and unprintable letters, stand as escapes: "\\xc3-".
    """
    token = str(tokenizer.convert_ids_to_tokens(token_id))
    if token in tokenizer.all_special_tokens:
        return token
    ends_word = token.endswith("</w>")
    to_byte = {letter: byte for byte, letter in byte_letters().items()}
    text = bytes(to_byte[letter] for letter in token.removesuffix("</w>")).decode("utf-8", errors="backslashreplace")
    text = "".join(c if c.isprintable() and not c.isspace() else f"\\x{ord(c):02x}" for c in text)
    return text if ends_word else f"{text}-"


def byte_letters() -> dict[int, str]:
    """The letter that byte-level BPE writes for each byte: printable ones stand for themselves (GPT-2's encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
