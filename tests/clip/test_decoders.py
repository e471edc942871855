import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from coopcli.clip import decoders as decoding
from coopcli.clip.cache import FeatureCache
from coopcli.clip.decoders import decoders
from coopcli.clip.image_features import WORTH_PROCESSES, readable_features
from coopcli.clip.pixels import is_talkative, open_image
from coopcli.data.dataset import ImageItem, file_item
from coopcli.errors import CoopError
from coopcli.experiments.draw import mosaic_rows
from coopcli.learning.methods.fine_tune import view_pixels
from coopcli.report.look import _mistake

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8))
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="decodes in processes on Linux alone")


def saved(kind, **options):
    held = io.BytesIO()
    PICTURE.save(held, kind, **options)
    return held.getvalue()


def item(content, name="0"):
    """An image without a file, as in a parquet table."""
    return ImageItem(name, 0, lambda: bytes(content))


@pytest.mark.parametrize("error", [PermissionError(13, "read-only /dev/shm"), OSError(38, "no semaphores"), ImportError()])
def test_threads_decode_where_processes_cannot_share_semaphores(mini, monkeypatch, error):
    def fail(*arguments, **settings):
        raise error

    monkeypatch.setattr(decoding, "ProcessPoolExecutor", fail)
    many = [item(saved("PNG"), str(number)) for number in range(WORTH_PROCESSES)]
    assert len(readable_features(mini, many, FeatureCache(None))[0]) == len(many)


@on_linux
@pytest.mark.parametrize(
    ("compression", "name"), [("tiff_lzw", "bad.tif"), ("tiff_adobe_deflate", "bad.jpg"), ("tiff_deflate", None)]
)
def test_lines_of_c_libraries_do_not_reach_the_terminal(mini, tmp_path, capfd, compression, name):
    content = bytearray(saved("TIFF", compression=compression))
    for place in range(100, len(content) - 300, 5):
        content[place] ^= 0xFF
    with pytest.raises(CoopError):
        open_image(bytes(content), "bad")
    assert capfd.readouterr().err  # what libtiff says where nobody hinders it
    bad = item(content, "bad")
    if name:
        (tmp_path / name).write_bytes(content)
        bad = file_item(tmp_path / name, "bad")
    assert len(readable_features(mini, [bad, item(saved("PNG"))], FeatureCache(None))[0]) == 1
    assert [line for line in capfd.readouterr().err.splitlines() if not line.startswith("note: skipped 1 of 2")] == []


@on_linux
@pytest.mark.parametrize("work", ["fine-tuning", "a report", "a mosaic"])
def test_nor_do_those_on_an_image_that_can_be_read(mini, capfd, work):
    content = bytearray(saved("TIFF", compression="jpeg"))
    for place in range(8, len(content)):  # until libjpeg meets a marker that it passes over, with a line
        before, content[place] = content[place], 0x4A
        try:
            open_image(bytes(content), "0")
        except CoopError:
            capfd.readouterr()
        if "JPEGLib" in capfd.readouterr().err:
            break
        content[place] = before
    else:
        pytest.skip("this libtiff is silent")
    if work == "fine-tuning":
        assert len(next(view_pixels(mini, [item(content)], [[0]], 0))) == 1
    elif work == "a mosaic":
        surest = SimpleNamespace(items=[item(content)], class_names=["a", "b"], predicted=[0], probability=[0.9])
        assert mosaic_rows(surest)
    else:
        with decoders(many=False) as submit:
            assert _mistake(item(content), torch.zeros(2), ["a", "b"], False, submit).picture
    assert capfd.readouterr().err == ""


def test_only_what_a_talking_library_decodes_needs_a_process():
    for compression, expected in (("raw", False), ("tiff_lzw", True), ("jpeg", True)):
        assert is_talkative(saved("TIFF", compression=compression)) == expected, compression
    assert is_talkative(b"II*\0damaged") and not is_talkative(b"")
    for kind, expected in (
        ("PNG", False),
        ("JPEG", False),
        ("JPEG2000", True),
        ("ICNS", True),
        ("WEBP", False),
        ("AVIF", True),
    ):
        if kind in Image.SAVE:
            assert is_talkative(saved(kind)) == expected, kind
