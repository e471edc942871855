"""An independent, slow, obvious CoOp: 77 positions, the stock text tower, every class on its own. No code of coopcli."""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps


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


def sgd(model, tokenizer, names, context, position, batches, rates, template=None, weight=0.0):
    """Train by hand: batches of (image features, labels), one rate each; momentum 0.9, weight decay 5e-4.

    KgCoOp adds the weight times the mean squared distance to the template's features, which is 2 - 2 cosine for vectors of
    length 1.
    """
    context, velocity = context.clone(), None
    for (images, labels), rate in zip(batches, rates, strict=True):
        context = context.detach().requires_grad_()
        text = text_features(model, tokenizer, names, context, position)
        loss = F.cross_entropy(model.logit_scale.exp() * images @ text.T, labels)
        if template:
            cosines = (text * template_features(model, tokenizer, template, names)).sum(-1)
            loss = loss + weight * (2 - 2 * cosines).mean()
        (gradient,) = torch.autograd.grad(loss, context)
        gradient = gradient + 5e-4 * context.detach()
        velocity = gradient if velocity is None else 0.9 * velocity + gradient
        context = context.detach() - rate * velocity
    return context


# ------------------------------------------------------------------------ the reference's training, image tower and all


def few_shot(items, shots, seed):
    """For each class in order of first appearance, `shots` of its items."""
    rng, drawn = random.Random(seed), []
    for label in dict.fromkeys(item.label for item in items):
        drawn += rng.sample([item for item in items if item.label == label], shots)
    return drawn


def image_features(model, pixels):
    """L2-normalised [n, p] of pixels in 0..255, uint8 [n, 3, s, s], by the stock image tower."""
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (pixels.float() / 255 - mean[:, None, None]) / std[:, None, None]
    return F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)


def train(model, tokenizer, names, context, position, epochs, orders):
    """The paper's recipe over pictures, both towers in every step.

    epochs [T] holds an epoch's (pixels [n, 3, s, s], labels [n]), orders [T] how it shuffles them: batches of 32, of which
    a short last one is dropped unless it is the only one.
    """
    batches, rates = [], []
    for (pixels, labels), order, rate in zip(epochs, orders, learning_rates(len(epochs)), strict=True):
        parts = [order[i : i + 32] for i in range(0, len(order), 32)]
        for part in [part for part in parts if len(part) == 32] or parts:
            batches.append((image_features(model, pixels[part]), labels[part]))
            rates.append(rate)
    return sgd(model, tokenizer, names, context, position, batches, rates)


def random_resized_crop(picture, size, draw):
    """torchvision's RandomResizedCrop(size, (0.08, 1), (3/4, 4/3), bicubic), then RandomHorizontalFlip(0.5).

    `draw()` gives the next number in [0, 1): ten times at most an area and an aspect, then left, top, flip.
    """
    width, height = picture.size
    box = None
    for _ in range(10):
        share, log_aspect = 0.08 + 0.92 * draw(), math.log(3 / 4) + math.log(16 / 9) * draw()
        w = round((width * height * share * math.exp(log_aspect)) ** 0.5)
        h = round((width * height * share / math.exp(log_aspect)) ** 0.5)
        if 1 <= w <= width and 1 <= h <= height:
            left, top = int(draw() * (width - w + 1)), int(draw() * (height - h + 1))
            box = (left, top, left + w, top + h)
            break
    if box is None:
        w, h = width, height
        if width / height < 3 / 4:
            h = round(width / (3 / 4))
        elif width / height > 4 / 3:
            w = round(height * (4 / 3))
        box = ((width - w) // 2, (height - h) // 2, (width - w) // 2 + w, (height - h) // 2 + h)
    picture = picture.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    return ImageOps.mirror(picture) if draw() < 0.5 else picture


def centre_crop(picture, size):
    """torchvision's Resize(size, bicubic), then CenterCrop(size), which rounds half a pixel to an even number."""
    width, height = picture.size
    if width <= height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return picture.crop((left, top, left + size, top + size))


# ------------------------------------------------------------------------------------------ the reference's checkpoints


class PromptLearner(torch.nn.Module):
    """What the reference makes and saves: the context, and what stands before and after it."""

    def __init__(self, model, tokenizer, names, context, dtype=torch.float16):
        super().__init__()
        length, n_ctx = model.config.text_config.max_position_embeddings, context.shape[-2]
        rows = []
        for name in names:
            ids = tokenizer(" ".join(["X"] * n_ctx) + f" {name.replace('_', ' ')}.", add_special_tokens=False)["input_ids"]
            ids = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
            rows.append(ids + [0] * (length - len(ids)))  # OpenAI's tokenizer pads with 0
        vectors = model.text_model.embeddings.token_embedding.weight.detach()[torch.tensor(rows)].to(dtype)
        self.ctx = torch.nn.Parameter(context.to(dtype))
        self.register_buffer("token_prefix", vectors[:, :1])
        self.register_buffer("token_suffix", vectors[:, 1 + n_ctx :])


class ConstantWarmup(torch.optim.lr_scheduler.LRScheduler):
    """One rate for some epochs, then another scheduler's: Dassl's.

    Its state_dict, all but the attribute `optimizer`, holds the other scheduler whole, and that one the optimizer.
    """

    def __init__(self, optimizer, successor, warmup_epoch, cons_lr):
        self.successor, self.warmup_epoch, self.cons_lr = successor, warmup_epoch, cons_lr
        super().__init__(optimizer)

    def get_lr(self):
        return [self.cons_lr] if self.last_epoch < self.warmup_epoch else self.successor.get_last_lr()

    def step(self, epoch=None):
        if self.last_epoch < self.warmup_epoch:
            super().step()
        else:
            self.successor.step()


def optimizer_and_scheduler(parameters, epochs):
    """SGD and schedule as Dassl builds them for configs/trainers/CoOp."""
    optimizer = torch.optim.SGD(parameters, lr=0.002, momentum=0.9, weight_decay=5e-4, dampening=0, nesterov=False)
    after = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, float(epochs))
    return optimizer, ConstantWarmup(optimizer, after, 1, 1e-5)


def checkpoint(learner, epochs=3, val_result=None):
    """What Dassl saves after some epochs, here with gradients of no meaning."""
    optimizer, scheduler = optimizer_and_scheduler(learner.parameters(), 50)
    for _ in range(epochs):
        learner.ctx.grad = torch.full_like(learner.ctx, 0.01)
        optimizer.step()
        scheduler.step()
    return {
        "state_dict": learner.state_dict(),
        "epoch": epochs,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "val_result": val_result,
    }
