"""Train `mini`, the small CLIP that coop brings with it, on drawn scenes.

    PYTHONPATH=. python tools/train_mini.py --out coopcli/mini

The weights in coopcli/mini are those of this command's checkpoint after 5,250 of its 5,500 steps, 59 minutes on two
cores of an AMD EPYC (Zen 4, bf16), torch 2.13.0 (that session was cut off before the last 250). Zero-shot accuracy on
2,000 held-out scenes, asked in plain words: shape 93.8 % (of 8), colour 99.0 (10), texture 82.4 (6), the marks' colour
98.3 (10), size 99.9 (2), background 100.0 (10), the background's texture 98.8 (6), style 94.9 (6). With the vague "a
photo of a {}.", background 0.0 % and marks 1.0 %. The script prints these after every 250 paired steps.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from captions import attribute_ids, caption
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from coopcli.demo.drawing import ATTRIBUTES, Scene, random_scene, render

VOCABULARY = 1024  # at most; the captions have fewer words
PICTURE = 64  # pixels of the drawn pictures; the model sees them resized to IMAGE
IMAGE = 48
LEARNING_RATE = 1e-3
# First the image tower alone learns to see, from heads that name the attributes; then both towers learn together.
SEEING_BATCH, PAIRED_BATCH = 128, 256
HEADS_WEIGHT = 0.3  # of the heads' loss beside the contrastive one
PATCH = 8
POOL_SEED, CAPTION_SEED, CHECK_SEED = 1001, 1002, 1003  # no demo picture shares a seed with these


def build_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    ends = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return CLIPConfig(
        projection_dim=128,
        logit_scale_init_value=math.log(14.0),
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=3,
            num_attention_heads=4, max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=128, **ends,
        ),
        vision_config=dict(
            hidden_size=192, intermediate_size=768, num_hidden_layers=5, num_attention_heads=6, image_size=IMAGE,
            patch_size=PATCH, hidden_act="quick_gelu", projection_dim=128,
        ),
    )  # fmt: skip


def train_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """A byte-level BPE in CLIP's form: 256 bytes, 256 word-final bytes, merges, two special tokens."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pre_tokenizers_regex(), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator((text.lower() for text in captions), trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]][: VOCABULARY - 514]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(merge) for merge in merges)]
    tokens = list(dict.fromkeys(tokens))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def pre_tokenizers_regex():
    from tokenizers import Regex

    return Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")


def draw_pool(arguments: tuple[int, int]) -> tuple[np.ndarray, list[Scene]]:
    count, worker = arguments
    rng = np.random.default_rng((POOL_SEED, worker))
    scenes = [random_scene(rng) for _ in range(count)]
    return np.stack([drawn(scene, rng) for scene in scenes]), scenes


