"""Class features by one process, or by each of a torchrun job: `class_features_job.py FILE` writes them to FILE-RANK."""

import sys

import torch

from coopcli.clip import class_features
from coopcli.clip.backbone import load_backbone
from coopcli.clip.cache import FeatureCache
from coopcli.clip.class_features import context_features, hand_written_features
from coopcli.clip.prompts import ContextSettings, random_context
from coopcli.clip.text_encoder import TextEncoder
from coopcli.errors import CoopError
from coopcli.parallel import join, leave, world

NAMES = [f"{adjective} {noun}" for adjective in ("old", "red", "very small") for noun in ("ring", "star", "moon", "moon")][:11]


def features_in_parts():
    """Features [44, p]: of two templates together, of one context, of class-specific ones; and how many parts were encoded."""
    torch.set_num_threads(1)
    mini, encode, encoded, before = load_backbone("mini", device="cpu"), TextEncoder.encode, [], class_features.ROWS_AT_ONCE
    class_features.ROWS_AT_ONCE = 3 * class_features.ROWS_OF_A_PROMPT

    def counted(self, prompts, *given):
        encoded.append(len(prompts))
        return encode(self, prompts, *given)

    TextEncoder.encode = counted
    cache = FeatureCache(None)
    features = [hand_written_features(mini, ["a photo of a {}.", "{}"], NAMES, cache)]
    for csc in (False, True):
        settings = ContextSettings(4, "end", csc)
        features.append(
            context_features(mini, random_context(settings, len(NAMES), mini.token_width, 1), settings, NAMES, cache)
        )
    if world().rank:  # what one process has in its cache and another has not is computed by all
        cache = FeatureCache(None)
    features.append(hand_written_features(mini, ["a photo of a {}.", "{}"], NAMES, cache))
    TextEncoder.encode = encode
    try:  # one process alone meets the long name
        hand_written_features(mini, ["{}"], [*NAMES, "long " * 80], FeatureCache(None))
        raise AssertionError
    except CoopError as error:
        assert "is too long" in str(error)
    class_features.ROWS_AT_ONCE = before
    return torch.cat(features), encoded


if __name__ == "__main__":
    join("cpu")
    features, encoded = features_in_parts()
    torch.save((features, encoded), f"{sys.argv[1]}-{world().rank}")
    leave()
