import numpy as np
import pytest
from PIL import Image

from coopcli.demo.drawing import ATTRIBUTES, random_scene, render
from coopcli.demo.tasks import TASKS, draw, write_task


def test_drawing_is_repeatable_and_shifted_pictures_are_others():
    task = TASKS["background"]
    assert np.array_equal(draw(task, "red", (1, 2)), draw(task, "red", (1, 2)))
    assert not np.array_equal(draw(task, "red", (1, 2)), draw(task, "red", (1, 3)))
    assert not np.array_equal(draw(task, "red", (1, 2)), draw(task, "red", (1, 2), shifted=True))


@pytest.mark.parametrize("name", TASKS)
def test_written_folders(tmp_path, name):
    write_task(tmp_path, name, per_class=2, seed=(0,))
    assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted(TASKS[name].classes)
    assert len(list(tmp_path.rglob("*.png"))) == 2 * len(TASKS[name].classes)
    assert Image.open(next(tmp_path.rglob("*.png"))).size == (64, 64)


# What the embedded model must be, on drawings made for this test alone: these bounds are far below what was measured
# (see README) and far above chance.
WORDS = {
    "shape": "a photo of a {}.",
    "colour": "a photo of a {} object.",
    "texture": "a {} texture.",
    "size": "a photo of a {} object.",
    "background": "a {} background.",
}


@pytest.fixture(scope="module")
def held_out():
    rng = np.random.default_rng((77, 1))
    scenes = [random_scene(rng, style="clean") for _ in range(300)]
    return scenes, [Image.fromarray(render(scene, rng)[0]) for scene in scenes]


def zero_shot_accuracy(mini, held_out, attribute, template):
    from coopcli.clip.class_features import hand_written_features

    scenes, pictures = held_out
    images = mini.encode_images(
        mini.image_processor(pictures, return_tensors="pt", do_rescale=False, do_normalize=False).pixel_values
    )
    text = hand_written_features(mini, [template], ATTRIBUTES[attribute])
    predicted = (images @ text.T).argmax(-1).tolist()
    return np.mean([ATTRIBUTES[attribute][p] == getattr(s, attribute) for p, s in zip(predicted, scenes, strict=True)])


@pytest.mark.parametrize("attribute", WORDS)
def test_mini_knows_every_attribute(mini, held_out, attribute):
    chance = 1 / len(ATTRIBUTES[attribute])
    assert zero_shot_accuracy(mini, held_out, attribute, WORDS[attribute]) > chance + 0.5 * (1 - chance)


def test_mini_heeds_the_wording(mini, held_out):
    vague, clear = (zero_shot_accuracy(mini, held_out, "background", text) for text in ("a photo of a {}.", "a {} background."))
    assert clear > vague + 0.5
