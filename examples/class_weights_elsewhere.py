"""Use a learned prompt in code that knows nothing of coop: as the class weights of a zero-shot classifier.

    python examples/class_weights_elsewhere.py prompt.safetensors PICTURE [MODEL]

The weights are one matrix [classes, p]; with them MODEL, loaded by plain transformers, classifies as coop does. open_clip
takes them as they are, too: `100 * image_features @ weights.T`. MODEL is the one that the prompt was learned on. Where a
picture is not square, transformers may cut its centre one pixel beside where CLIP does, and coop: figures differ a little.
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
