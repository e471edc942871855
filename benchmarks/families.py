"""Seconds and memory of a training step on text towers of other families, beside the stock tower, in one run.

    python benchmarks/families.py [FAMILY ...] [--classes 100] [--rounds 2]      # some minutes on two cores

Real sizes with random weights: SigLIP B/16 (64 positions), ALIGN base, MetaCLIP 2 B/32. Of the vocabulary only the first
tokens are there: a step only looks tokens up. M = 16, context in front of the name, float32. The sides alternate, and the
table has the median of each; peak memory comes from a process of its own for each side, over what the model takes.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from coopcli.clip.prompts import PromptTokens
from coopcli.clip.text_encoder import TextEncoder
from coopcli.clip.towers import read_tower

M = 16
VOCABULARY = 32_000
NAME_LENGTHS = (1, 1, 2, 2, 2, 3, 3, 4)  # tokens of a class name with its full stop less one, over and over
FILLER = 7  # a plain token in the places of the context, whose embedding the stock side replaces
SMALL_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}


def siglip() -> tuple[torch.nn.Module, list[int], list[int], int | None]:
    config = transformers.SiglipConfig(text_config={"vocab_size": VOCABULARY}, vision_config=SMALL_VISION)
    return transformers.SiglipModel(config), [], [1], 1


def align() -> tuple[torch.nn.Module, list[int], list[int], int | None]:
    small = {"width_coefficient": 0.2, "depth_coefficient": 0.1}
    config = transformers.AlignConfig(text_config={"vocab_size": VOCABULARY}, vision_config=small)
    return transformers.AlignModel(config), [101], [102], None


def metaclip_2() -> tuple[torch.nn.Module, list[int], list[int], int | None]:
    text = {"vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    text |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    config = transformers.MetaClip2Config(text_config=text, vision_config=SMALL_VISION)
    return transformers.MetaClip2Model(config), [0], [2], None


FAMILIES = {"siglip": siglip, "align": align, "metaclip_2": metaclip_2}


class Sides:
    """A family's tower with prompts around one context: a step of coop, and one of the stock model."""

    def __init__(self, family: str, n_classes: int) -> None:
        torch.manual_seed(0)
        self.model, begin, end, self.fill = FAMILIES[family]()
        self.model.eval().requires_grad_(False)
        self.encoder = TextEncoder(read_tower(self.model, self.fill))
        length = [NAME_LENGTHS[k % len(NAME_LENGTHS)] + 1 for k in range(n_classes)]
        names = [torch.randint(1000, VOCABULARY, (size,)).tolist() for size in length]
        context = [-1 - j for j in range(M)]
        self.prompts: list[PromptTokens] = [(*begin, *context, *name, *end) for name in names]
        self.context = (torch.randn(M, self.encoder.width) * 0.02).requires_grad_()
        self.weights = torch.randn(n_classes, self.encoder.feature_width)
        self.at = len(begin)
        # SigLIP fills all 64 positions; the others are padded to the longest, as their processors do in a batch.
        full = self.encoder.max_length if self.fill is not None or self.encoder.tower.causal else max(map(len, self.prompts))
        rows = [torch.tensor([token if token >= 0 else FILLER for token in prompt]) for prompt in self.prompts]
        self.ids = torch.stack([F.pad(row, (0, full - len(row)), value=self.fill or 0) for row in rows])
        self.mask = (
            torch.stack([torch.arange(full) < len(row) for row in rows]).long() if not self.encoder.tower.causal else None
        )
        self.layouts = self.encoder.lay_out(self.prompts, self.encoder.fixed_chunk(self.prompts))

    def coop(self) -> Tensor:
        """Forward and backward of coop's text encoder; the context's gradient."""
        features = self.encoder.encode_layouts(self.layouts, self.context)
        return self._backward(features)

    def stock(self) -> Tensor:
        """Forward and backward of get_text_features, the context put in behind the token embedding."""

        def put_in(_: object, __: object, output: Tensor) -> Tensor:
            context = self.context.expand(len(output), -1, -1)
            return torch.cat([output[:, : self.at], context, output[:, self.at + M :]], dim=1)

        names = ("word_embeddings", "token_embedding")
        table = next(module for name, module in self.model.text_model.named_modules() if name.endswith(names))
        handle = table.register_forward_hook(put_in)
        mask = {"attention_mask": self.mask} if self.mask is not None and self.fill is None else {}
        features = self.model.get_text_features(input_ids=self.ids, **mask).pooler_output
        handle.remove()
        return self._backward(F.normalize(features, dim=-1))

    def _backward(self, features: Tensor) -> Tensor:
        self.context.grad = None
        (features * self.weights).sum().backward()
        assert self.context.grad is not None
        return self.context.grad.clone()


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def highest() -> float:
    """The most memory that this process has held, in GB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024 / 1e9  # type: ignore[index]


def peak(family: str, n_classes: int, side: str) -> float:
    """GB that one step of a side takes beside the model, in a process of its own."""
    command = [sys.executable, __file__, family, "--classes", str(n_classes), "--side", side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=["coop", "stock"], help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    if wanted.side:
        sides = Sides(wanted.families[0], wanted.classes)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the model (Linux)
        before = highest()
        getattr(sides, wanted.side)()
        print(highest() - before)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {wanted.classes} classes\n")
    print(
        "| tower | rows, stock | rows, coop | seconds, stock | seconds, coop | ratio | GB, stock | GB, coop | gradient, rel. |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for family in wanted.families or FAMILIES:
        sides = Sides(family, wanted.classes)
        theirs, ours = sides.stock(), sides.coop()  # not timed: weights are laid out, memory is taken
        times = [(seconds(sides.stock), seconds(sides.coop)) for _ in range(wanted.rounds)]
        stock, coop = (statistics.median(column) for column in zip(*times, strict=True))
        rows = sum(layout.tree.n_nodes for layout in sides.layouts)
        off = float((ours - theirs).norm() / theirs.norm())
        stock_rows = sides.ids.numel()
        del sides
        memory = [peak(family, wanted.classes, side) for side in ("stock", "coop")]
        print(
            f"| {family} | {stock_rows:,} | {rows:,} | {stock:.1f} | {coop:.1f} | {stock / coop:.1f} | {memory[0]:.1f} | "
            f"{memory[1]:.1f} | {off:.0e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
