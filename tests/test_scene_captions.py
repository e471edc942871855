import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from mini.scene_captions import caption

from coopcli.demo.drawing import COLOURS, random_scene


@settings(max_examples=200)
@given(st.integers(0, 10**6))
def test_captions_say_what_they_claim(seed):
    rng = np.random.default_rng(seed)
    scene = random_scene(rng)
    text, said = caption(scene, rng)
    words = text.replace(",", " ").replace(".", " ").split()
    assert said
    for name in said - {"style", "texture"}:  # these two are also told by other words: "a noisy picture", "stripes"
        assert getattr(scene, name) in words
    colours = {getattr(scene, name) for name in said & {"colour", "mark_colour", "background"}}
    assert {word for word in words if word in COLOURS} == colours
