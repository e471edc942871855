"""Captions of photographs: a name or a kind of what is seen, in many phrasings, and at times what was done to the picture."""

from __future__ import annotations

import numpy as np

from coopcli.clip.templates import TEMPLATE_SETS
from mini.words import Things

EFFECTS = ("none", "dark", "bright", "grey", "blurry", "far", "close")
EFFECT_PHRASES: dict[str, tuple[str, ...]] = {
    "none": ("a clear photo of {}",),
    "dark": ("a dark photo of {}", "a dim photo of {}", "a dark picture of {}"),
    "bright": ("a bright photo of {}", "a bright picture of {}", "an overexposed photo of {}"),
    "grey": ("a black and white photo of {}", "a grey photo of {}", "a grayscale picture of {}"),
    "blurry": ("a blurry photo of {}", "a blurry picture of {}", "a blurred photo of {}"),
    "far": ("a photo of {} from far away", "a distant photo of {}", "a photo of {} far away"),
    "close": ("a close-up photo of {}", "a cropped photo of {}", "a close-up of {}"),
}
STATING = ("dark", "bright", "black and white", "blurry", "close-up", "cropped", "small", "large")
# Templates of the published sets that say nothing of how the picture is.
PLAIN = tuple(text.replace("a {}", "{}").replace("the {}", "{}").replace("my {}", "{}").rstrip(".")
              for text in TEMPLATE_SETS["imagenet"] if not any(word in text for word in STATING))  # fmt: skip
LEADS = ("a photo of {}", "a photo of {}", "a photo of {}", "a picture of {}", "an image of {}", "{}", "{}", "there is {}",
         "a view of {}", "a good photo of {}", "a centered photo of {}", "a snapshot of {}", "this is {}")  # fmt: skip


def noun(word: str, rng: np.random.Generator) -> str:
    """Put an article before a word, mostly."""
    chance = rng.random()
    if chance < 0.6:
        return f"a {word}"
    return word if chance < 0.75 else f"the {word}" if chance < 0.85 else f"an {word}" if word[0] in "aeiou" else f"my {word}"


def phrase(word: str, rng: np.random.Generator) -> str:
    """Say a word in a plain sentence."""
    templates = PLAIN if rng.random() < 0.4 else LEADS
    return templates[rng.integers(len(templates))].format(noun(word, rng)) + (".", ".", "")[rng.integers(3)]


def caption(things: Things, number: int, effect: int, rng: np.random.Generator) -> tuple[str, list[int], bool]:
    """Describe a photograph of class `number`: the text, the classes it is true of, and whether it tells the effect."""
    names, kinds = things.names[number], things.kinds[number]
    word = names[0] if rng.random() < 0.75 else names[rng.integers(len(names))]
    ending = ""
    chance = rng.random()
    if kinds and chance < 0.22:
        word = kinds[min(len(kinds) - 1, int(rng.exponential(1.3)))]
    elif kinds and chance < 0.34:
        kind = kinds[rng.integers(min(3, len(kinds)))]
        ending = (f", a type of {kind}", f", a kind of {kind}", f", a {kind}")[rng.integers(3)]
    told = rng.random() < (0.6 if effect else 0.04)
    if not told:
        text = phrase(word, rng)
        text = f"{text.rstrip('.')}{ending}{'.' if text.endswith('.') else ''}"
    else:
        phrases = EFFECT_PHRASES[EFFECTS[effect]]
        text = phrases[rng.integers(len(phrases))].format(noun(word, rng)) + ending + (".", "")[rng.integers(2)]
    return text, things.members[word], told
