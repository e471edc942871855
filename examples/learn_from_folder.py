"""Learn a prompt from a folder of class folders in Python, look at it, and classify pictures with it.

    python examples/learn_from_folder.py PHOTOS [MODEL]

Takes seconds with the embedded model `mini`; for real photos use MODEL openai/clip-vit-base-patch16.
"""

import sys
from pathlib import Path

from coopcli import (
    FeatureCache,
    fit,
    image_features,
    learned_features,
    load_backbone,
    load_data,
    nearest_tokens,
    paper_recipe,
)


def main(photos: str, model: str = "mini") -> None:
    backbone = load_backbone(model)
    dataset = load_data(photos)
    result = fit(backbone, dataset, paper_recipe(4, len(dataset.class_names)), shots=4)
    if result.test and result.hand_written:
        print(f"hand-written {result.hand_written.metrics.top1:.1%}, learned {result.test.metrics.top1:.1%}")

    result.prompt.save(Path("prompt.safetensors"))
    first = nearest_tokens(result.prompt.context, backbone.text_encoder.token_embedding, backbone.tokenizer, top=3)[0]
    print("nearest to the first vector:", ", ".join(token.token for token in first))

    # A classifier is one matrix: image features times class features.
    items = dataset.split("test", "all")[:3]
    images = image_features(backbone, items, FeatureCache(None))
    classes = learned_features(backbone, result.prompt, dataset.class_names)
    for item, best in zip(items, (images @ classes.T).argmax(-1).tolist(), strict=True):
        print(f"{item.name}: {dataset.class_names[best]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