def drawn(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Picture and coverage as one uint8 [PICTURE, PICTURE, 4]."""
    picture, inside = render(scene, rng, PICTURE)
    return np.dstack([picture, (inside * 255).astype(np.uint8)])


def resize(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 [B, s, s, 4] -> float [B, 4, IMAGE, IMAGE]: normalised colours, and the coverage from 0 to 1."""
    x = pictures.permute(0, 3, 1, 2).float() / 255
    x = F.interpolate(x, size=(IMAGE, IMAGE), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return (x - x.new_tensor(MEAN).view(4, 1, 1)) / x.new_tensor(STD).view(4, 1, 1)


MEAN, STD = (0.48145466, 0.4578275, 0.40821073, 0.0), (0.26862954, 0.26130258, 0.27577711, 1.0)


def augmented(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """One crop size for the batch, a place and a flip for each picture."""
    if rng.random() < 0.5:
        side = int(rng.integers(36, PICTURE))
        tops, lefts = rng.integers(0, PICTURE - side + 1, (2, len(pictures)))
        rows = torch.from_numpy(tops)[:, None] + torch.arange(side)
        columns = torch.from_numpy(lefts)[:, None] + torch.arange(side)
        pictures = pictures[torch.arange(len(pictures))[:, None, None], rows[:, :, None], columns[:, None, :]]
    x = resize(pictures)
    flip = torch.from_numpy(rng.random(len(x)) < 0.5)
    return torch.where(flip[:, None, None, None], x.flip(3), x)


def matches(ids: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
    """[images, captions]: whether all that a caption states holds for the image."""
    same = ids[:, None, :] == ids[None, :, :]
    return (same | ~said[None]).all(-1)


ZEROSHOT = {
    "shape": "a photo of a {}.",
    "colour": "a photo of a {} object.",
    "texture": "a {} texture.",
    "mark_colour": "an object with {} marks.",
    "size": "a photo of a {} object.",
    "background": "a {} background.",
    "background_texture": "a {} background.",
    "style": "a {} photo of an object.",
    "background, vague words": "a photo of a {}.",
    "mark_colour, vague words": "a photo of a {}.",
    "colour, vague words": "a photo of a {}.",
}


@torch.no_grad()
def check(model: CLIPModel, tokenizer: CLIPTokenizer, pictures: torch.Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Zero-shot accuracy for every attribute on scenes that were not trained on."""
    model.eval()
    image = torch.cat([model.get_image_features(resize(part)[:, :3]).pooler_output for part in pictures.split(256)])
    image = F.normalize(image, dim=-1)
    result = {}
    for name, template in ZEROSHOT.items():
        attribute = name.split(",")[0]
        values = [value for value in ATTRIBUTES[attribute] if value != "none"]
        tokens = tokenizer([template.format(value) for value in values], padding=True, return_tensors="pt")
        text = F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
        answers = [getattr(scene, attribute) for scene in scenes]
        keep = [i for i, answer in enumerate(answers) if answer != "none"]
        predicted = (image[keep] @ text.T).argmax(-1).tolist()
        result[name] = sum(values[p] == answers[i] for p, i in zip(predicted, keep, strict=True)) / len(keep)
    model.train()
    return result


class Heads(torch.nn.Module):
    """Name a scene's attributes from the image feature, and from every patch; say which patches the object covers.

    The labels cost nothing, as the pictures are drawn, and a small tower learns far faster from them than from
    captions alone. The heads are thrown away after training.
    """

    OF_OBJECT = ("shape", "colour", "texture", "mark_colour", "size")  # asked of the object's patches only

    def __init__(self, feature_width: int, patch_width: int) -> None:
        super().__init__()
        self.sizes = [len(values) for values in ATTRIBUTES.values()]
        self.whole = torch.nn.Linear(feature_width, sum(self.sizes))
        self.patches = torch.nn.Linear(patch_width, sum(self.sizes) + 1)

    def loss(self, image: torch.Tensor, patches: torch.Tensor, coverage: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        whole = self.whole(image).float().split(self.sizes, dim=-1)
        *dense, covered = self.patches(patches).float().split([*self.sizes, 1], dim=-1)
        loss = 2 * F.binary_cross_entropy_with_logits(covered[..., 0], coverage)
        for i, name in enumerate(ATTRIBUTES):
            loss = loss + F.cross_entropy(whole[i], ids[:, i])
            asked = coverage > 0.5 if name in self.OF_OBJECT else torch.ones_like(coverage, dtype=torch.bool)
            loss = loss + F.cross_entropy(dense[i][asked], ids[:, None, i].expand_as(coverage)[asked])
        return loss


def contrastive_loss(scores: torch.Tensor, match: torch.Tensor) -> torch.Tensor:
    """CLIP's loss, both ways, for [images, captions] of which several may match: the probability is shared among them."""
    by_image, by_caption = match / match.sum(1, keepdim=True), (match / match.sum(0, keepdim=True)).T
    return (F.cross_entropy(scores, by_image) + F.cross_entropy(scores.T, by_caption)) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeing-steps", type=int, default=3000)
    parser.add_argument("--paired-steps", type=int, default=2500)
    parser.add_argument("--pool", type=int, default=100_000, help="pictures drawn")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    torch.manual_seed(0)

    workers = os.cpu_count() or 1
    with multiprocessing.Pool(workers) as processes:
        parts = processes.map(draw_pool, [(options.pool // workers, worker) for worker in range(workers)])
    pictures = torch.from_numpy(np.concatenate([part[0] for part in parts]))
    scenes = [scene for part in parts for scene in part[1]]
    ids = torch.tensor([attribute_ids(scene) for scene in scenes])
    rng = np.random.default_rng(CAPTION_SEED)
    check_rng = np.random.default_rng(CHECK_SEED)
    check_scenes = [random_scene(check_rng) for _ in range(2000)]
    check_pictures = torch.from_numpy(np.stack([drawn(scene, check_rng) for scene in check_scenes]))
    tokenizer = train_tokenizer([caption(scene, rng)[0] for scene in scenes[:30_000]], options.out)
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE}, crop_size={"height": IMAGE, "width": IMAGE}).save_pretrained(
        options.out
    )
    print(f"drawn {len(scenes)} pictures in {time.time() - started:.0f} s", flush=True)

    model = CLIPModel(build_config(tokenizer))
    model.set_attn_implementation("eager")  # twice as fast here: the CPU's fused attention has a slow backward
    heads = Heads(model.config.projection_dim, model.config.vision_config.hidden_size)
    learned = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(
        [
            dict(params=[p for p in learned if p.ndim > 1], weight_decay=0.05),
            dict(params=[p for p in learned if p.ndim <= 1], weight_decay=0.0),
        ],
        betas=(0.9, 0.98),
    )
    steps = options.seeing_steps + options.paired_steps
    for step in range(steps):
        rate = LEARNING_RATE * min(1.0, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-6
        for group in optimizer.param_groups:
            group["lr"] = rate
        paired = step >= options.seeing_steps
        chosen = rng.integers(0, len(scenes), PAIRED_BATCH if paired else SEEING_BATCH)
        images = augmented(pictures[chosen], rng)
        coverage = F.avg_pool2d(images[:, 3:], PATCH).flatten(1)
        with torch.autocast("cpu", torch.bfloat16):
            vision = model.vision_model(pixel_values=images[:, :3])
            image = model.visual_projection(vision.pooler_output)
            loss = heads.loss(image, vision.last_hidden_state[:, 1:], coverage, ids[chosen])
            told = f"heads {loss.item():.3f}"
            if paired:
                texts, said = zip(*(caption(scenes[i], rng) for i in chosen), strict=True)
                tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
                text = model.get_text_features(**tokens).pooler_output
                stated = torch.tensor([[name in names for name in ATTRIBUTES] for names in said])
                cosine = F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
                contrast = contrastive_loss(model.logit_scale.exp() * cosine, matches(ids[chosen], stated).float())
                told += f" contrastive {contrast.item():.3f} scale {model.logit_scale.exp().item():.1f}"
                loss = contrast + HEADS_WEIGHT * loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100.0))
        if step % 100 == 99:
            print(f"step {step + 1} {told} {time.time() - started:.0f} s", flush=True)
        if (paired and (step + 1 - options.seeing_steps) % 250 == 0) or step == steps - 1:
            accuracy = check(model, tokenizer, check_pictures, check_scenes)
            print(json.dumps({name: round(value, 3) for name, value in accuracy.items()}), flush=True)
            model.half().save_pretrained(options.out)
            model.float()


if __name__ == "__main__":
    main()
