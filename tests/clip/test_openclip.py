"""open_clip's models: the text tower in its stock form, what is loaded and what is refused.

What open_clip would do is done here by a small model in its layout, so that most of this needs no open_clip; the last part
runs against the real one where it can be imported.
"""

import json
import logging
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import failed, ran
from families import roberta_tokenizer
from PIL import Image
from safetensors.torch import save_file

from coopcli.clip.backbone import load_backbone
from coopcli.clip.class_features import hand_written_features
from coopcli.clip.openclip import OpenClipModel, openai_tokenizer, stock_text_tower
from coopcli.clip.pixels import centre
from coopcli.clip.prompts import ContextSettings, context_prompts, random_context
from coopcli.clip.text_encoder import TextEncoder
from coopcli.errors import CoopError, UsageError

NAMES = ["star", "kite (bird of prey)", "annual_crop", "a small red star on blue"]
WIDTH, HEADS, LAYERS, FEATURES = 32, 4, 2, 24


class Layout(torch.nn.Module):
    """A model with open_clip's names for its weights and a slow forward of its own; its image tower is a small ResNet."""

    def __init__(self, vocabulary, quick_gelu=False, causal=True):
        super().__init__()
        torch.manual_seed(5)
        self.quick_gelu, self.causal = quick_gelu, causal
        self.token_embedding = torch.nn.Embedding(vocabulary, WIDTH)
        self.positional_embedding = torch.nn.Parameter(torch.randn(77, WIDTH))
        self.text_projection = torch.nn.Parameter(torch.randn(WIDTH, FEATURES))
        self.ln_final = torch.nn.LayerNorm(WIDTH)
        self.transformer = torch.nn.Module()
        self.transformer.resblocks = torch.nn.ModuleList(torch.nn.Module() for _ in range(LAYERS))
        for block in self.transformer.resblocks:
            block.ln_1, block.ln_2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
            block.attn = torch.nn.MultiheadAttention(WIDTH, HEADS)
            block.mlp = torch.nn.Module()
            block.mlp.c_fc, block.mlp.c_proj = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(3 * WIDTH, WIDTH)
        convolved = torch.nn.Conv2d(3, 8, 5, 4), torch.nn.BatchNorm2d(8), torch.nn.ReLU()  # 40 x 40 become 9 x 9
        self.visual = torch.nn.Sequential(*convolved, torch.nn.Flatten(), torch.nn.Linear(8 * 81, FEATURES))
        self.logit_scale = torch.nn.Parameter(torch.tensor(3.0))
        for weight in self.parameters():
            if weight.ndim == 1:
                torch.nn.init.normal_(weight, 1, 0.3)  # biases and norms that matter
        self.eval().requires_grad_(False)

    def text_features(self, rows):
        """Normalised features [p] of one prompt, token vectors [n, d] from SOS to EOS: every row and head by itself.

        Without a causal mask every row sees all 77, of which those after EOS are token 0.
        """
        end = len(rows) - 1
        if not self.causal:
            rows = torch.cat([rows, self.token_embedding.weight[:1].expand(77 - len(rows), -1)])
        x = rows + self.positional_embedding[: len(rows)]
        for block in self.transformer.resblocks:
            y = F.layer_norm(x, (WIDTH,), block.ln_1.weight, block.ln_1.bias)
            qkv = y @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
            size = WIDTH // HEADS
            mixed = []
            for i in range(len(x)):
                heads = []
                for start in range(0, WIDTH, size):
                    seen = i + 1 if self.causal else len(x)
                    q, k, v = (qkv[:seen, part + start : part + start + size] for part in (0, WIDTH, 2 * WIDTH))
                    heads.append((k @ q[i] / math.sqrt(size)).softmax(0) @ v)
                mixed.append(torch.cat(heads))
            x = x + torch.stack(mixed) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
            y = F.layer_norm(x, (WIDTH,), block.ln_2.weight, block.ln_2.bias)
            y = y @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias
            y = y / (1 + (-1.702 * y).exp()) if self.quick_gelu else y * (1 + (y / math.sqrt(2)).erf()) / 2
            x = x + y @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias
        last = F.layer_norm(x[end], (WIDTH,), self.ln_final.weight, self.ln_final.bias) @ self.text_projection
        return last / last.norm()


