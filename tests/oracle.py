"""An independent, slow, obvious CoOp: 77 positions, the stock text tower, every class on its own. No code of coopcli."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def embeddings(model, tokenizer, names, context, position):
    """The prompts as the reference assembles them: [K, 77, d] token vectors without positions, and EOS columns [K]."""
    table = model.text_model.embeddings.token_embedding.weight
    length = model.config.text_config.max_position_embeddings
    m = context.shape[-2]
    rows, ends = [], []
    for k, name in enumerate(names):
        mine = context[k] if context.ndim == 3 else context
        name = name.replace("_", " ")

        def vectors(text):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            return table[torch.tensor(ids, dtype=torch.long)]

        if position == "end":
            body = [mine, vectors(name + ".")]
        elif position == "middle":
            body = [mine[: m // 2], vectors(name), mine[m // 2 :], vectors(".")]
        else:
            body = [vectors(name), mine, vectors(".")]
        row = torch.cat([table[tokenizer.bos_token_id][None], *body, table[tokenizer.eos_token_id][None]])
        ends.append(len(row) - 1)
        rows.append(torch.cat([row, table[tokenizer.pad_token_id].expand(length - len(row), -1)]))
    return torch.stack(rows), torch.tensor(ends)


def text_features(model, tokenizer, names, context, position="end"):
    """L2-normalised [K, p], by the stock encoder over all 77 positions."""
    x, ends = embeddings(model, tokenizer, names, context, position)
    x = x + model.text_model.embeddings.position_embedding.weight
    mask = torch.full((x.shape[1], x.shape[1]), -math.inf).triu(1)[None, None]
    hidden = model.text_model.encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state
    hidden = model.text_model.final_layer_norm(hidden)
    return F.normalize(model.text_projection(hidden[torch.arange(len(names)), ends]), dim=-1)


def template_features(model, tokenizer, template, names):
    """L2-normalised [K, p] of hand-written prompts: the stock model's own entry point, padded to 77."""
    texts = [template.format(name.replace("_", " ")) for name in names]
    tokens = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
    return F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


def learning_rates(epochs):
    """The paper recipe's rate of every epoch, as METHOD states it."""
    return [1e-5 if e == 0 else 0.002 * (1 + math.cos(math.pi * (e - 1) / epochs)) / 2 for e in range(epochs)]


def sgd(model, tokenizer, names, context, position, batches, rates):
    """Train by hand: batches of (image features, labels), one rate each; momentum 0.9, weight decay 5e-4."""
    context, velocity = context.clone(), None
    for (images, labels), rate in zip(batches, rates, strict=True):
        context = context.detach().requires_grad_()
        logits = model.logit_scale.exp() * images @ text_features(model, tokenizer, names, context, position).T
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), context)
        gradient = gradient + 5e-4 * context.detach()
        velocity = gradient if velocity is None else 0.9 * velocity + gradient
        context = context.detach() - rate * velocity
    return context
