"""Learn the four variants of a prompt, in one process or in each of a torchrun job: `shards_job.py PHOTOS FOLDER`."""

import sys
from itertools import product
from pathlib import Path

import torch

from coopcli.clip.backbone import load_backbone
from coopcli.clip.prompts import ContextSettings
from coopcli.data.load import load_data
from coopcli.learning.fit import Watch, fit
from coopcli.learning.recipe import Recipe
from coopcli.parallel import join, leave, world

VARIANTS = [f"{position}{csc * '-csc'}" for position, csc in product(("end", "middle"), (False, True))]


def learn(photos, folder, stop=None, optimizer="sgd"):
    """Write a prompt for each variant; with `stop` only a checkpoint of its first epochs, from which a later call resumes."""
    torch.set_num_threads(1)
    mini, data = load_backbone("mini", device="cpu"), load_data(str(photos))
    recipe = Recipe(epochs=4, batch_size=5, views=1, warmup_lr=0.002, optimizer=optimizer)

    def on_epoch(log):
        if log.epoch + 1 == stop:
            raise KeyboardInterrupt

    for variant in VARIANTS:
        position, csc = variant.removesuffix("-csc"), variant.endswith("-csc")
        settings, checkpoint = ContextSettings(4, position, csc), folder / f"{variant}.checkpoint"
        try:
            result = fit(
                mini, data, recipe, settings, shots=2, class_chunk=2, watch=Watch(on_epoch=on_epoch), checkpoint=checkpoint
            )
        except KeyboardInterrupt:
            continue
        if world().rank == 0:
            result.prompt.save(folder / f"{variant}.safetensors")
            (folder / f"{variant}.log").write_text(f"{result.log} {result.test.metrics}")


if __name__ == "__main__":
    join("cpu")
    learn(Path(sys.argv[1]), Path(sys.argv[2]))
    leave()
