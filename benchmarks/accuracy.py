"""Accuracy over shots, mean and standard deviation over seeds: hand-written, ensemble and learned prompts.

    python benchmarks/accuracy.py demo                                   # the demo tasks, a few minutes on two cores
    python benchmarks/accuracy.py SPLIT.json --images ROOT --template "a centered satellite photo of {}."

Prints one Markdown table per data set.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from coopcli import FeatureCache, evaluate, fit, hand_written_features, image_features, learned_features, load_backbone
from coopcli.cache import default_cache_folder
from coopcli.demo import TASKS, draw_demo
from coopcli.images import DataSet, load_data
from coopcli.templates import DEFAULT_TEMPLATE, TEMPLATE_SETS
from coopcli.training import paper_recipe


def spread(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def table(model: str, train: DataSet, others: dict[str, DataSet], template: str, shots: list[int], seeds: list[int]) -> None:
    backbone = load_backbone(model)
    cache = FeatureCache(default_cache_folder())
    recipes = {k: paper_recipe(k, len(train.class_names)) for k in shots}
    fits = {k: [fit(backbone, train, recipes[k], shots=k, seed=seed, cache=cache) for seed in seeds] for k in shots}
    print(f"| {train.name}, {model} | hand-written | ensemble | " + " | ".join(f"{k} shots" for k in shots) + " |")
    print("|---" * (3 + len(shots)) + "|")
    for name, dataset in {"test": train, **others}.items():
        items = dataset.split("test", "all")
        images = image_features(backbone, items, cache)
        names = dataset.class_names

        def top1(class_features):
            return evaluate(images, class_features, backbone.logit_scale, names, items).metrics.top1  # noqa: B023

        cells = [spread([top1(hand_written_features(backbone, t, names))]) for t in ([template], TEMPLATE_SETS["imagenet"])]
        cells += [spread([top1(learned_features(backbone, one.prompt, names)) for one in fits[k]]) for k in shots]
        print(f"| {name}, {len(items)} images | " + " | ".join(cells) + " |", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--template", default=DEFAULT_TEMPLATE)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    if options.data != "demo":
        data = load_data(options.data, options.images)
        table(options.model, data, {}, options.template, options.shots, options.seeds)
        return
    with tempfile.TemporaryDirectory() as folder:
        draw_demo(Path(folder))
        for name in TASKS:
            train, shifted = (load_data(f"{folder}/{part}") for part in (name, f"{name}-shifted"))
            table(options.model, train, {"drawn otherwise": shifted}, options.template, options.shots, options.seeds)


if __name__ == "__main__":
    main()
