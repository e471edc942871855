import io

import pytest
import torch
from conftest import write_picture
from PIL import Image

from coopcli import features
from coopcli.cache import FeatureCache
from coopcli.errors import CoopError
from coopcli.features import image_features, view_features
from coopcli.images import ImageItem, load_data


@pytest.fixture
def items(photos):
    return load_data(str(photos)).splits["all"]


def count_encoded(mini, monkeypatch):
    """Every row that goes through the image tower, from here on."""
    rows = []
    true = type(mini).encode_images
    monkeypatch.setattr(type(mini), "encode_images", lambda self, pixels: (rows.append(len(pixels)), true(self, pixels))[1])
    return rows


def test_features_are_the_stock_models(mini, items):
    mine = image_features(mini, items, FeatureCache(None))
    images = [Image.open(io.BytesIO(item.read())).convert("RGB") for item in items]
    pixels = mini.image_processor(images, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = mini.model.get_image_features(pixel_values=pixels).pooler_output
    assert mine.shape == (18, 128)
    assert (mine - torch.nn.functional.normalize(expected, dim=-1)).abs().max() < 1e-5


def test_second_time_nothing_is_encoded(mini, items, tmp_path, monkeypatch):
    first = image_features(mini, items, FeatureCache(tmp_path))
    views = view_features(mini, items, range(3), FeatureCache(tmp_path))
    rows = count_encoded(mini, monkeypatch)
    assert torch.equal(image_features(mini, items, FeatureCache(tmp_path)), first)
    assert torch.equal(view_features(mini, items, range(3), FeatureCache(tmp_path)), views)
    assert rows == []


def test_a_changed_image_is_encoded_anew(mini, items, photos, tmp_path, monkeypatch):
    first = image_features(mini, items, FeatureCache(tmp_path))
    write_picture(photos / "red" / "0.png", (10, 10, 10), seed=99)
    rows = count_encoded(mini, monkeypatch)
    second = image_features(mini, items, FeatureCache(tmp_path))
    assert len(rows) == 1
    changed = [i for i in range(18) if not torch.equal(first[i], second[i])]
    assert [items[i].name for i in changed] == ["red/0.png"]


def test_a_feature_does_not_depend_on_its_neighbours(mini, items):
    together = image_features(mini, items, FeatureCache(None))
    alone = torch.cat([image_features(mini, [item], FeatureCache(None)) for item in items])
    assert torch.equal(together, alone)


def test_worker_processes_and_threads_give_the_same(mini, items, monkeypatch):
    many = [ImageItem(f"{i}.png", 0, items[i % 18].read) for i in range(features.WORTH_PROCESSES)]
    by_processes = view_features(mini, many, range(2), FeatureCache(None))
    monkeypatch.setattr(features, "WORTH_PROCESSES", 10**6)
    assert torch.equal(view_features(mini, many, range(2), FeatureCache(None)), by_processes)


def test_an_unreadable_image_is_named_by_a_worker_process_too(mini, items):
    many = [ImageItem(f"{i}.png", 0, items[i % 18].read) for i in range(70)] + [ImageItem("cats/7.png", 0, lambda: b"no image")]
    with pytest.raises(CoopError, match=r'image "cats/7\.png" cannot be read'):
        image_features(mini, many, FeatureCache(None))


def test_what_was_encoded_before_an_interrupt_is_kept(mini, items, tmp_path, monkeypatch):
    many = [ImageItem(f"{i}.png", 0, items[i % 18].read) for i in range(18)]
    monkeypatch.setitem(features.BATCH, "cpu", 8)

    def stop(done, total):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        image_features(mini, many, FeatureCache(tmp_path), stop)
    rows = count_encoded(mini, monkeypatch)
    image_features(mini, many, FeatureCache(tmp_path))
    assert sum(rows) == 16  # ten images, in batches of whole eights


def test_views_differ_and_come_back_the_same(mini, items):
    views = view_features(mini, items[:4], range(5), FeatureCache(None))
    assert views.shape == (4, 5, 128)
    assert torch.allclose(views.norm(dim=-1), torch.ones(4, 5), atol=1e-5)
    assert not torch.equal(views[:, 0], views[:, 1])
    assert torch.equal(views[:, :2], view_features(mini, items[:4], range(2), FeatureCache(None)))


def test_progress_ends_at_the_number_of_images(mini, items):
    told = []
    image_features(mini, items, FeatureCache(None), lambda *step: told.append(step))
    assert told[-1] == (18, 18) and [done for done, _ in told] == sorted(done for done, _ in told)
