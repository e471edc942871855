"""The student that becomes `mini` (tools/mini/student.py) against the CLIPModel that it becomes."""

import pytest
import torch
import torch.nn.functional as F
from mini.student import Sizes, Student, for_patches, go_on_from, start_from, to_clip

SMALL = dict(image_width=24, image_layers=2, image_heads=2, text_width=24, text_layers=1, text_heads=2, joint=16)


@pytest.fixture
def student(mini):
    torch.manual_seed(0)
    return Student(Sizes(image_side=32, patch=8, **SMALL), len(mini.tokenizer))


@torch.no_grad()
def test_the_clip_that_it_becomes_sees_and_reads_the_same(student, mini):
    clip = to_clip(student, mini.tokenizer)
    pictures = torch.randn(3, 3, 32, 32)
    ids = mini.tokenizer(["a photo of a dog.", "a tree"], padding=True, return_tensors="pt")
    own, _ = student.image(student.image.patches(pictures))
    assert torch.allclose(own, clip.visual_projection(clip.vision_model(pictures).pooler_output), atol=1e-5)
    own = student.text(ids.input_ids, ids.attention_mask.sum(1) - 1)
    assert torch.allclose(own, clip.text_projection(clip.text_model(**ids).pooler_output), atol=1e-5)


@torch.no_grad()
def test_it_goes_on_from_a_clip_like_itself(student, mini):
    other = Student(student.sizes, len(mini.tokenizer))
    go_on_from(other, to_clip(student, mini.tokenizer))
    assert all(torch.allclose(value, other.state_dict()[name], atol=1e-5) for name, value in student.state_dict().items())


@torch.no_grad()
def test_it_goes_on_with_patches_of_another_size(student, mini):
    """As many smaller patches see a picture as the first ones see it resized."""
    other = Student(Sizes(image_side=24, patch=6, **SMALL), len(mini.tokenizer))
    go_on_from(other, to_clip(student, mini.tokenizer))
    smooth = F.interpolate(torch.randn(8, 3, 2, 2), size=(24, 24), mode="bilinear")
    first, _ = student.image(student.image.patches(F.interpolate(smooth, size=(32, 32), mode="bilinear")))
    second, _ = other.image(other.image.patches(smooth))
    alike = F.normalize(first - first.mean(0), dim=1) @ F.normalize(second - second.mean(0), dim=1).T
    assert (alike.diagonal() > 0.9).all() and (alike.argmax(1) == torch.arange(8)).all()


@torch.no_grad()
def test_it_starts_from_a_shallower_tower_and_sees_the_same(student, mini):
    """The layers that the first one lacks do nothing yet; the projection is the student's own."""
    deeper = Student(Sizes(image_side=32, patch=8, **SMALL | {"image_layers": 4}), len(mini.tokenizer))
    own_projection = deeper.image.project.weight.clone()
    start_from(deeper, to_clip(student, mini.tokenizer), added=(1, 2))
    assert torch.equal(deeper.image.project.weight, own_projection)
    patches = student.image.patches(torch.randn(2, 3, 32, 32))
    assert torch.allclose(student.image(patches)[1], deeper.image(patches)[1], atol=1e-5)


@torch.no_grad()
def test_weights_say_of_a_resized_patch_what_they_said_of_the_patch():
    weight, patches = torch.randn(5, 3, 6, 6), torch.randn(4, 3, 6, 6)
    resized = F.interpolate(patches, size=(9, 9), mode="bicubic", align_corners=False)
    assert torch.allclose(resized.flatten(1) @ for_patches(weight, 9).T, patches.flatten(1) @ weight.flatten(1).T, atol=1e-4)


@torch.no_grad()
def test_left_out_patches_keep_their_places(student):
    """With all patches, in any order, the feature is the same."""
    patches = student.image.patches(torch.randn(2, 3, 32, 32))
    keep = torch.stack([torch.randperm(16) for _ in range(2)])
    picked = patches.gather(1, keep[:, :, None].expand(-1, -1, patches.shape[2]))
    assert torch.allclose(student.image(patches)[0], student.image(picked, keep)[0], atol=1e-5)