def vectors(table, prompts, context):
    """The token vectors of each prompt, by their numbers: -1 - j is row j of the context."""
    rows = context.reshape(-1, context.shape[-1])
    return [torch.stack([table[i] if i >= 0 else rows[-1 - i] for i in prompt]) for prompt in prompts]


def relative(a, b):
    return float((a - b).norm() / b.norm())


def compare(encoder, expected, prompts, context):
    """Features to 1e-5 and the context's gradient to 1e-4 relative, against `expected` of each prompt's vectors."""
    mine, theirs = context.clone().requires_grad_(), context.clone().requires_grad_()
    features, wanted = encoder.encode(prompts, mine), expected(theirs)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    (features * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert (features - wanted).abs().max() < 1e-5
    assert relative(mine.grad, theirs.grad) < 1e-4


VARIANTS = pytest.mark.parametrize(("position", "csc"), [("end", False), ("middle", True), ("front", False), ("end", True)])


@VARIANTS
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_stock_tower_computes_what_the_layout_does(tokenizer, activation, position, csc):
    model = Layout(len(tokenizer), activation == "quick_gelu")
    encoder = TextEncoder(stock_text_tower(model.state_dict(), HEADS, activation))
    assert (encoder.width, encoder.feature_width, encoder.max_length) == (WIDTH, FEATURES, 77)
    settings = ContextSettings(5, position, csc)
    prompts = context_prompts(tokenizer, settings, NAMES)

    def expected(context):
        rows = vectors(model.token_embedding.weight, prompts, context)
        return torch.stack([model.text_features(of_prompt) for of_prompt in rows])

    compare(encoder, expected, prompts, random_context(settings, len(NAMES), WIDTH, seed=3))


@VARIANTS
def test_without_a_causal_mask_every_place_is_seen(tokenizer, position, csc):
    """MobileCLIP's text tower: the prompt is filled with zeros to 77, attention is unmasked, EOS is pooled."""
    model = Layout(len(tokenizer), causal=False)
    towers = OpenClipModel(model.visual, stock_text_tower(model.state_dict(), HEADS, "gelu"), model.logit_scale, fill=0)
    settings = ContextSettings(5, position, csc)
    prompts = context_prompts(tokenizer, settings, NAMES[:2])

    def expected(context):
        rows = vectors(model.token_embedding.weight, prompts, context)
        return torch.stack([model.text_features(of_prompt) for of_prompt in rows])

    context = random_context(settings, 2, WIDTH, seed=3)
    compare(TextEncoder(towers), expected, prompts, context)
    with torch.no_grad():
        causal = TextEncoder(OpenClipModel(model.visual, towers, model.logit_scale)).encode(prompts, context)
        assert (causal - expected(context)).abs().max() > 0.01


TAG = {
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.4),
    "interpolation": "bilinear",
    "resize_mode": "squash",
    "quick_gelu": True,
}


