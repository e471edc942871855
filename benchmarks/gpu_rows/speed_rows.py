"""How fast: training steps, a fit from pictures to accuracy, image features, the stock step."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import gpu_checks
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from speed import floor
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from coopcli.clip.backbone import Backbone, load_backbone
from coopcli.clip.cache import FeatureCache
from coopcli.clip.image_features import image_features
from coopcli.clip.pixels import Preprocessing, prepare, read_preprocessing
from coopcli.clip.prompts import ContextSettings, PromptTokens, random_context
from coopcli.clip.text_encoder import TextEncoder
from coopcli.data.load import load_data
from coopcli.demo.satellites import unpack_satellites
from coopcli.learning.fit import fit
from coopcli.learning.recipe import Recipe
from coopcli.learning.training import TrainingState, TrainingTask, train_context

from .setting import Line, Rows, Setting

M, BATCH = 16, 32
IMAGENET_STEPS = 25_000  # 16 shots of 1000 classes, batch 32, 50 epochs
TOWERS = {"ViT-B/16": (512, 8), "ViT-L/14": (768, 12)}  # width and heads of the text tower, 12 layers
# Longest random name: its distinct tokens are then about those of Caltech101's 100 names (361) and ImageNet's 1000 (4,020).
LONGEST = {100: 2, 1000: 3}
PRECISIONS = {"float32": torch.float32, "TF32": torch.float32, "bfloat16": torch.bfloat16}


def _tower(setting: Setting, name: str, dtype: torch.dtype) -> TextEncoder:
    width, heads = (64, 4) if setting.quick else TOWERS[name]
    model = gpu_checks.text_tower(width, heads, 2 if setting.quick else 12)
    return TextEncoder(model.to(setting.device, dtype))


def _allow_tf32(precision: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = precision == "TF32"


def _step_seconds(setting: Setting, encoder: TextEncoder, prompts: list[PromptTokens], steps: int) -> float:
    """Seconds of one step as `coop fit` takes it: of the last two of three epochs, so that recording is not among them."""
    n = steps * BATCH
    start = TrainingState(random_context(ContextSettings(M), len(prompts), encoder.width, seed=1))
    images, labels = F.normalize(torch.randn(n, encoder.feature_width), dim=-1), torch.arange(n) % len(prompts)
    images = images.to(setting.device)
    ends: list[float] = []

    def on_epoch(state: TrainingState) -> None:
        setting.wait()
        ends.append(time.perf_counter())

    task = TrainingTask(prompts, lambda epoch: images, labels, 100.0, Recipe(epochs=3), 1, encoder.fixed_chunk(prompts))
    train_context(encoder, task, start, on_epoch)
    return (ends[2] - ends[0]) / (2 * steps)


def steps(setting: Setting) -> Iterator[Line]:
    for tower in list(TOWERS)[: 1 if setting.quick else None]:
        for precision, dtype in PRECISIONS.items():
            if precision == "TF32" and setting.device.type != "cuda":
                continue
            _allow_tf32(precision)
            try:
                yield from _steps(setting, tower, precision, dtype)
            finally:
                _allow_tf32("float32")


def _steps(setting: Setting, tower: str, precision: str, dtype: torch.dtype) -> Iterator[Line]:
    encoder, rate = _tower(setting, tower, dtype), setting.matmul_rate(dtype)
    for n_classes, longest in LONGEST.items():
        prompts = gpu_checks.prompts(n_classes, M, longest=longest)
        nodes = encoder.lay_out(prompts)[0].tree.n_nodes
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = _step_seconds(setting, encoder, prompts, 2 if setting.quick else 100)
        memory = torch.cuda.max_memory_reserved() / 2**30 if setting.device.type == "cuda" else None
        held = f"{memory:.2f} GiB, " if memory else ""
        share = floor(encoder, nodes, n_classes, rate) / seconds
        total = f"; {IMAGENET_STEPS} steps in {IMAGENET_STEPS * seconds:.0f} s" if n_classes == 1000 else ""
        yield Line(
            f"a step, {'small' if setting.quick else tower} text tower, {n_classes} classes ({nodes} tokens), {precision}",
            f"{1000 * seconds:.2f} ms, {held}products alone {share:.0%} of it at {rate / 1e12:.3g} TFLOP/s{total}",
            {"ms": 1000 * seconds, "memory": memory, "share": share, "rate": rate, "tokens": nodes},
        )


def eurosat(setting: Setting) -> Iterator[Line]:
    """A fit of the demo's satellite photographs, from files to accuracy, nothing cached."""
    with tempfile.TemporaryDirectory() as folder:
        unpack_satellites(Path(folder))
        photos = next(path.parent for path in sorted(Path(folder).rglob("train")))
        started = time.perf_counter()
        backbone = load_backbone("mini", device=setting.device.type)
        loaded = time.perf_counter()
        recipe = Recipe(epochs=2, views=1) if setting.quick else None
        done = fit(backbone, load_data(str(photos)), recipe, cache=FeatureCache(None))
        seconds = {"loading": loaded - started, **done.seconds, "all": time.perf_counter() - started}
    accuracy = 100 * done.test.metrics.top1 if done.test else float("nan")
    parts = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    yield Line("fit, mini, 16 shots of 10 classes of satellite photographs", f"{parts}; top-1 {accuracy:.1f} %", seconds)


