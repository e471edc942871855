"""How fast and how small a training step is, against the stock text tower over 77 positions, in one run.

    pip install --no-deps open_clip_torch     # only for OpenAI's token table, so that names have their true lengths
    python benchmarks/speed.py [ROW ...]      # all rows take about half an hour on two cores
    python benchmarks/speed.py --cpu [ROW ...]    # CPU seconds, user and system, for a machine that does other work

ViT-B/16 sizes with random weights, M = 16, float32 where the row does not say otherwise. Each row alternates the two
sides and takes the median of each. `--data` is the folder that holds `splits/` and `prompts/` (see README there).
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from coopcli.clip.frozen_linear import FrozenLinear
from coopcli.clip.openclip import openai_tokenizer
from coopcli.clip.prompts import ContextSettings, context_prompts, hand_written_prompts, random_context
from coopcli.clip.templates import TEMPLATE_SETS
from coopcli.clip.text_encoder import TextEncoder
from coopcli.data.folders import load_folder
from coopcli.data.load import ImageItem, load_split_file
from coopcli.learning.recipe import Recipe
from coopcli.learning.training import TrainingState, TrainingTask, train_context

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import oracle

M = 16
IMAGES = 32  # a batch of the paper's recipe
GOMP_OWN = {"GOMP_SPINCOUNT": "300000"}  # where nothing else is said
STOCK_CHUNK = 100  # classes at a time in the stock tower, which holds 77 positions of each in memory


def random_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIPModel of ViT-B/16 sizes with random weights."""
    torch.manual_seed(0)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPConfig(text_config=dict(vocab_size=len(tokenizer), **ends), vision_config=dict(patch_size=16))
    return CLIPModel(config).eval().requires_grad_(False)


def class_names(data: Path, name: str) -> list[str]:
    if name == "ImageNet":
        return json.loads((data / "prompts" / "imagenet_classnames.json").read_text())
    return list(load_split_file(data / "splits" / f"split_zhou_{name}.json").class_names)


clock: Callable[[], float] = time.perf_counter