@pytest.fixture
def imitation(monkeypatch, tokenizer, tmp_path):
    """An `open_clip` with one plain architecture, one of another kind, and one tag, which lies in a file beside."""
    plain = {"context_length": 77, "vocab_size": len(tokenizer), "width": WIDTH, "heads": HEADS, "layers": LAYERS}
    configs = {
        "tiny": {"text_cfg": plain}, "tiny-quickgelu": {"text_cfg": plain, "quick_gelu": True},
        "other": {"text_cfg": plain | {"no_causal_mask": True, "pool_type": "last"}},
        "plain": {"text_cfg": plain | {"no_causal_mask": False}}, "mobile": {"text_cfg": plain | {"no_causal_mask": True}},
        "ViT-SigLIP": {"text_cfg": plain | {"pool_type": "last"}},
        "worldwide": {"text_cfg": plain | {"pool_type": "eos", "eos_id": 2, "hf_tokenizer_name": "facebook/xlm-v-base"}},
        "worldwide-mt5": {"text_cfg": plain | {"pool_type": "eos", "eos_id": 1, "hf_tokenizer_name": "google/mt5-base"}},
    }  # fmt: skip
    save_file(Layout(len(tokenizer)).state_dict(), tmp_path / "fetched.safetensors")
    calls = []

    def create_model(arch, pretrained, quick_gelu, force_preprocess_cfg, weights_only):
        calls.append(SimpleNamespace(pretrained=pretrained, quick_gelu=quick_gelu, weights_only=weights_only))
        if b"nonsense" in Path(pretrained).read_bytes():
            raise RuntimeError("Error(s) in loading state_dict:\n\tMissing keys")
        model = Layout(len(roberta_tokenizer() if arch == "worldwide" else tokenizer), quick_gelu, arch != "mobile")
        given = {key: value for key, value in force_preprocess_cfg.items() if value is not None}
        model.visual.preprocess_cfg = {
            "size": (40, 40), "mean": (0.1, 0.2, 0.3), "std": (1, 1, 1), "interpolation": "bicubic", "resize_mode": "shortest",
        } | given  # fmt: skip
        return model

    module = SimpleNamespace(
        list_models=lambda: list(configs),
        get_model_config=configs.__getitem__,
        get_pretrained_cfg=lambda arch, tag: TAG if tag == "known" else {},
        list_pretrained_tags_by_model=lambda arch: ["known"],
        download_pretrained=lambda tag: str(tmp_path / "fetched.safetensors"),
        create_model=create_model,
        calls=calls,
    )
    monkeypatch.setitem(sys.modules, "open_clip", module)
    monkeypatch.setattr("coopcli.clip.openclip.openai_tokenizer", lambda: tokenizer)
    return module


def test_a_tag_brings_its_activation_and_preprocessing(imitation, tokenizer):
    clip = load_backbone("open_clip:tiny/known", device="cpu")
    assert imitation.calls[0].quick_gelu and imitation.calls[0].weights_only
    assert clip.name == "open_clip:tiny/known" and clip.revision is None
    assert (clip.image_size, clip.feature_width) == (40, FEATURES)
    assert clip.logit_scale == pytest.approx(math.exp(3))
    process = clip.image_processor
    assert list(process.image_mean) == [0.5, 0.4, 0.3] and list(process.image_std) == [0.2, 0.3, 0.4]
    oblong = Image.effect_noise((90, 60), 90).convert("RGB")
    squashed = torch.tensor(centre(clip.preprocessing, oblong))
    assert torch.equal(squashed, pixels_of(oblong.resize((40, 40), Image.Resampling.BILINEAR)))

    model = Layout(len(tokenizer), quick_gelu=True)
    mean, std = (torch.tensor(TAG[name]).view(3, 1, 1) for name in ("mean", "std"))
    expected = F.normalize(model.visual((squashed[None] / 255 - mean) / std), dim=-1)
    assert (clip.encode_images(squashed[None]) - expected).abs().max() < 1e-5
    prompts = [clip.tokenizer(f"a photo of a {name}.").input_ids for name in ("star", "heart")]
    texts = torch.stack([model.text_features(model.token_embedding.weight[tokens]) for tokens in prompts])
    assert (hand_written_features(clip, ["a photo of a {}."], ["star", "heart"]) - texts).abs().max() < 1e-5


def pixels_of(picture):
    return (
        torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        .view(picture.height, picture.width, 3)
        .permute(2, 0, 1)
    )


@pytest.fixture
def weights(tmp_path, tokenizer):
    path = tmp_path / "folder" / "mine.safetensors"
    path.parent.mkdir()
    save_file(Layout(len(tokenizer)).state_dict(), path)
    return path


def test_a_file_has_the_activation_of_the_architecture(imitation, weights, caplog):
    plain = load_backbone(f"open_clip:tiny/{weights}")
    assert "tiny-quickgelu" in caplog.text and "mine.safetensors" in caplog.text
    caplog.clear()
    quick = load_backbone(f"open_clip:tiny-quickgelu/{weights}")
    assert not caplog.text
    assert [call.quick_gelu for call in imitation.calls] == [False, True]
    assert plain.fingerprint != quick.fingerprint
    oblong = Image.effect_noise((90, 60), 90).convert("RGB")
    resized = oblong.resize((60, 40), Image.Resampling.BICUBIC).crop((10, 0, 50, 40))
    assert torch.equal(torch.tensor(centre(plain.preprocessing, oblong)), pixels_of(resized))


