"""Text towers as data: what the one text encoder needs to know of a stock model, read by one function per family.

`TOWERS` maps the model_type of a config to its function. All families run through the same layers; they differ in whether
attention is causal, in the place that is pooled, in where the norms are, and in whether padding is visible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .layers import Layer, Map, linear, norm, post_norm_layer, pre_norm_layer
from .layouts import Pool


@dataclass(frozen=True)
class TextTower:
    """A text tower: embeddings [V, d] and [P, d], layers, and `finish`: pooled rows [n, d] -> features [n, p], not normalised.

    `position_rows` contains all that is added to a token embedding, such as the embedding of token type 0.
    `pool` names the token whose row is the feature: the prompt's first, its end (EOS), or the last (the last filler, if any).
    `fill` is the id that fills every prompt to all P positions, in towers that see padding; None where padding is invisible,
    so that there is none.
    """

    token_embedding: Tensor
    position_rows: Tensor
    n_heads: int
    feature_width: int
    layers: Sequence[Layer]
    finish: Map
    causal: bool = True
    pool: Pool = "last"
    fill: int | None = None
    embed_norm: Map | None = None


def read_tower(model: Any, pad: int | None = None) -> TextTower:
    """Read the text tower of a stock model, or of one of open_clip; `pad` is the tokenizer's padding id."""
    kind = getattr(getattr(model, "config", None), "model_type", "clip")
    with torch.no_grad():
        return TOWERS.get(kind, _clip)(model, pad)


def feature_width(model: Any) -> int:
    """p, the size of an image or text feature."""
    projection = getattr(model, "text_projection", None)
    return int((model.text_model.head if projection is None else projection).weight.shape[0])


def token_width(model: Any) -> int:
    """d, the size of a token embedding and of a context vector."""
    return int(model.text_model.config.hidden_size)


# ------------------------------------------------------------------------------------------------ a function per family


def _clip(model: Any, pad: int | None) -> TextTower:
    """CLIP and MetaCLIP 2: causal, EOS is pooled, nothing after it matters. MobileCLIP: not causal, the filling is seen."""
    text, project = model.text_model, linear(model.text_projection)
    fill = getattr(model, "fill", None)
    final_norm = norm(text.final_layer_norm)
    return TextTower(
        token_embedding=text.embeddings.token_embedding.weight,
        position_rows=text.embeddings.position_embedding.weight,
        n_heads=text.config.num_attention_heads,
        feature_width=feature_width(model),
        layers=[pre_norm_layer(layer, text.config.hidden_act) for layer in text.encoder.layers],
        finish=lambda rows: project(final_norm(rows)),
        causal=fill is None,
        pool="end",
        fill=fill,
    )


def _siglip(model: Any, pad: int | None) -> TextTower:
    """SigLIP and SigLIP 2 of fixed size: bidirectional, filled to the full length, the last position is pooled."""
    text, project = model.text_model, linear(model.text_model.head)
    final_norm = norm(text.final_layer_norm)
    return TextTower(
        token_embedding=text.embeddings.token_embedding.weight,
        position_rows=text.embeddings.position_embedding.weight,
        n_heads=text.config.num_attention_heads,
        feature_width=feature_width(model),
        layers=[pre_norm_layer(layer, text.config.hidden_act) for layer in text.encoder.layers],
        finish=lambda rows: project(final_norm(rows)),
        causal=False,
        fill=pad,
    )


def _bert(model: Any, pad: int | None) -> TextTower:
    """ALIGN and Chinese-CLIP: BERT, whose first token [CLS] is pooled."""
    text = model.text_model
    return _bert_tower(model, text, text.encoder.layer, 0, linear(model.text_projection))


def _altclip(model: Any, pad: int | None) -> TextTower:
    """AltCLIP: XLM-RoBERTa, whose positions begin after the padding id, with a norm and two linear layers at the end."""
    text, final_norm = model.text_model, norm(model.text_model.pre_LN)
    transform, project = linear(text.transformation), linear(model.text_projection)
    first_position = text.config.pad_token_id + 1

    def finish(rows: Tensor) -> Tensor:
        return project(transform(final_norm(rows)))

    encoder = text.roberta.encoder
    layers = encoder.layers if hasattr(encoder, "layers") else encoder.layer  # its name before transformers 5.23
    return _bert_tower(model, text.roberta, layers, first_position, finish)


def _bert_tower(model: Any, bert: Any, layers: Sequence[Any], first_position: int, finish: Map) -> TextTower:
    embeddings = bert.embeddings
    return TextTower(
        token_embedding=embeddings.word_embeddings.weight,
        position_rows=embeddings.position_embeddings.weight[first_position:] + embeddings.token_type_embeddings.weight[0],
        n_heads=bert.config.num_attention_heads,
        feature_width=feature_width(model),
        layers=[post_norm_layer(layer) for layer in layers],
        finish=finish,
        causal=False,
        pool="first",
        embed_norm=norm(embeddings.LayerNorm),
    )


TOWERS: dict[str, Callable[[Any, int | None], TextTower]] = {
    "clip": _clip,
    "metaclip_2": _clip,
    "siglip": _siglip,
    "chinese_clip": _bert,
    "align": _bert,
    "altclip": _altclip,
}
