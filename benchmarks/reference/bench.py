"""What the rows share: the two clones, one model in two formats, one drawn data set, and the reference's trainers on them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coopcli.clip.backbone import Backbone, load_backbone
from coopcli.clip.cache import FeatureCache
from coopcli.clip.image_features import image_features
from coopcli.data.dataset import DataSet
from coopcli.data.load import load_split_file

from .clip_pair import SIDE, write_pair
from .pictures import draw_eurosat
from .shims import quiet


@dataclass(frozen=True)
class Row:
    """A line of the table: what was compared, what came out, and why where the two differ."""

    what: str
    outcome: str
    note: str = ""


@dataclass(frozen=True)
class Bench:
    """The clones, a folder to work in, and the official splits and images where they are at hand."""

    coop: Path
    dassl: Path
    work: Path
    data: Path | None

    @cached_property
    def model(self) -> tuple[Path, Path]:
        """The small random CLIP: the CLIPModel folder, the reference's file."""
        return write_pair(self.work, self.coop / "clip" / "bpe_simple_vocab_16e6.txt.gz")

    @cached_property
    def backbone(self) -> Backbone:
        return load_backbone(str(self.model[0]), device="cpu")

    @cached_property
    def split(self) -> tuple[Path, Path]:
        """The drawn data set: its split file, its image folder."""
        return draw_eurosat(self.work)

    @cached_property
    def dataset(self) -> DataSet:
        return load_split_file(*self.split)

    @cached_property
    def test_features(self) -> Tensor:
        """coop's image features of the drawn test images."""
        return image_features(self.backbone, self.dataset.splits["test"], FeatureCache(None))

    def config(self, *options: object, trainer: str = "CoOp", root: Path | None = None, output: str = "", seed: int = 1) -> Any:
        """The reference's own configuration: its file for ViT-B/32, then options as its command line takes them."""
        import train  # the clone's train.py

        given = argparse.Namespace(
            root=str(root or self.work), output_dir=str(self.work / (output or "out")), trainer=trainer, seed=seed,
            config_file=str(self.coop / "configs/trainers/CoOp/vit_b32_ep50.yaml"), dataset_config_file=None,
            **dict.fromkeys(("resume", "source_domains", "target_domains", "transforms", "backbone", "head")),
            opts=[
                "DATASET.NAME", "EuroSAT", "TRAINER.COOP.PREC", "fp32", "INPUT.SIZE", (SIDE, SIDE), "DATALOADER.NUM_WORKERS", 0,
                *options,
            ],
        )  # fmt: skip
        return train.setup_cfg(given)

    def trainer(self, *options: object, trainer: str = "CoOp", output: str = "") -> Any:
        """One of the reference's trainers, made on the drawn data and the small CLIP, in float32."""
        import clip.clip
        import trainers.coop
        import trainers.zsclip
        from dassl.engine import build_trainer
        from dassl.utils import set_random_seed

        _ = self.split
        clip.clip._download = lambda url: str(self.model[1])  # no weights of OpenAI's are fetched
        load = trainers.coop.load_clip_to_cpu
        trainers.zsclip.load_clip_to_cpu = lambda config: load(config).float()  # fp16, which it keeps, is for a GPU
        with quiet():
            config = self.config(*options, trainer=trainer, output=output)
            set_random_seed(config.SEED)
            return build_trainer(config)


@torch.no_grad()
def reference_logits(trainer: Any) -> Tensor:
    """The logits [n, K] of a trainer of the reference for the test images, in their order."""
    trainer.set_model_mode("eval")
    with quiet():
        return torch.cat([trainer.model_inference(trainer.parse_batch_test(batch)[0]) for batch in trainer.test_loader])


def compare_logits(ours: Tensor, theirs: Tensor, labels: Sequence[int]) -> str:
    """Largest difference, predictions that differ, and both accuracies."""
    flipped = int((ours.argmax(1) != theirs.argmax(1)).sum())
    hits = [int((logits.argmax(1) == torch.tensor(labels)).sum()) for logits in (ours, theirs)]
    far = float((ours - theirs).abs().max())
    return f"logits differ by {far:.1e} at most, {flipped} of {len(ours)} predictions; {hits[0]} right, reference {hits[1]}"


Rows = Callable[[Bench], list[Row]]