def test_equal_weights_have_one_fingerprint_in_every_dtype(imitation, weights):
    name = f"open_clip:plain/{weights}"
    fine, rough = load_backbone(name), load_backbone(name, dtype="bfloat16")
    assert fine.fingerprint == rough.fingerprint
    pixels = torch.randint(256, (3, 3, 40, 40), dtype=torch.uint8)
    assert (fine.encode_images(pixels) - rough.encode_images(pixels)).abs().max() < 0.05
    texts = [hand_written_features(clip, ["{}"], NAMES) for clip in (fine, rough)]
    assert (texts[0] - texts[1]).abs().max() < 0.05
    dtypes = {name: weight.dtype for name, weight in rough.model.visual.state_dict().items()}
    assert dtypes["0.weight"] == torch.bfloat16 and dtypes["1.running_var"] == torch.float32


def test_a_pickle_is_not_opened_unless_allowed(imitation, weights):
    pickle = weights.with_suffix(".pt")
    torch.save({}, pickle)
    with pytest.raises(CoopError, match="--allow-pickle-weights"):
        load_backbone(f"open_clip:plain/{pickle}")
    assert not imitation.calls
    load_backbone(f"open_clip:plain/{pickle}", allow_pickle=True)
    assert not imitation.calls[0].weights_only


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("open_clip:RN50", UsageError, "open_clip:ARCH/WEIGHTS"),
        ("open_clip:/openai", UsageError, "open_clip:ARCH/WEIGHTS"),
        ("open_clip:tini/known", UsageError, "did you mean tiny"),
        ("open_clip:ZZ/known", UsageError, 'no architecture "ZZ"'),
        ("open_clip:tiny/unknown", UsageError, r"neither a file nor a tag .* \(known\)"),
        ("open_clip:other/known", CoopError, r"\(pool_type\); coop needs CLIP's"),
        ("open_clip:ViT-SigLIP/known", CoopError, "--model google/siglip2-base-patch16-224"),
        ("open_clip:worldwide-mt5/known", CoopError, "--model facebook/metaclip-2-worldwide-b32"),
    ],
)
def test_what_open_clip_does_not_know_is_said(imitation, name, kind, words):
    with pytest.raises(kind, match=words) as error:
        load_backbone(name)
    assert name in str(error.value) and "\n" not in str(error.value)
    assert not imitation.calls


def test_a_tower_without_a_causal_mask_is_run_so(imitation, tokenizer):
    clip, causal = (load_backbone(f"open_clip:{arch}/known", device="cpu") for arch in ("mobile", "tiny"))
    assert clip.model.fill == 0 and clip.fingerprint != causal.fingerprint
    model = Layout(len(tokenizer), quick_gelu=True, causal=False)
    rows = model.token_embedding.weight[clip.tokenizer("a photo of a star.").input_ids]
    features = hand_written_features(clip, ["a photo of a {}."], ["star", "heart"])
    assert (features[0] - model.text_features(rows)).abs().max() < 1e-5


