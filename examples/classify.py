"""Classify pictures with a learned prompt, with scikit-learn's methods: files, PIL images, arrays.

    python examples/classify.py prompt.safetensors PHOTOS

PHOTOS holds a folder for each class. The prompt's CLIP is loaded with it. The prompt may also be user/name on the hub.
"""

import sys
from pathlib import Path

from PIL import Image

from coopcli import Prompt, evaluate, load_data


def main(prompt_file: str, photos: str) -> None:
    prompt = Prompt.load(prompt_file)
    paths = sorted(Path(photos).glob("*/*"))
    print("classes:", ", ".join(prompt.classes_))
    print("the first three:", ", ".join(prompt.predict(paths[:3])))
    print("accuracy:", prompt.score(paths, [path.parent.name for path in paths]))

    picture = Image.open(paths[0]).rotate(90)
    best = prompt.predict_proba(picture)[0].argmax()
    print("the first, rotated by 90 degrees:", prompt.classes_[best])

    # Other classes: a prompt works with any class names, unless its context is class-specific.
    among = Prompt(prompt.learned, prompt.clip, ["a sunny day", "a rainy day"])
    print("the weather in it:", among.predict(paths[0])[0])

    # The metrics also hold the accuracy of each class and the confusion matrix.
    print("macro average:", evaluate(prompt, load_data(photos)).metrics.macro)


if __name__ == "__main__":
    main(*sys.argv[1:])
