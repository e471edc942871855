"""Learn a prompt from a folder of class folders, measure its accuracy, and show its nearest tokens.

    python examples/learn_from_folder.py PHOTOS [MODEL]

Takes seconds with the embedded model `mini`. For real photos use MODEL openai/clip-vit-base-patch16.
"""

import sys

from coopcli import CLIP, fit, load_data, nearest_tokens


def main(photos: str, model: str = "mini") -> None:
    clip = CLIP(model)
    result = fit(clip, load_data(photos), shots=4)
    if result.test and result.hand_written:
        print(f"hand-written {result.hand_written.metrics.top1:.1%}, learned {result.test.metrics.top1:.1%}")

    first = nearest_tokens(result.prompt.context, clip.text_encoder.token_embedding, clip.tokenizer, top=3)[0]
    print("nearest to the first vector:", ", ".join(token.token for token in first))
    result.prompt.save("prompt.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