def test_worldwide_models_take_the_tokenizer_that_they_name(imitation, monkeypatch):
    """MetaCLIP 2: its tower is CLIP's; only the tokenizer and the ids at both ends differ."""
    other = roberta_tokenizer()
    monkeypatch.setattr(
        "transformers.AutoTokenizer.from_pretrained", lambda hub_id, **_: {"facebook/xlm-v-base": other}[hub_id]
    )
    clip = load_backbone("open_clip:worldwide/known", device="cpu")
    (tokens,) = context_prompts(clip.tokenizer, ContextSettings(2), ["star"])
    assert tokens == (0, -1, -2, *other(" star.").input_ids[1:-1], 2)
    model = Layout(len(other), quick_gelu=True)
    rows = model.token_embedding.weight[other("a photo of a star.").input_ids]
    features = hand_written_features(clip, ["a photo of a {}."], ["star", "heart"])
    assert (features[0] - model.text_features(rows)).abs().max() < 1e-5

    def nothing(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", nothing)
    with pytest.raises(CoopError, match='needs the tokenizer "facebook/xlm-v-base", which is not on this machine'):
        load_backbone("open_clip:worldwide/known", device="cpu")


def test_weights_that_cannot_be_fetched_name_the_way_out(imitation):
    def nothing(tag):
        raise FileNotFoundError("Failed to download")

    imitation.download_pretrained = nothing
    with pytest.raises(CoopError, match=r"could not be fetched; use --model open_clip:tiny/FILE"):
        load_backbone("open_clip:tiny/known")


def test_a_file_of_something_else_is_one_line(imitation, weights):
    weights.write_bytes(b"nonsense")
    with pytest.raises(CoopError, match=r"mine.safetensors.* does not hold weights .*: Error.* Missing keys$"):
        load_backbone(f"open_clip:tiny/{weights}")


def test_a_revision_means_nothing_there():
    with pytest.raises(UsageError, match="--revision v1"):
        load_backbone("open_clip:RN50/openai", revision="v1")


def test_without_the_extra_the_command_names_it(monkeypatch, coop, photos):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    failed(coop("zeroshot", photos, "--model", "open_clip:RN50/openai"), 1, "RN50/openai", "coopcli[open_clip]")


def test_an_extra_that_is_broken_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "open_clip.py").write_text("raise RuntimeError('operator torchvision::nms does not exist\\nand more')")
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CoopError, match=r"torchvision::nms does not exist$"):
        load_backbone("open_clip:RN50/openai")


def test_no_token_table_without_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CoopError, match=r"coopcli\[open_clip\]"):
        openai_tokenizer()


@pytest.mark.parametrize("name", ["RN50", "openai/rn50", "timm/resnet50_clip.openai", "resnet"])
def test_an_id_of_a_resnet_names_the_form(name):
    with pytest.raises(CoopError, match="cannot be a ResNet; use --model open_clip:RN50/openai"):
        load_backbone(name)


@pytest.fixture
def towers(tokenizer):
    layout = Layout(len(tokenizer))
    return OpenClipModel(layout.visual, stock_text_tower(layout.state_dict(), HEADS, "gelu"), layout.logit_scale)


def test_an_exported_image_tower_takes_any_number(towers):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.towers = towers

        def forward(self, pixels):
            return self.towers.get_image_features(pixel_values=pixels).pooler_output

    some = torch.export.export(Network(), (torch.randn(2, 3, 40, 40),), dynamic_shapes={"pixels": {0: torch.export.Dim("n")}})
    pixels = torch.randn(20, 3, 40, 40)
    assert (some.module()(pixels) - towers.visual(pixels)).abs().max() < 1e-5


# Against open_clip itself.


@pytest.fixture(scope="module")
def real():
    return pytest.importorskip("open_clip", reason="needs the optional package open_clip_torch, importable beside torchvision")


@pytest.fixture(scope="module")
def checkpoints(real, tmp_path_factory):
    """Small architectures of open_clip's with random weights: {name: (its model, the file of its weights)}."""
    folder = tmp_path_factory.mktemp("open_clip")
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3}
    resnet = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}
    transformer = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
    configs = {
        "tiny-RN": {"embed_dim": 24, "vision_cfg": resnet, "text_cfg": text},
        "tiny-RN-quickgelu": {"embed_dim": 24, "vision_cfg": resnet, "text_cfg": text, "quick_gelu": True},
        "tiny-ViT": {"embed_dim": 48, "vision_cfg": transformer, "text_cfg": text},
        "tiny-ViT-quickgelu": {"embed_dim": 48, "vision_cfg": transformer, "text_cfg": text, "quick_gelu": True},
        "tiny-mobile": {"embed_dim": 48, "vision_cfg": transformer, "text_cfg": text | {"no_causal_mask": True}},
        "tiny-custom": {"embed_dim": 48, "vision_cfg": transformer, "text_cfg": text, "custom_text": True},
    }
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    real.add_model_config(folder)
    made = {}
    for name in configs:
        torch.manual_seed(7)
        model = real.create_model(name)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                module.momentum = None
            if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.LayerNorm)):
                torch.nn.init.normal_(module.bias, 0, 0.3)
        side = 64 if "RN" in name else 32
        with torch.no_grad():  # batch norms that know what comes
            model.train()(torch.randn(16, 3, side, side), real.tokenize(["a star"]))
        path = folder / f"{name}.safetensors"
        save_file({key: weight.contiguous() for key, weight in model.state_dict().items()}, path)
        made[name] = model.eval().requires_grad_(False), path
    return made


