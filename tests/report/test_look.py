import base64
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coopcli.report.look import THUMBNAIL, thumbnail, worst_mistakes


@given(st.integers(2, 5), st.integers(0, 30), st.integers(0, 1000))
def test_worst_mistakes_are_the_wrong_ones_by_their_true_probability(n_classes, n, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 30 * torch.randn(n, n_classes, generator=generator)
    labels = torch.randint(n_classes, (n,), generator=generator)
    probabilities = logits.double().softmax(dim=1)
    wrong = [row for row in range(n) if max(range(n_classes), key=lambda k: logits[row, k]) != labels[row]]
    slow = sorted(wrong, key=lambda row: float(probabilities[row, labels[row]]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coopcli.report.look.BLOCK", 7)  # a few images at a time
        assert worst_mistakes(lambda images: images, logits, labels) == slow


def test_a_thumbnail_is_the_image_made_small():
    pixels = np.zeros((300, 600, 3), np.uint8)
    pixels[:, 300:] = (250, 10, 10)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    kind, _, data = thumbnail(content.getvalue(), "x.png").partition(";base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/jpeg" and picture.size == (THUMBNAIL, THUMBNAIL // 2)
    left, right = picture.getpixel((20, 40)), picture.getpixel((150, 40))
    assert max(left) < 30 and right[0] > 220 and max(right[1:]) < 40
