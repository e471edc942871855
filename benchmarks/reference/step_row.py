"""The row of time and memory: a training step at ViT-B/16 sizes, 100 classes, batch 32, each side in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel

from coopcli.clip.prompts import ContextSettings, context_prompts, random_context
from coopcli.clip.text_encoder import TextEncoder
from coopcli.data.load import load_split_file
from coopcli.demo.drawing import COLOURS
from coopcli.learning.recipe import Recipe
from coopcli.learning.training import TrainingState, TrainingTask, train_context
from coopcli.machine import peak_memory

from .bench import Bench, Row
from .clip_pair import openai_tokenizer
from .shims import quiet

THINGS = ["star", "ring", "cross", "circle", "triangle", "square", "crescent", "heart", "arrow", "flower"]


def step(bench: Bench) -> list[Row]:
    sides = []
    for side in ("coop", "reference"):
        command = [sys.executable, str(Path(__file__).parents[1] / "against_reference.py"), "--step", side]
        command += ["--coop", str(bench.coop), "--dassl", str(bench.dassl)]
        command += ["--data", str(bench.data)] if bench.data else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the step of {side} failed: {done.stderr.strip().splitlines()[-1:]}")
        sides.append(json.loads(done.stdout.splitlines()[-1]))
    ours, theirs = sides
    what = f"a training step, ViT-B/16 sizes, {len(_names(bench.data))} classes, batch 32"
    return [
        Row(
            what,
            f"{ours['seconds']:.2f} s, reference {theirs['seconds']:.1f} s: {theirs['seconds'] / ours['seconds']:.0f}x",
            f"peak memory of the process {ours['memory'] / 1e9:.1f} GB, reference {theirs['memory'] / 1e9:.1f} GB",
        )
    ]


def measure(side: str, coop: Path, data: Path | None) -> None:
    """Print seconds and memory of one side's step; this process does nothing else."""
    seconds = {"coop": _ours, "reference": _theirs}[side](coop, _names(data))
    print(json.dumps({"seconds": seconds, "memory": peak_memory(torch.device("cpu"))}))


def _names(data: Path | None) -> list[str]:
    """Caltech101's names where the official splits are at hand, else a hundred of that length."""
    if data:
        return list(load_split_file(data / "splits" / "split_zhou_Caltech101.json").class_names)
    return [f"{colour} {thing}" for colour in COLOURS for thing in THINGS][:100]


def _theirs(coop: Path, names: list[str]) -> float:
    import train
    from clip.model import CLIP
    from trainers.coop import CustomCLIP
    from yacs.config import CfgNode

    torch.manual_seed(0)
    with quiet():
        config: Any = CfgNode({"TRAINER": {}, "DATASET": {}, "INPUT": {"SIZE": (224, 224)}})
        train.extend_cfg(config)
        model = CustomCLIP(config, names, CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12).float())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("prompt_learner" in name)
    optimizer = torch.optim.SGD(model.prompt_learner.parameters(), lr=0.002, momentum=0.9, weight_decay=5e-4)
    pixels, labels = torch.randn(32, 3, 224, 224), torch.arange(32)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        loss = F.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    return min(times)


def _ours(coop: Path, names: list[str]) -> float:
    tokenizer = openai_tokenizer(coop / "clip" / "bpe_simple_vocab_16e6.txt.gz")
    torch.manual_seed(0)
    text = dict(vocab_size=len(tokenizer), bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=dict(patch_size=16))).eval().requires_grad_(False)
    encoder = TextEncoder(model)
    context = random_context(ContextSettings(16), len(names), encoder.width, seed=1)
    prompts = context_prompts(tokenizer, ContextSettings(16), names)
    features, labels = F.normalize(torch.randn(32, 512), dim=-1), torch.arange(32)
    times: list[float] = []
    ends = Namespace(before=0.0)

    def on_epoch(state: TrainingState) -> None:
        now = time.perf_counter()
        times.append(now - ends.before)
        ends.before = now

    ends.before = time.perf_counter()
    task = TrainingTask(prompts, lambda epoch: features, labels, 100.0, Recipe(epochs=12), 1)
    train_context(encoder, task, TrainingState(context), on_epoch)
    return sorted(times[2:])[len(times[2:]) // 2]