def cpu_seconds() -> float:
    """CPU seconds of this process, and of those it has started that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def alternate(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of each side; one untimed round of both first."""
    ours()
    theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, run in enumerate((ours, theirs)):
            started = clock()
            run()
            times[side].append(clock() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def matmul_rate(dtype: torch.dtype = torch.float32) -> float:
    """Multiply-adds times two per second: the better of a plain product and a packed one, large enough for full speed."""
    x, weight = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    packed = FrozenLinear(weight, torch.zeros(2048, dtype=dtype))
    times = []
    for _ in range(5):
        for run in (lambda: x @ weight, lambda: packed(x)):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(times)


def floor(encoder: TextEncoder, n_nodes: int, n_leaves: int, rate: float) -> float:
    """Seconds that the matrix products of one forward and backward pass take at full rate.

    A layer has 24 d^2 operations a row each way: 6 d^2 for q, k and v, 2 d^2 for the output, 16 d^2 for the MLP. In the
    last layer only the EOS rows need the latter two.
    """
    layers = len(encoder.layers)
    rows = n_nodes * (6 * layers + 18 * (layers - 1)) + n_leaves * 18
    return 2 * rows * encoder.width**2 / rate


class Bench:
    def __init__(self, data: Path, dtype: torch.dtype = torch.float32) -> None:
        self.data = data
        self.tokenizer = openai_tokenizer()
        self.model = random_clip(self.tokenizer)
        self.encoder = TextEncoder(self.model.to(dtype))

    def stock_text(self, names: list[str], context: torch.Tensor, position: str, weights: torch.Tensor) -> None:
        """Forward and backward of the stock text tower over 77 positions, classes in chunks."""
        for start in range(0, len(names), STOCK_CHUNK):
            part = slice(start, start + STOCK_CHUNK)
            mine = context[part] if context.ndim == 3 else context
            features = oracle.text_features(self.model, self.tokenizer, names[part], mine, position)
            (features * weights[part]).sum().backward()

    def text(self, name: str, position: str = "end", csc: bool = False, rounds: int = 3) -> None:
        """Text features of all classes, forward and backward."""
        names = class_names(self.data, name)
        settings = ContextSettings(M, position, csc)
        context = random_context(settings, len(names), self.encoder.width, seed=1).requires_grad_()
        weights = torch.randn(len(names), 512)
        layouts = self.encoder.lay_out(context_prompts(self.tokenizer, settings, names))

        def ours() -> None:
            (self.encoder.encode_layouts(layouts, context) * weights).sum().backward()

        mine, stock = alternate(ours, lambda: self.stock_text(names, context, position, weights), rounds)
        what = f"text forward + backward, {name} ({len(names)} names), {'CSC' if csc else position}"
        n_nodes = layouts[0].tree.n_nodes
        least = floor(self.encoder, n_nodes, len(names), matmul_rate())
        self.tell(what, mine, stock, f"{n_nodes} tokens for {77 * len(names)}; products alone {least:.3f} s")

    def step(self) -> None:
        """A training step of the paper's recipe, Caltech101's 100 classes, batch 32."""
        names = class_names(self.data, "Caltech101")
        context = random_context(ContextSettings(M), len(names), self.encoder.width, seed=1)
        prompts = context_prompts(self.tokenizer, ContextSettings(M), names)
        pixels, labels = torch.randn(IMAGES, 3, 224, 224), torch.arange(IMAGES)
        features = F.normalize(torch.randn(IMAGES, 512), dim=-1)
        leaf = context.clone().requires_grad_()
        optimizer = torch.optim.SGD([leaf], lr=0.002, momentum=0.9, weight_decay=5e-4)
        steps = 5

        def ours() -> None:
            train_context(
                self.encoder,
                TrainingTask(prompts, lambda epoch: features, labels, 100.0, Recipe(epochs=steps), seed=1),
                TrainingState(context),
            )

        def theirs() -> None:
            with torch.no_grad():
                images = F.normalize(self.model.get_image_features(pixels).pooler_output, dim=-1)
            text = oracle.text_features(self.model, self.tokenizer, names, leaf)
            F.cross_entropy(100.0 * images @ text.T, labels).backward()
            optimizer.step()

        mine, stock = alternate(ours, theirs, 3)
        self.tell("one training step, Caltech101, batch 32", mine / steps, stock, "against the step with its image tower")

    def bfloat16(self) -> None:
        """The same step with the towers in bfloat16, against float32."""
        names = class_names(self.data, "Caltech101")
        rough = TextEncoder(copy.deepcopy(self.model).bfloat16())
        context = random_context(ContextSettings(M), len(names), self.encoder.width, seed=1)
        prompts = context_prompts(self.tokenizer, ContextSettings(M), names)
        features, labels = F.normalize(torch.randn(IMAGES, 512), dim=-1), torch.arange(IMAGES)
        steps = 5

        def run(encoder: TextEncoder) -> None:
            task = TrainingTask(prompts, lambda epoch: features, labels, 100.0, Recipe(epochs=steps), seed=1)
            train_context(encoder, task, TrainingState(context))

        mine, exact = alternate(lambda: run(rough), lambda: run(self.encoder), 7)
        least = floor(rough, rough.lay_out(prompts)[0].tree.n_nodes, len(names), matmul_rate(torch.bfloat16))
        what = "one training step, Caltech101, bfloat16 against coop in float32"
        self.tell(what, mine / steps, exact / steps, f"products alone {least:.3f} s")

    def ensemble(self) -> None:
        """80 templates x 1000 names; the stock tower on every 80th prompt, its time times 80."""
        names = class_names(self.data, "ImageNet")
        templates = TEMPLATE_SETS["imagenet"]
        every = [hand_written_prompts(self.tokenizer, template, names) for template in templates]

        @torch.inference_mode()
        def ours() -> None:
            for prompts in every:
                self.encoder.encode(prompts)

        @torch.inference_mode()
        def theirs() -> None:
            for i in range(0, len(names), STOCK_CHUNK):
                template = templates[i // STOCK_CHUNK * 7 % 80]
                oracle.template_features(self.model, self.tokenizer, template, names[i : i + STOCK_CHUNK])

        started = time.perf_counter()
        ours()
        mine = time.perf_counter() - started
        started = time.perf_counter()
        theirs()
        stock = 80 * (time.perf_counter() - started)
        self.tell("80 templates x 1000 ImageNet names", mine, stock, "stock: 1000 of the 80,000 prompts, times 80")

    def features(self) -> None:
        """Image features from files on disk and from pixels, against the bare tower on tensors in memory."""
        from transformers import CLIPImageProcessorPil

        from coopcli.clip.backbone import Backbone
        from coopcli.clip.cache import FeatureCache
        from coopcli.clip.image_features import image_features

        processor = CLIPImageProcessorPil()
        backbone = Backbone("random", None, self.model, self.tokenizer, processor, "x", torch.device("cpu"), "float32", 100.0)
        inputs = torch.randn(IMAGES, 3, 224, 224)
        pixels = torch.randint(0, 256, (IMAGES, 3, 224, 224), dtype=torch.uint8)

        @torch.inference_mode()
        def bare() -> None:
            self.model.get_image_features(inputs)

        mine, stock = alternate(lambda: backbone.encode_images(pixels), bare, 3)
        self.tell(f"image features from pixels, {IMAGES} images", mine, stock, f"{IMAGES / mine:.1f} images/s")
        with tempfile.TemporaryDirectory() as folder:
            items = noise_pictures(Path(folder), IMAGES, (640, 480))
            mine, stock = alternate(lambda: image_features(backbone, items, FeatureCache(None)), bare, 3)
        self.tell(f"the same from 640x480 JPEG files, {IMAGES} files", mine, stock, f"{len(items) / mine:.1f} images/s")

    @staticmethod
    def views() -> None:
        """Features of 16 views of each file with `mini`, decoded once, against 16 passes over the files."""
        from coopcli.clip.backbone import load_backbone
        from coopcli.clip.cache import FeatureCache
        from coopcli.clip.image_features import view_features

        backbone, count = load_backbone("mini", device="cpu"), 16
        with tempfile.TemporaryDirectory() as folder:
            items = noise_pictures(Path(folder), 100, (500, 375))

            def one_by_one() -> None:
                for view in range(count):
                    view_features(backbone, items, [view], FeatureCache(None))

            mine, apart = alternate(lambda: view_features(backbone, items, range(count), FeatureCache(None)), one_by_one, 3)
        Bench.tell(f"{count} views of {len(items)} JPEG files (500x375), mini", mine, apart, "against as many passes")

    @staticmethod
    def busy() -> None:
        """A small `coop fit` with `mini` while another program fills one of the cores, as coop waits and as libgomp would."""
        from coopcli.demo.tasks import write_task

        with tempfile.TemporaryDirectory() as place:
            write_task(Path(place) / "photos", "shapes", 8, seed=(9,))
            words = ["fit", "photos", "--model", "mini", "--shots", "4", "--no-plot", "--quiet", "--output"]
            filler = ["taskset", "-c", "0", sys.executable, "-c", "while True: pass"]
            other = subprocess.Popen(filler, start_new_session=True)  # as from another terminal: Linux shares cores by session
            try:
                mine, slow = alternate(*(functools.partial(fit_anew, place, words, spins) for spins in ({}, GOMP_OWN)), 1)
            finally:
                other.kill()
        what = "`coop fit` with `mini`, 8 classes, 4 shots, start-up included, beside a program that fills a core"
        Bench.tell(what, mine, slow, f"against threads that wait as libgomp's own do: {GOMP_OWN}")

    @staticmethod
    def tell(what: str, mine: float, stock: float, note: str) -> None:
        print(f"| {what} | {mine:.3f} s | {stock:.2f} s | {stock / mine:.2f}x | {note} |", flush=True)


def noise_pictures(folder: Path, count: int, size: tuple[int, int]) -> Sequence[ImageItem]:
    """Write JPEG files of smooth noise, and list them."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        small = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(path)
    return load_folder(folder).splits["all"]


def peak_memory() -> float:
    """The most memory that this process has held so far, in GB. (getrusage would count the parent's, too.)"""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 2**20


def peak(what: str, data: Path) -> None:
    """Run one step in this process and print its peak memory; called in processes of their own."""
    bench = Bench(data)
    names = class_names(data, "ImageNet" if what == "imagenet" else "Caltech101")
    context = random_context(ContextSettings(M), len(names), bench.encoder.width, seed=1)
    before = peak_memory()
    if what == "stock":
        with torch.no_grad():
            bench.model.get_image_features(torch.randn(IMAGES, 3, 224, 224))
        oracle.text_features(bench.model, bench.tokenizer, names, context.requires_grad_()).sum().backward()
    else:
        features = F.normalize(torch.randn(IMAGES, 512), dim=-1)
        prompts = context_prompts(bench.tokenizer, ContextSettings(M), names)
        task = TrainingTask(prompts, lambda epoch: features, torch.arange(IMAGES), 100.0, Recipe(epochs=2), seed=1)
        train_context(bench.encoder, task, TrainingState(context))
    after = peak_memory()
    print(f"| peak memory of a step, {what} | {after:.2f} GB | {after - before:.2f} GB of it the step | | |", flush=True)


def fit_anew(place: str, words: list[str], variables: dict[str, str]) -> None:
    """Run `coop fit` in a folder, with no run of before and nothing in the cache."""
    with tempfile.TemporaryDirectory() as fresh:
        environment = os.environ | {"COOP_CACHE": f"{fresh}/cache", "PYTHONPATH": str(Path(__file__).parents[1])} | variables
        command = [sys.executable, "-m", "coopcli", *words, f"{fresh}/run"]
        subprocess.run(command, cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL)


ROWS: dict[str, Callable[[Path], None]] = {
    "step": lambda data: Bench(data).step(),
    "caltech": lambda data: Bench(data).text("Caltech101"),
    "cars": lambda data: Bench(data).text("StanfordCars"),
    "middle": lambda data: Bench(data).text("Caltech101", "middle"),
    "csc": lambda data: Bench(data).text("Caltech101", csc=True),
    "bfloat16": lambda data: Bench(data).bfloat16(),
    "imagenet": lambda data: Bench(data).text("ImageNet", rounds=1),
    "ensemble": lambda data: Bench(data).ensemble(),
    "features": lambda data: Bench(data).features(),
    "views": lambda data: Bench.views(),
    "busy": lambda data: Bench.busy(),
    "memory": lambda data: [
        subprocess.run([sys.executable, __file__, "--data", str(data), "--peak", what], check=True)
        for what in ("ours", "stock", "imagenet")
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--cpu", action="store_true", help="measure CPU seconds")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cpu:
        global clock
        clock = cpu_seconds
    if options.peak:
        peak(options.peak, options.data)
        return
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| what | coop | against | ratio | |\n|---|---|---|---|---|", flush=True)
    for row in options.rows or ROWS:
        ROWS[row](options.data)


if __name__ == "__main__":
    main()
