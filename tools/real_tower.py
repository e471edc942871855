"""Join OpenAI's ViT-B/16 image tower to a text tower of our own: a CLIPModel folder outside the tree.

    python real_tower.py --tower clip_encoder.int8.onnx --merges bpe_simple_vocab_16e6.txt.gz --arrays ARRAYS \
        --features FEATURES --wordnet DICT --words WORDS --out FOLDER --minutes 20

The image tower is OpenAI's, multiplied out from int8 or taken from a folder of the hub; the text tower (OpenAI's tokens, 6
layers, 256 wide) learns from the features that `mini.teacher` made and from the captions that `mini` learned from. What is
measured with it is "OpenAI's image tower, a text tower of our own": features of pictures are the real ones, names are not.
"""

from __future__ import annotations

import argparse
import gzip
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

sys.path.insert(0, str(Path(__file__).parent))

from mini.captions import caption, phrase
from mini.losses import contrastive, towards
from mini.matching import kinds_of, photo_matches
from mini.photos import Photos
from mini.tower import SIDE, load_tower
from mini.wordnet import WordNet
from mini.words import read_synonyms, read_things, unseen_words

MERGES = 49_152 - 256 - 2
IMAGES, CAPTIONS, UNSEEN = 512, 128, 64
LEARNING_RATE, SCALE, SEED = 6e-4, 50.0, 1006


def open_tokenizer(merges_file: Path) -> CLIPTokenizer:
    """OpenAI's tokenizer, from its table of merges (open_clip's package has it)."""
    lines = gzip.decompress(merges_file.read_bytes()).decode("utf-8").split("\n")
    merges = [(first, second) for first, second in (line.split() for line in lines[1 : 1 + MERGES])]
    letters = byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=77)


def byte_letters() -> list[str]:
    """The letters of byte-level BPE in OpenAI's order: printable bytes first, then stand-ins for the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("tower", "merges", "arrays", "features", "wordnet", "words", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--side", type=int, default=SIDE, help="pixels of a picture's side; 128 costs a third of 224")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    photos = Photos(options.arrays, options.features)
    wordnet = WordNet(options.wordnet)
    things = read_things(options.arrays, photos.sets, wordnet, read_synonyms(options.words))
    prototypes = photos.prototypes(len(things.names), things.first)
    words, word_features = unseen_words(wordnet, things, prototypes)
    numbers = photos.numbers(things.first)
    mean = torch.from_numpy(photos.mean)
    centred = torch.from_numpy(photos.features)
    tokenizer = open_tokenizer(options.merges)
    ends = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    config = CLIPTextConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4, projection_dim=512,
        vocab_size=len(tokenizer), hidden_act="quick_gelu", **ends,
    )  # fmt: skip
    text_tower = CLIPTextModelWithProjection(config).train()
    text_tower.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(text_tower.parameters(), weight_decay=0.05, betas=(0.9, 0.98))
    none = np.zeros(IMAGES, np.int64)
    started, step, told = time.time(), 0, 0.0
    while (progress := (time.time() - started) / 60 / options.minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * progress)) + 1e-6
        rows = rng.integers(0, photos.described, IMAGES)
        captions = [caption(things, int(numbers[i]), 0, rng) for i in rows[:CAPTIONS]]
        unseen = rng.integers(0, len(words), UNSEEN)
        texts = [text for text, _, _ in captions] + [phrase(words[i], rng) for i in unseen]
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            embeds = text_tower(**tokens).text_embeds
        text = F.normalize(F.normalize(embeds.float(), dim=-1) - mean, dim=-1)
        match = photo_matches(captions, none[:CAPTIONS], numbers[rows], none)
        wanted = np.concatenate([kinds_of([classes for _, classes, _ in captions], prototypes), word_features[unseen]])
        loss = contrastive(SCALE / 2 * centred[rows] @ text[:CAPTIONS].T, match)
        loss = loss + 0.5 * towards(text, torch.from_numpy(wanted))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(text_tower.parameters(), 1.0)
        optimizer.step()
        step, told = step + 1, told + loss.item()
        if step % 25 == 0:
            print(f"step {step} ({progress:.2f}) loss {told / 25:.3f}", flush=True)
            told = 0.0
    tower = load_tower(options.tower, options.side)
    both = CLIPConfig(text_config=config.to_dict(), vision_config=tower.config.to_dict(), projection_dim=512)
    model = CLIPModel(both)
    model.vision_model.load_state_dict(tower.vision_model.state_dict())
    model.visual_projection.load_state_dict(tower.visual_projection.state_dict())
    model.text_model.load_state_dict(text_tower.text_model.state_dict())
    model.text_projection.load_state_dict(text_tower.text_projection.state_dict())
    model.logit_scale.data.fill_(math.log(100.0))
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    side = options.side
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(options.out)


if __name__ == "__main__":
    main()
