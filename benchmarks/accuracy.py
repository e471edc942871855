"""Accuracy, mean and standard deviation over seeds: hand-written, ensemble and learned prompts, one column per variant.

    python benchmarks/accuracy.py demo                                   # the demo tasks over shots, two minutes on two cores
    python benchmarks/accuracy.py SPLIT.json --images ROOT --template "a centered satellite photo of {}."
    python benchmarks/accuracy.py demo --shots 16 --recipe paper fast    # other axes: --views 1 4 16 online, --dtype, --csc

Prints one Markdown table per data set; the steps and seconds of training are the mean over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from coopcli import ContextSettings, FeatureCache, fit, hand_written_features, image_features
from coopcli.backbone import load_backbone
from coopcli.cache import default_cache_folder
from coopcli.demo import TASKS, draw_demo
from coopcli.evaluation import evaluate_logits, learned_features
from coopcli.fitting import Fit
from coopcli.images import DataSet, load_data
from coopcli.templates import DEFAULT_TEMPLATE, TEMPLATE_SETS
from coopcli.training import Recipe, fast_recipe, paper_recipe


@dataclass(frozen=True)
class Variant:
    """One column: how the prompt is learned."""

    shots: int
    recipe: str
    views: str
    dtype: str
    context: ContextSettings

    def full_recipe(self, n_classes: int) -> Recipe:
        chosen = fast_recipe() if self.recipe == "fast" else paper_recipe(self.shots, n_classes)
        return replace(chosen, views=0 if self.views == "online" else int(self.views))

    def heading(self, others: list[Variant]) -> str:
        parts = {
            "shots": f"{self.shots} shots",
            "recipe": self.recipe,
            "views": f"{self.views} views",
            "dtype": self.dtype,
            "context": f"{self.context.position}{' csc' if self.context.csc else ''}",
        }
        varied = [part for key, part in parts.items() if len({getattr(other, key) for other in others}) > 1]
        return ", ".join(varied) or parts["shots"]


def spread(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def steps(one: Fit, recipe: Recipe) -> int:
    size = min(recipe.batch_size or len(one.train_items), len(one.train_items))
    return recipe.epochs * (len(one.train_items) // size)


def table(
    model: str, train: DataSet, others: dict[str, DataSet], template: str, variants: list[Variant], seeds: list[int]
) -> None:
    backbones = {dtype: load_backbone(model, dtype=dtype) for dtype in {v.dtype for v in variants}}
    cache = FeatureCache(default_cache_folder())
    recipes = {v: v.full_recipe(len(train.class_names)) for v in variants}
    fits = {
        v: [fit(backbones[v.dtype], train, recipes[v], v.context, v.shots, seed, cache=cache) for seed in seeds]
        for v in variants
    }

    def cells(dataset: DataSet) -> list[str]:
        names, items = dataset.class_names, dataset.split("test", "all")
        images = {dtype: image_features(backbone, items, cache) for dtype, backbone in backbones.items()}

        def top1(classes: Tensor, dtype: str, used: frozenset[str] = frozenset()) -> float:
            rows = [row for row, item in enumerate(items) if item.name not in used]
            left = [items[row] for row in rows]
            logits = backbones[dtype].logit_scale * images[dtype][rows] @ classes.T
            return evaluate_logits(logits, names, left).metrics.top1

        def hand_written(templates: list[str]) -> float:
            dtype = variants[0].dtype
            return top1(hand_written_features(backbones[dtype], templates, names, cache), dtype)

        def learned(one: Fit, dtype: str) -> float:
            used = frozenset(item.name for item in one.train_items) if dataset is train else frozenset()
            return top1(learned_features(backbones[dtype], one.prompt, names), dtype, used)

        of_templates = [spread([hand_written(templates)]) for templates in ([template], list(TEMPLATE_SETS["imagenet"]))]
        return of_templates + [spread([learned(one, v.dtype) for one in fits[v]]) for v in variants]

    print(f"| {train.name}, {model} | hand-written | ensemble | " + " | ".join(v.heading(variants) for v in variants) + " |")
    print("|---" * (3 + len(variants)) + "|")
    for name, dataset in {"test": train, **others}.items():
        print(f"| {name} | " + " | ".join(cells(dataset)) + " |", flush=True)
    counts = [statistics.mean(steps(one, recipes[v]) for one in fits[v]) for v in variants]
    seconds = [statistics.mean(one.seconds["training"] for one in fits[v]) for v in variants]
    print("| steps (seconds) | | | " + " | ".join(f"{n:.0f} ({s:.1f})" for n, s in zip(counts, seconds, strict=True)) + " |\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--template", default=DEFAULT_TEMPLATE)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--recipe", nargs="+", choices=["paper", "fast"], default=["paper"])
    parser.add_argument("--views", nargs="+", default=["16"])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--position", nargs="+", choices=["end", "middle", "front"], default=["end"])
    parser.add_argument("--csc", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    contexts = [ContextSettings(16, position, options.csc) for position in options.position]
    variants = [Variant(*values) for values in product(options.shots, options.recipe, options.views, options.dtype, contexts)]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    if options.data != "demo":
        data = load_data(options.data, options.images)
        table(options.model, data, {}, options.template, variants, options.seeds)
        return
    with tempfile.TemporaryDirectory() as folder:
        draw_demo(Path(folder))
        for name in TASKS:
            train, shifted = (load_data(f"{folder}/{part}") for part in (name, f"{name}-shifted"))
            table(options.model, train, {"drawn otherwise": shifted}, options.template, variants, options.seeds)


if __name__ == "__main__":
    main()