def images(setting: Setting) -> Iterator[Line]:
    """Image features a second of a random ViT-B/16: the tower alone, from pixels in memory, from JPEG files."""
    n = 64 if setting.quick else 4096
    sizes = dict(image_size=64) if setting.quick else {}
    torch.manual_seed(0)
    small_text = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, vocab_size=10)
    stock = (
        CLIPModel(CLIPConfig(vision_config=dict(patch_size=16, **sizes), text_config=small_text)).eval().requires_grad_(False)
    )
    side = 64 if setting.quick else 224
    process = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    with tempfile.TemporaryDirectory() as folder:
        _write_jpegs(Path(folder), n)
        items = load_data(folder).splits["all"]
        decoding = _decoding(read_preprocessing("random", process), [item.read() for item in items])
        yield Line("decoding 640x480 JPEG files", f"{decoding:.0f} images/s on {_cores()} cores", {"rate": decoding})
        for precision, dtype in PRECISIONS.items():
            if precision == "TF32":
                continue
            model = stock.to(setting.device, dtype)
            parts = ("random", None, model, None, process, precision, setting.device, precision, 100.0)
            backbone = Backbone(*parts)
            batch = torch.randn(8 if setting.quick else 256, 3, side, side, device=setting.device, dtype=dtype)
            with torch.inference_mode():
                alone = len(batch) / setting.seconds(lambda m=model, b=batch: m.get_image_features(b), 3)
            pixels = torch.randint(0, 256, (len(batch) * (1 if setting.quick else 8), 3, side, side), dtype=torch.uint8)
            tensors = len(pixels) / setting.seconds(lambda b=backbone, p=pixels: b.encode_images(p), 2)
            started = time.perf_counter()
            image_features(backbone, items, FeatureCache(None))
            files = n / (time.perf_counter() - started)
            best = min(alone, decoding)
            yield Line(
                f"image features, random {'ViT-B/16 of 64 pixels' if setting.quick else 'ViT-B/16'}, {precision}",
                f"tower alone {alone:.0f} images/s, from tensors {tensors:.0f} ({tensors / alone:.2f} of it), "
                f"from JPEG files {files:.0f} ({files / best:.2f} of the slower of tower and decoding)",
                {"alone": alone, "tensors": tensors, "files": files},
            )


