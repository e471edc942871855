"""Classify pictures with a file that `coop export` wrote: with NumPy, Pillow and onnxruntime, without PyTorch and coop.

    python examples/predict_without_torch.py classifier.onnx PICTURE...

Copy this script to where the classifier will run. It does CLIP's preprocessing: resize the shorter side (bicubic), crop the
centre. Everything else is part of the file.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def pixels(path: str, shorter: int, side: int, turn: bool = False) -> np.ndarray:
    """Resize the shorter side and crop the centre: uint8 [side, side, 3]; before, turn the picture by its EXIF if wanted."""
    image = Image.open(path)
    image = (ImageOps.exif_transpose(image) if turn else image).convert("RGB")
    width, height = image.size
    width, height = shorter * width // min(width, height), shorter * height // min(width, height)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return np.asarray(image.crop((left, top, left + side, top + side)))


def main(classifier: str, *pictures: str) -> None:
    session = onnxruntime.InferenceSession(classifier, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    names, preprocessing = json.loads(metadata["class_names"]), json.loads(metadata["preprocessing"])
    shorter, side = preprocessing["size"]["shortest_edge"], preprocessing["crop_size"]["height"]
    turn = json.loads(metadata.get("exif", "false"))
    batch = np.stack([pixels(picture, shorter, side, turn) for picture in pictures])
    (probabilities,) = session.run(["probabilities"], {"pixels": batch})
    for picture, row in zip(pictures, probabilities, strict=True):
        print(f"{picture}: {names[row.argmax()]} {row.max():.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