EVERY = pytest.mark.parametrize("arch", ["tiny-RN", "tiny-RN-quickgelu", "tiny-ViT", "tiny-ViT-quickgelu", "tiny-custom",
                                           "tiny-mobile"])  # fmt: skip


@pytest.fixture
def pair(checkpoints, arch):
    model, path = checkpoints[arch]
    return model, load_backbone(f"open_clip:{arch}/{path}", device="cpu")


@EVERY
@VARIANTS
def test_features_and_gradients_are_open_clips(pair, position, csc):
    model, clip = pair
    text = getattr(model, "text", model)
    settings = ContextSettings(5, position, csc)
    prompts = context_prompts(clip.tokenizer, settings, NAMES)

    def expected(context):
        table, length = text.token_embedding.weight, text.positional_embedding.shape[0]
        rows = vectors(table, prompts, context)
        x = torch.stack([torch.cat([of_prompt, table[:1].expand(length - len(of_prompt), -1)]) for of_prompt in rows])
        x = text.ln_final(text.transformer(x + text.positional_embedding, attn_mask=text.attn_mask))
        ends = torch.tensor([len(of_prompt) - 1 for of_prompt in rows])
        return F.normalize(x[torch.arange(len(x)), ends] @ text.text_projection, dim=-1)

    compare(clip.text_encoder, expected, prompts, random_context(settings, len(NAMES), 64, seed=3))


@EVERY
def test_both_towers_are_open_clips(real, pair):
    model, clip = pair
    expected = model.encode_text(real.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES]), normalize=True)
    assert (hand_written_features(clip, ["a photo of a {}."], NAMES) - expected).abs().max() < 1e-5
    _, _, transform = real.create_model_and_transforms("tiny-RN" if clip.image_size == 64 else "tiny-ViT")
    pictures = [Image.effect_noise((90 + 7 * i, 70), 20 + 40 * i).convert("RGB") for i in range(3)]
    pixels = torch.stack([torch.tensor(centre(clip.preprocessing, picture)) for picture in pictures])
    expected = model.encode_image(torch.stack([transform(picture) for picture in pictures]), normalize=True)
    assert (clip.encode_images(pixels) - expected).abs().max() < 1e-5
    assert (expected @ expected.T).min() < 0.99  # they are not all alike


@pytest.mark.parametrize("arch", ["tiny-RN", "tiny-ViT"])
def test_bfloat16_is_near(checkpoints, arch, pair):
    rough = load_backbone(pair[1].name, device="cpu", dtype="bfloat16")
    pixels = torch.randint(256, (4, 3, rough.image_size, rough.image_size), dtype=torch.uint8)
    assert (rough.encode_images(pixels) * pair[1].encode_images(pixels)).sum(-1).min() > 0.99
    assert rough.fingerprint == pair[1].fingerprint


