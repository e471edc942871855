import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from coopcli.clip.backbone import load_backbone
from coopcli.clip.cache import FeatureCache
from coopcli.clip.class_features import hand_written_features
from coopcli.clip.image_features import image_features, view_features
from coopcli.data.load import load_data
from coopcli.errors import CoopError
from coopcli.learned.prompt import load_learned
from coopcli.learning.methods import fine_tune
from coopcli.learning.methods.fine_tune import FineTuning, learn, view_pixels
from coopcli.learning.methods.task import FewShotTask

QUICK = FineTuning(epochs=4, lr=1e-3, batch_size=9)


@pytest.fixture
def task(mini, photos):
    """Pictures of a colour under names of which `mini` thinks otherwise."""
    data, cache = load_data(str(photos)), FeatureCache(None)
    items = data.split("all")[::2]
    return FewShotTask(
        mini, data.class_names, data.folders, hand_written_features(mini, ["a photo of a {}."], ["moon", "star", "ring"]),
        image_features(mini, items, cache), view_features(mini, items, range(2), cache),
        torch.tensor([item.label for item in items]), torch.zeros(0, mini.feature_width),
        torch.zeros(0, dtype=torch.long), items, seed=1,
    )  # fmt: skip


def test_learning(task, photos, tmp_path, caplog):
    before = copy.deepcopy(task.backbone.model.state_dict())
    head = learn(task, QUICK)
    assert "runs the image encoder forward and backward over 9 images 4 times" in caplog.text and "GB" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in task.backbone.model.state_dict().items())
    for name, value in head.tuned.model.state_dict().items():
        image_tower = name.startswith(("vision_model", "visual_projection"))
        assert image_tower or torch.equal(value, before[name]), "something else than the image tower has learned"
    trained = sum(value.numel() for name, value in before.items() if name.startswith("vis") and "position_ids" not in name)
    assert head.training["parameters"] == trained and not any(p.requires_grad for p in head.tuned.model.parameters())

    images = load_data(str(photos)).split("all")[1::2]
    labels = torch.tensor([item.label for item in images])
    features = image_features(head.tuned, images, FeatureCache(None))
    hand_written = image_features(task.backbone, images, FeatureCache(None)) @ task.text.T
    assert (head.logits(features).argmax(-1) == labels).sum() > (hand_written.argmax(-1) == labels).sum() + 2

    head.save(tmp_path / "run" / "head.safetensors")
    loaded = load_learned(tmp_path / "run")
    again = load_backbone(loaded.model, loaded.revision, device="cpu")
    assert again.fingerprint == loaded.fingerprint == head.fingerprint != task.backbone.fingerprint
    assert torch.equal(loaded.logits(image_features(again, images, FeatureCache(None))), head.logits(features))


def test_same_bytes_again(task, tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        learn(task, QUICK).save(tmp_path / name / "head.safetensors")
    for file in ("head.safetensors", "model/model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_one_step_by_hand(task):
    """AdamW's first step is its rate along the gradient's sign, beside weight decay: of the loss on the first views."""
    settings = FineTuning(epochs=1, lr=1e-2, batch_size=9, weight_decay=0.5)
    tuned = learn(task, settings).tuned.model.visual_projection.weight
    model = copy.deepcopy(task.backbone.model)
    weight = model.visual_projection.weight.requires_grad_(True)
    order = list(range(9))
    pixels = next(view_pixels(task.backbone, task.train_items, [order], 0))
    logits = task.backbone.logit_scale * replace(task.backbone, model=model).image_tower(pixels) @ task.text.T
    F.cross_entropy(logits, task.labels).backward()
    rate = settings.lr / 10  # of the first epoch
    expected = weight * (1 - rate * settings.weight_decay) - rate * weight.grad.sign()
    clear = weight.grad.abs() > 1e-4 * weight.grad.abs().max()
    assert torch.allclose(tuned[clear], expected[clear], atol=2e-5) and clear.float().mean() > 0.9


def test_the_views_are_those_of_prompt_learning(task):
    batches = [[0, 3], [5, 1], [2, 4], [8, 6]]
    for view in (0, 1):
        found = list(view_pixels(task.backbone, task.train_items, batches, view))
        assert len(found) == 4 and found[0].shape == (2, 3, *[task.backbone.image_size] * 2) and found[0].dtype == torch.uint8
        for batch, pixels in zip(batches, found, strict=True):
            assert (task.backbone.encode_images(pixels) - task.views[batch, view]).abs().max() < 1e-4


def test_an_image_that_cannot_be_read(task, photos):
    (photos / "red" / "0.png").write_bytes(b"no image")
    with pytest.raises(CoopError, match=r"red/0\.png"):
        learn(task, QUICK)


def test_a_loss_that_is_no_number(task):
    with pytest.raises(CoopError, match="diverged: the loss is not finite in epoch"):
        learn(replace(task, text=task.text * float("nan")), QUICK)


def test_a_model_of_another_library(task, monkeypatch):
    monkeypatch.setattr(fine_tune, "OpenClipModel", type(task.backbone.model))
    with pytest.raises(CoopError, match="works on CLIPModels"):
        learn(task, QUICK)
