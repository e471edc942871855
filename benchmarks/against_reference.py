"""coop beside the authors' own code, on the same random weights, pictures and batches.

    git clone https://github.com/KaiyangZhou/CoOp && git -C CoOp checkout ff61507
    git clone https://github.com/KaiyangZhou/Dassl.pytorch && git -C Dassl.pytorch checkout c61a1b5
    pip install yacs tabulate ftfy regex tqdm scipy scikit-learn
    pip install --no-deps torchvision
    python benchmarks/against_reference.py --coop CoOp --dassl Dassl.pytorch [ROW ...]

In a virtual environment of its own: a torchvision whose build does not fit this PyTorch breaks transformers.
Both clones run as they are; what they miss in current PyTorch is put in its place at run time. Nothing is downloaded: the
CLIP is a small random one, written in OpenAI's format for the reference and as a CLIPModel for coop, and the pictures are
drawn. Each row stands for itself: one that fails says why, and the others go on.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from reference.shims import install

os.environ["HF_HUB_OFFLINE"] = "1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="such as lists, pixels, end, step; default: all")
    parser.add_argument("--coop", type=Path, required=True, help="clone of KaiyangZhou/CoOp")
    parser.add_argument("--dassl", type=Path, required=True, help="clone of KaiyangZhou/Dassl.pytorch")
    parser.add_argument("--data", type=Path, help="folder with splits/ (official split files) and photos, if at hand")
    parser.add_argument("--step", choices=["coop", "reference"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    coop, dassl = options.coop.resolve(), options.dassl.resolve()
    install(coop, dassl)
    from reference import step_row, table  # transformers, which imports torchvision, only now

    if options.step:
        step_row.measure(options.step, coop, options.data)
        return
    if unknown := [row for row in options.rows if row not in table.ROWS]:
        parser.error(f'unknown row "{unknown[0]}"; choose from {", ".join(table.ROWS)}')
    table.run(options.rows or list(table.ROWS), coop, dassl, options.data)


if __name__ == "__main__":
    main()
