import io
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from conftest import write_picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from coopcli.clip import image_features as features
from coopcli.clip.cache import FeatureCache
from coopcli.clip.image_features import image_features, readable_features, stream_features, view_features
from coopcli.clip.pixels import allow_pixels
from coopcli.data.dataset import ImageItem, file_item
from coopcli.data.load import load_data
from coopcli.errors import CoopError


@pytest.fixture
def items(photos):
    return load_data(str(photos)).splits["all"]


def count_encoded(mini, monkeypatch):
    """Every row that goes through the image tower, from here on."""
    rows = []
    true = type(mini).encode_images
    monkeypatch.setattr(type(mini), "encode_images", lambda self, pixels, *_: (rows.append(len(pixels)), true(self, pixels))[1])
    return rows


def test_features_are_the_stock_models(mini, items):
    mine = image_features(mini, items, FeatureCache(None))
    images = [Image.open(io.BytesIO(item.read())).convert("RGB") for item in items]
    pixels = mini.image_processor(images, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = mini.model.get_image_features(pixel_values=pixels).pooler_output
    assert mine.shape == (18, mini.feature_width)
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


@pytest.fixture(params=["this CPU", "a CPU that rounds by the batch's size"])
def some_cpu(request, mini, monkeypatch):
    """A backbone whose kernels are this CPU's, or those of one where batches of different sizes round differently."""
    if request.param != "this CPU":
        true = type(mini).image_tower
        monkeypatch.setattr(type(mini), "image_tower", lambda self, pixels: true(self, pixels) + 1e-7 * len(pixels))
    return mini


@pytest.mark.same_bytes
def test_a_feature_does_not_depend_on_its_neighbours(some_cpu, items):
    together = image_features(some_cpu, items, FeatureCache(None))
    alone = torch.cat([image_features(some_cpu, [item], FeatureCache(None)) for item in items])
    assert torch.equal(together, alone)


@pytest.mark.same_bytes
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
    assert sum(rows) == 10


@pytest.mark.same_bytes
def test_views_differ_and_come_back_the_same(some_cpu, items):
    views = view_features(some_cpu, items[:4], range(5), FeatureCache(None))
    assert views.shape == (4, 5, some_cpu.feature_width)
    assert torch.allclose(views.norm(dim=-1), torch.ones(4, 5), atol=1e-5)
    assert not torch.equal(views[:, 0], views[:, 1])
    assert torch.equal(views[:, :2], view_features(some_cpu, items[:4], range(2), FeatureCache(None)))


def test_progress_ends_at_the_number_of_images(mini, items):
    told = []
    image_features(mini, items, FeatureCache(None), lambda *step: told.append(step))
    assert told[-1] == (18, 18) and [done for done, _ in told] == sorted(done for done, _ in told)


# ------------------------------------------------------------------------------------------------ as a stream


BROKEN = ImageItem("cats/7.png", 0, lambda: b"no image")


def missing(name="gone.png"):
    return file_item(Path("/nowhere") / name, name)


@pytest.fixture
def quick(mini, monkeypatch):
    """A tower that takes no time: the features are the picture's mean colour, padded, and batches are short."""

    def means(self, pixels, names):
        return torch.nn.functional.pad(pixels.float().mean((2, 3)), (0, self.feature_width - 3))

    monkeypatch.setattr(type(mini), "encode_images", means)
    monkeypatch.setattr(features, "BATCH", {"cpu": 8})
    monkeypatch.setattr(features, "AT_ONCE", 4)
    monkeypatch.setattr(features, "READ_AHEAD", 6)
    monkeypatch.setattr(features, "FINISHED", 20)
    return mini


def flat(number):
    """A picture of a colour of its own."""
    held = io.BytesIO()
    Image.new("RGB", (9, 9), (number % 256, number // 256, 7)).save(held, "PNG")
    return ImageItem(f"{number}.png", 0, held.getvalue)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["known", "new", "new", "broken", "missing"]), max_size=60))