def test_training_checkpoints_and_openais_archives_when_allowed(checkpoints, tmp_path):
    """OpenAI published TorchScript archives: the layout's names, numbers in half precision, three sizes beside."""
    model, _ = checkpoints["tiny-RN-quickgelu"]
    halves = {key: weight.half() if weight.is_floating_point() else weight for key, weight in model.state_dict().items()}
    save_file({key: weight.contiguous() for key, weight in halves.items()}, tmp_path / "halves.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": weight for key, weight in halves.items()}}, tmp_path / "trained.pt")
    archive = torch.nn.Module()
    for key, weight in {**halves, "input_resolution": torch.tensor(64), "context_length": torch.tensor(77)}.items():
        node, (*path, last) = archive, key.split(".")
        for name in path:
            if not hasattr(node, name):
                node.add_module(name, torch.nn.Module())
            node = getattr(node, name)
        node.register_buffer(last, weight)
    torch.jit.save(torch.jit.script(archive), tmp_path / "archive.pt")

    expected = load_backbone(f"open_clip:tiny-RN-quickgelu/{tmp_path / 'halves.safetensors'}").fingerprint
    for name in ("trained.pt", "archive.pt"):
        with pytest.raises(CoopError, match="--allow-pickle-weights"):
            load_backbone(f"open_clip:tiny-RN-quickgelu/{tmp_path / name}")
        loaded = load_backbone(f"open_clip:tiny-RN-quickgelu/{tmp_path / name}", allow_pickle=True)
        assert loaded.fingerprint == expected


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 99])
def test_damaged_weights_are_one_line(checkpoints, tmp_path, content):
    for name in ("w.safetensors", "w.pt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CoopError, match="does not hold weights") as error:
            load_backbone(f"open_clip:tiny-RN/{tmp_path / name}", allow_pickle=True)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("arch", ["ViT-B-16-SigLIP", "coca_ViT-B-32", "roberta-ViT-B-32", "ViT-H-14-CLIPA"])
def test_other_text_towers_are_refused_before_anything_is_fetched(real, arch):
    tag = real.list_pretrained_tags_by_model(arch)[0]
    with pytest.raises(CoopError, match="text tower of another kind"):
        load_backbone(f"open_clip:{arch}/{tag}")


def test_the_papers_resnets_are_quick_gelu_by_their_tags(real):
    """open_clip 3 has RN50 with GELU and only warns; coop goes by the tag."""
    assert not real.get_model_config("RN50").get("quick_gelu")
    assert real.get_pretrained_cfg("RN50", "openai")["quick_gelu"] and real.get_pretrained_cfg("RN101", "openai")["quick_gelu"]


def test_without_a_network_a_tag_names_the_way_out(real, coop, photos):
    failed(coop("zeroshot", photos, "--model", "open_clip:RN50/openai"), 1, "could not be fetched", "open_clip:RN50/FILE")


def test_nothing_is_written_to_the_root_logger(checkpoints, capsys):
    before = list(logging.root.handlers)
    load_backbone(f"open_clip:tiny-RN/{checkpoints['tiny-RN'][1]}")
    assert logging.root.handlers == before
    assert "pretrained" not in capsys.readouterr().err


def test_the_tokenizer_is_open_clips(real, shared_data):
    tokenizer, lists = openai_tokenizer(), json.loads((shared_data / "prompts" / "imagenet_classnames.json").read_text())
    texts = [f"a photo of a {name}." for name in lists] + [
        "It's  the 42nd: naïve façade, 3½ 中文 -- ''s (a).",
        "Boeing 737-200.",
    ]
    assert len(tokenizer) == 49408
    for text in texts:
        theirs = real.tokenize([text])[0]
        assert tokenizer(text).input_ids == theirs[: int(theirs.argmax()) + 1].tolist(), text


def test_fit_eval_and_zeroshot(checkpoints, coop, photos):
    name = f"open_clip:tiny-RN/{checkpoints['tiny-RN'][1]}"
    told = json.loads(ran(coop("fit", photos, "--model", name, "--shots", "2", "--epochs", "2", "--views", "2", "--json")))
    assert told["model"] == name
    scored = json.loads(ran(coop("eval", "coop-runs/photos-tiny-RN-tiny-RN-end-2shots-seed1", photos, "--json")))
    assert scored["n"] == 18
    assert json.loads(ran(coop("zeroshot", photos, "--model", name, "--json")))["n"] == 18
    other = f"open_clip:tiny-RN-quickgelu/{checkpoints['tiny-RN'][1]}"
    failed(coop("eval", "coop-runs/photos-tiny-RN-tiny-RN-end-2shots-seed1", photos, "--model", other), 1, "is another model")
