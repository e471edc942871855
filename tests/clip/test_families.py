"""Every family through loading and the commands, on tiny random models."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ran
from families import FAMILIES, folder_of_family
from PIL import Image
from safetensors.torch import load_file, save_file

from coopcli.clip.backbone import load_backbone
from coopcli.clip.pixels import centre
from coopcli.errors import CoopError
from coopcli.learned.prompt import load_prompt

LENGTH = ["--context-length", "4"]
QUICK = [*LENGTH, "--shots", "2", "--epochs", "2", "--batch-size", "4", "--views", "2", "--seed", "1"]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return folder_of_family(request.param, tmp_path_factory.mktemp(request.param))


def test_image_features_are_the_stock_models(folder):
    clip = load_backbone(folder, device="cpu")
    noise = np.random.default_rng(1)
    photos = [
        Image.fromarray(noise.integers(0, 256, (60, 80, 3), np.uint8)).resize(size) for size in ((90, 60), (50, 70), (40, 40))
    ]
    pixels = torch.stack([torch.from_numpy(np.ascontiguousarray(centre(clip.preprocessing, photo))) for photo in photos])
    with torch.no_grad():
        inputs = clip.image_processor(photos, return_tensors="pt").pixel_values
        expected = F.normalize(clip.model.get_image_features(pixel_values=inputs).pooler_output, dim=-1)
    features = clip.encode_images(pixels)
    assert (features - expected).abs().max() < 1e-5
    assert torch.equal(features[1:2], clip.encode_images(pixels[1:2]))


def test_the_scale_is_the_models_own(folder):
    clip = load_backbone(folder, device="cpu")
    assert clip.logit_scale == pytest.approx(20.0 if "align" in folder else np.exp(3), rel=1e-5)


def test_zeroshot_fit_eval_and_interpret(coop, folder, split_photos, tmp_path):
    shown = json.loads(ran(coop("zeroshot", split_photos, "--model", folder, "--json")))
    assert shown["n"] == 9 and set(shown["per_class"]) == {"red", "green", "blue"}
    ran(coop("fit", split_photos, "--model", folder, *QUICK, "-o", tmp_path / "run"))
    prompt = load_prompt(tmp_path / "run" / "prompt.safetensors")
    clip = load_backbone(folder, device="cpu")
    assert prompt.fingerprint == clip.fingerprint and prompt.context.shape == (4, clip.token_width)
    assert json.loads(ran(coop("eval", tmp_path / "run", split_photos, "--json")))["n"] == 9
    near = json.loads(ran(coop("interpret", tmp_path / "run", "--json", "--top", "3")))
    assert "distance" in json.dumps(near)


def test_the_fingerprint_follows_the_preprocessing(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    same = load_backbone(str(copy)).fingerprint
    settings = json.loads((copy / "preprocessor_config.json").read_text()) | {"rescale_factor": 0.01}
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    assert same == load_backbone(folder).fingerprint != load_backbone(str(copy)).fingerprint


@pytest.mark.parametrize("family", ["siglip", "align", "altclip"])
def test_missing_weights_are_refused(tmp_path, family):
    folder = folder_of_family(family, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    first = min(name for name in weights if name.startswith("text_model") and name.endswith("bias"))
    del weights[first]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CoopError, match="lacks 1 weight") as error:
        load_backbone(folder)
    assert first in str(error.value)


@pytest.mark.parametrize(
    ("kind", "reason"), [("siglip2", "NaFlex"), ("flava", "one for each token"), ("bert", "coop supports")]
)
def test_other_families_are_refused_with_the_reason(tmp_path, kind, reason):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(CoopError, match=f"is a {kind} model.*{reason}"):
        load_backbone(str(tmp_path))