def _write_jpegs(folder: Path, n: int) -> None:
    """A few contents in many files: each with a comment of its own, so that none is known from another."""
    numbers = np.random.default_rng(0)
    coarse = [Image.fromarray(numbers.integers(0, 255, (24, 32, 3), dtype=np.uint8)) for _ in range(8)]
    pictures = [picture.resize((640, 480), Image.Resampling.BICUBIC) for picture in coarse]
    for i in range(n):
        path = folder / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        pictures[i % 8].save(path, quality=90, comment=str(i))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decoding(preprocessing: Preprocessing, contents: list[bytes]) -> float:
    """Images a second that the cores decode and crop, no tower behind them."""
    with ProcessPoolExecutor(_cores(), get_context("fork")) as workers:
        started = time.perf_counter()
        jobs = [workers.submit(prepare, preprocessing, content, "", b"", [None]) for content in contents]
        for job in jobs:
            job.result()
        return len(contents) / (time.perf_counter() - started)


def stock(setting: Setting) -> Iterator[Line]:
    """The same step with stock towers: 77 positions of each class, the image tower in every step."""
    width, heads = (64, 4) if setting.quick else TOWERS["ViT-B/16"]
    layers = 2 if setting.quick else 12
    torch.manual_seed(0)
    text = dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads)
    vision = dict(image_size=32, patch_size=16, num_hidden_layers=2) if setting.quick else dict(patch_size=16)
    ends = dict(bos_token_id=gpu_checks.SOS, eos_token_id=gpu_checks.EOS, pad_token_id=gpu_checks.EOS)
    config = CLIPConfig(
        text_config=text | ends | dict(vocab_size=gpu_checks.VOCABULARY), vision_config=vision, projection_dim=width
    )
    model = CLIPModel(config).eval().requires_grad_(False).to(setting.device)
    prompts = gpu_checks.prompts(100, M, longest=LONGEST[100])
    context = (torch.randn(M, width, device=setting.device) * 0.02).requires_grad_()
    side = model.config.vision_config.image_size
    pixels = torch.randn(BATCH, 3, side, side, device=setting.device)
    labels = torch.arange(BATCH, device=setting.device)
    optimizer = torch.optim.SGD([context], lr=0.002, momentum=0.9, weight_decay=5e-4)

    def theirs() -> None:
        with torch.no_grad():
            seen = F.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
        loss = F.cross_entropy(100.0 * seen @ _stock_features(model, prompts, context).T, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    encoder = TextEncoder(model)
    with torch.inference_mode():
        far = float((encoder.encode(prompts, context) - _stock_features(model, prompts, context)).abs().max())
    slow = setting.seconds(theirs, 2 if setting.quick else 10)
    fast = _step_seconds(setting, encoder, prompts, 2 if setting.quick else 100)
    yield Line(
        f"a step of stock towers, 77 positions, {'small' if setting.quick else 'ViT-B/16'}, 100 classes, batch 32, float32",
        f"{1000 * slow:.1f} ms, coop {1000 * fast:.2f} ms: {slow / fast:.0f}x; class features differ by {far:.0e}",
        {"stock_ms": 1000 * slow, "ms": 1000 * fast, "ratio": slow / fast, "difference": far},
    )


def _stock_features(model: CLIPModel, prompts: list[PromptTokens], context: Tensor) -> Tensor:
    """Class features by the stock encoder over all 77 positions."""
    table = model.text_model.embeddings.token_embedding.weight
    tokens = torch.tensor([[*prompt, *[gpu_checks.EOS] * (77 - len(prompt))] for prompt in prompts], device=table.device)
    vectors = F.embedding(tokens.clamp(min=0), table)
    vectors = torch.where((tokens < 0)[..., None], F.embedding((-1 - tokens).clamp(min=0), context), vectors)
    vectors = vectors + model.text_model.embeddings.position_embedding.weight
    mask = torch.full((77, 77), -torch.inf, device=table.device).triu(1)[None, None]
    hidden = model.text_model.encoder(inputs_embeds=vectors, attention_mask=mask).last_hidden_state
    hidden = model.text_model.final_layer_norm(hidden)
    ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=table.device)
    return F.normalize(model.text_projection(hidden[torch.arange(len(prompts), device=table.device), ends]), dim=-1)


ROWS: dict[str, Rows] = {"steps": steps, "stock": stock, "eurosat": eurosat, "images": images}
