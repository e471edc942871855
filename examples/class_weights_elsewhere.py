"""Use a learned prompt without coop: as the class weights of a zero-shot classifier.

    python examples/class_weights_elsewhere.py prompt.safetensors PICTURE [MODEL]

The weights are one matrix [classes, p]. With them MODEL, loaded by plain transformers, classifies as coop does; so does the
same model in open_clip: `100 * image_features @ weights.T`. MODEL must be the one that the prompt was learned on. The centre
crop of transformers may differ from coop's by one pixel if a picture is not square (see docs/python.md).
"""

import sys

import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel

from coopcli import Prompt
from coopcli.clip.hf_clip import MINI_FOLDER


def main(prompt_file: str, picture: str, model: str = str(MINI_FOLDER)) -> None:
    prompt = Prompt.load(prompt_file)
    weights = prompt.class_features()

    clip = CLIPModel.from_pretrained(model, dtype=torch.float32).eval()
    inputs = CLIPImageProcessorPil.from_pretrained(model)(Image.open(picture).convert("RGB"), return_tensors="pt")
    with torch.inference_mode():
        features = clip.get_image_features(**inputs).pooler_output
        features = torch.nn.functional.normalize(features, dim=-1)
        probabilities = (clip.logit_scale.exp() * features @ weights.T).softmax(dim=-1)[0]

    for name, here, by_coop in zip(prompt.classes_, probabilities, prompt.predict_proba(picture)[0], strict=True):
        print(f"{name}: {here:.4f}, by coop {by_coop:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