def test_a_stream_is_in_order_whatever_is_known_or_broken(quick, kinds):
    """And nothing of a broken image is kept."""
    cache = FeatureCache(None)
    images = [flat(number) for number in range(len(kinds))]
    image_features(quick, [image for image, kind in zip(images, kinds, strict=True) if kind == "known"], cache)
    other = {"broken": BROKEN, "missing": missing()}
    items = [other.get(kind, image) for image, kind in zip(images, kinds, strict=True)]
    told = []
    for item, outcome in stream_features(quick, items, cache):
        told.append(item)
        if item.read in (BROKEN.read, other["missing"].read):
            assert isinstance(outcome, CoopError) and item.name in str(outcome)
        else:
            number = int(item.name.removesuffix(".png"))
            assert outcome[:3].tolist() == [number % 256, number // 256, 7]
    assert told == items
    assert cache.size()[0] == sum(kind in ("known", "new") for kind in kinds)


def test_a_stream_takes_a_bounded_number_ahead(quick, monkeypatch):
    monkeypatch.setattr(features, "WORTH_PROCESSES", 10)
    taken, told = [], 0
    with closing(stream_features(quick, (taken.append(i) or flat(i) for i in itertools.count()), FeatureCache(None))) as stream:
        for told, _ in zip(range(1, 1000), stream, strict=False):
            assert len(taken) - told <= features.BATCH["cpu"] + features.READ_AHEAD + features.AT_ONCE
    assert told == 999


def test_one_unknown_image_does_not_hold_up_thousands_of_known(quick):
    """Features that wait for one before them are bounded too: it is encoded in a short batch."""
    cache = FeatureCache(None)
    known = [flat(number) for number in range(300)]
    image_features(quick, known, cache)
    taken = []
    with closing(stream_features(quick, (taken.append(i) or i for i in [flat(300), *known]), cache)) as stream:
        assert next(stream)[0].name == "300.png"
    assert len(taken) <= features.WORTH_PROCESSES + features.FINISHED + features.AT_ONCE


def test_a_stream_that_is_left_ends_its_processes(mini):
    with closing(stream_features(mini, (flat(n % 500) for n in itertools.count()), FeatureCache(None))) as stream:
        next(stream)
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()


def test_skipped_images_are_counted_and_the_others_stay_as_they_are(mini, items, caplog):
    whole = image_features(mini, items, FeatureCache(None))
    mixed = [*items[:3], BROKEN, *items[3:10], missing(), *items[10:]]
    cache = FeatureCache(None)
    kept, found = readable_features(mini, mixed, cache)
    assert kept == items and torch.equal(found, whole) and cache.size()[0] == 18
    assert 'skipped 2 of 20 images that cannot be read; the first: image "cats/7.png" cannot be read' in caplog.text
    with pytest.raises(CoopError, match=r'image "cats/7\.png" cannot be read'):
        readable_features(mini, mixed, cache, "fail")


def test_no_image_left_is_an_error(mini):
    with pytest.raises(
        CoopError, match=r'none of 2 images can be read; the first: image "/nowhere/gone.png" .* does not exist'
    ):
        readable_features(mini, [missing(), BROKEN], FeatureCache(None))


def test_no_images_at_all(mini):
    kept, found = readable_features(mini, [], FeatureCache(None))
    assert kept == () and found.shape == (0, mini.feature_width)


def test_worker_processes_know_the_bound_on_pixels(mini, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    many = [flat(number) for number in range(features.WORTH_PROCESSES)]
    allow_pixels(80)
    with pytest.raises(CoopError, match=r"none of 64 images .*81 pixels\) exceeds limit of 80 pixels"):
        readable_features(mini, many, FeatureCache(None))
    allow_pixels(82)
    assert len(readable_features(mini, many, FeatureCache(None))[0]) == 64


def ended_from_outside(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_process_that_is_ended(mini, monkeypatch):
    monkeypatch.setattr(features, "prepare", ended_from_outside)
    many = [flat(number) for number in range(features.WORTH_PROCESSES)]
    with pytest.raises(CoopError, match="worker process that decodes images was killed"):
        image_features(mini, many, FeatureCache(None))


def busy(*arguments):
    time.sleep(60)


def children(pid):
    """The processes that were started by this one and still run."""
    running = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # ended meanwhile
            continue
        if int(parent) == pid and state != "Z":
            running.append(int(status.parent.name))
    return running


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads decode")
@pytest.mark.parametrize(
    ("thread", "death"),
    [("main", signal.SIGKILL), ("another", signal.SIGKILL)],  # other signals: tests/cli/test_signals.py
)
def test_workers_end_with_their_parent_however_it_ends(mini, monkeypatch, thread, death):
    monkeypatch.setattr(features, "prepare", busy)
    many = [flat(number) for number in range(features.WORTH_PROCESSES)]
    work = threading.Thread(target=image_features, args=(mini, many, FeatureCache(None)))
    process = multiprocessing.get_context("fork").Process(
        target=work.run if thread == "main" else lambda: (work.start(), work.join())
    )
    process.start()
    try:
        while len(workers := children(process.pid)) < len(os.sched_getaffinity(0)):
            assert process.is_alive()
            time.sleep(0.1)
        time.sleep(0.5)  # for the workers to begin
        assert all(map(is_running, workers))
        os.kill(process.pid, death)
        process.join(10)
        assert process.exitcode == -death
        time.sleep(1)
        assert not any(map(is_running, workers))
    finally:
        process.kill()


def test_images_that_a_gpu_does_not_hold_are_one_line(mini, items, monkeypatch):
    def full(self, pixels, names):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(type(mini), "encode_images", full)
    with pytest.raises(CoopError, match=r"GPU's memory cannot hold \d+ images at a time; use --dtype bfloat16"):
        image_features(mini, items, FeatureCache(None))


# ------------------------------------------------------------------------------------------------ large and noisy files


def test_large_files_are_read_a_few_at_a_time(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "BYTES_AT_ONCE", 2500)
    sizes, wanted = [1000, 1000, 1000, 200, 5000, 100, 100], [[1000, 1000, 1000], [200, 5000], [100, 100]]
    for k, size in enumerate(sizes):
        (tmp_path / f"{k}.png").write_bytes(bytes(size))
    items = [file_item(tmp_path / f"{k}.png", f"{k}") for k in range(len(sizes))]
    gone = [file_item(tmp_path / "gone.png", "gone"), ImageItem("row", 0, bytes)]
    parts = [[item.path.stat().st_size for item in part] for part in features._parts(iter(items))]
    assert parts == wanted and features._parts(gone).__next__() == gone
    monkeypatch.setattr(features, "BYTES_AT_ONCE", 1)
    kept, _ = readable_features(mini, [*items[:2], *gone, file_item(write(tmp_path / "good.png"), "good")], FeatureCache(None))
    assert [item.name for item in kept] == ["good"]


def write(path):
    write_picture(path)
    return path


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, 2), (8, 2), (None, 0)])
def test_images_that_exif_turns_are_counted_once(mini, tmp_path, monkeypatch, caplog, orientation, turned):
    monkeypatch.setattr(features, "_warned", set())
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    for k in range(3):
        write_picture(tmp_path / f"{k}.jpg", seed=k)
        if k:
            Image.open(tmp_path / f"{k}.jpg").save(tmp_path / f"{k}.jpg", exif=exif)
    items = [file_item(tmp_path / f"{k}.jpg", f"{k}") for k in range(3)]
    for _ in range(2):
        image_features(mini, items, FeatureCache(None))
    expected = [f"{turned} of 3 images are to be turned by their EXIF orientation"] if turned else []
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == expected
