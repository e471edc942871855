import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from mini.scene_captions import attribute_ids

from coopcli.demo.drawing import ATTRIBUTES, COLOURS, NONE, random_scene, render


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.sampled_from(["background", "mark_colour", "shape", "texture"]), st.data())
def test_scenes_keep_their_rules(seed, attribute, data):
    fixed = {attribute: data.draw(st.sampled_from([value for value in ATTRIBUTES[attribute] if value != NONE]))}
    scene = random_scene(np.random.default_rng(seed), **fixed)
    assert all(getattr(scene, name) == value for name, value in fixed.items())
    assert all(getattr(scene, name) in values for name, values in ATTRIBUTES.items())
    assert len({scene.colour, scene.mark_colour, scene.background}) == 3
    assert (scene.texture == "plain") == (scene.mark_colour == NONE)
    assert [list(ATTRIBUTES.values())[i][j] for i, j in enumerate(attribute_ids(scene))] == list(vars(scene).values())


def test_pictures_show_the_scene():
    rng = np.random.default_rng(0)
    for _ in range(30):
        scene = random_scene(rng, style="clean", background_texture="plain", texture="plain")
        picture, inside = render(scene, rng, 64)
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        for name, where in (("background", inside < 0.01), ("colour", inside > 0.99)):
            shown = picture[where].mean(0) / 255
            nearest = min(COLOURS, key=lambda colour: np.abs(np.array(COLOURS[colour]) - shown).sum())
            assert nearest == getattr(scene, name)
