import io
import json
import re
import shlex
from contextlib import redirect_stdout
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from conftest import ran
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from coopcli.clip.prompts import ContextSettings
from coopcli.data.load import load_data
from coopcli.errors import CoopError
from coopcli.learned.card import MARK, SHOWN_CLASSES, card_of, kept_card, model_card
from coopcli.learned.head import Head
from coopcli.learned.prompt import LearnedPrompt

TRAINING = {
    "data": "alice/eurosat", "shots": None, "seed": 1, "init": None, "images": 160,
    "few_shot_sha256": "f" * 64, "recipe": {"epochs": 50, "lr": 0.002, "batch_size": 32},
}  # fmt: skip
PROMPT = LearnedPrompt(
    context=torch.zeros(4, 8),
    settings=ContextSettings(4, "end", False),
    class_names=("forest", "river"),
    folders=("Forest", "River"),
    model="openai/clip-vit-base-patch16",
    revision="a" * 40,
    fingerprint="b" * 32,
    training=TRAINING,
)
HEAD = Head(
    method="linear-probe", weights=torch.zeros(2, 8), class_names=("forest", "river"), folders=("Forest", "River"),
    model="mini", revision=None, fingerprint="b" * 32, training={"data": "EuroSAT"},
)  # fmt: skip
METRICS = {"learned": {"n": 90, "top1": 0.75, "macro": 0.5}, "hand_written": {"n": 90, "top1": 0.25, "macro": 0.125}}


def front_matter(card, tmp_path):
    (tmp_path / "README.md").write_text(card)
    return metadata_load(tmp_path / "README.md")


def test_front_matter_is_what_the_hub_reads(tmp_path):
    card = model_card(PROMPT, "alice/flowers", METRICS)
    assert front_matter(card, tmp_path) == {
        "library_name": "coop",
        "base_model": "openai/clip-vit-base-patch16",
        "base_model_relation": "adapter",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["coop", "clip", "few-shot", "prompt-learning"],
        "datasets": "alice/eurosat",
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": "alice/flowers",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": "alice/eurosat", "type": "alice/eurosat"},
                        "metrics": [
                            {"type": "accuracy", "value": 0.75, "name": "top-1 accuracy"},
                            {"type": "accuracy", "value": 0.5, "name": "macro-averaged accuracy"},
                        ],
                    }
                ],
            }
        ],
    }
    results = ModelCard(card).data.eval_results
    assert [(result.metric_value, result.dataset_name) for result in results] == [
        (0.75, "alice/eurosat"),
        (0.5, "alice/eurosat"),
    ]


@pytest.mark.parametrize(
    ("data", "name", "kind"),
    [("/home/me/my photos", "my photos", "my-photos"), ("C:\\data\\pets\\", "pets", "pets"), ("EuroSAT", "EuroSAT", "EuroSAT"),
     ("alice/eurosat", "alice/eurosat", "alice/eurosat"), ("./", ".", "."), ("", "its own data", "its-own-data")],
)  # fmt: skip
def test_the_index_names_data_and_model_and_no_path(tmp_path, monkeypatch, data, name, kind):
    """What huggingface_hub itself checks without a network: the YAML, the results read back, the ids."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coop-runs" / "run").mkdir(parents=True)
    sources = {"alice/flowers": "alice/flowers", "alice/flowers@second": "alice/flowers", "coop-runs/run": "run",
               str(tmp_path / "coop-runs" / "run"): "run"}  # fmt: skip
    for source, model in sources.items():
        card = model_card(replace(PROMPT, training=TRAINING | {"data": data}), source, METRICS)
        (index,) = front_matter(card, tmp_path)["model-index"]
        assert index["name"] == model and index["results"][0]["dataset"] == {"name": name, "type": kind}
        read_model, results = model_index_to_eval_results([index])
        assert read_model == model and eval_results_to_model_index(model, results) == [index]
        data_of_card = ModelCard(card).data
        assert data_of_card.eval_results == results
        validate_repo_id(data_of_card.base_model)
        for dataset in [data_of_card.datasets] if data_of_card.datasets else []:
            validate_repo_id(dataset)


def test_what_is_not_known_is_not_said(tmp_path):
    told = {"library_name", "base_model", "base_model_relation", "pipeline_tag", "tags", "datasets"}
    assert set(front_matter(model_card(PROMPT, "run"), tmp_path)) == told
    assert set(front_matter(model_card(PROMPT, "run", {"learned": None, "hand_written": None}), tmp_path)) == told
    for model, revision in (("mini", None), ("/models/clip", None), ("models/clip", None), ("open_clip:ViT-B-32/laion", "c")):
        card = model_card(replace(PROMPT, model=model, revision=revision, training={"data": "EuroSAT"}), "run")
        assert set(front_matter(card, tmp_path)) == told - {"base_model", "base_model_relation", "datasets"}
        assert f"Its CLIP is `{model}`, which is not a model" in card or (model == "mini" and "`mini`, the small model" in card)
    assert "## Accuracy" not in card


def test_a_data_set_of_the_hub_is_known_by_its_owner(monkeypatch, split_photos):
    monkeypatch.setattr("coopcli.data.load.load_hub", lambda *_: load_data(str(split_photos)))
    assert load_data("alice/eurosat").name == "alice/eurosat" and load_data(str(split_photos)).name == "split"


def test_text_of_the_card():
    card = model_card(PROMPT, "alice/flowers", METRICS, {"template": "a photo of a {}."})
    assert f"---\n{MARK}\n\n# flowers\n" in card
    assert "4 context vectors, one context for all classes, the class name after them" in card
    assert "[openai/clip-vit-base-patch16](https://huggingface.co/openai/clip-vit-base-patch16), commit `aaaa" in card
    assert "Its classes (2): forest, river." in card
    shown = tables(card)
    assert shown[0] == [
        ["prompt", "top-1 %", "macro average %"], ['hand-written prompt "a photo of a {}."', "25.0", "12.5"],
        ["learned", "75.0", "50.0"],
    ]  # fmt: skip
    assert ["shots", "all"] in shown[1] and ["seed", "1"] in shown[1] and ["few shot sha256", "f" * 64] in shown[1]
    assert ["recipe", "epochs 50, lr 0.002, batch size 32"] in shown[1]
    many = tuple(f"class {k}" for k in range(SHOWN_CLASSES + 3))
    assert "class 19 and 3 more." in model_card(replace(PROMPT, class_names=many), "run")
    csc = model_card(replace(PROMPT, settings=ContextSettings(4, "front", True)), "run")
    assert "for each class its own, the class name before them" in csc


def test_the_card_of_a_head(tmp_path):
    card = model_card(HEAD, "alice/head", METRICS)
    told = front_matter(card, tmp_path)
    assert told["pipeline_tag"] == "image-classification" and "prompt-learning" not in told["tags"]
    assert "by linear-probe." in card and "coop interpret" not in card and 'Classifier.load("alice/head")' in card


# ------------------------------------------------------------------------------------------- whatever the names are


class Seen(HTMLParser):
    """The text that a reader sees, and every tag and link."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.links = "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data):
        self.text += data


def seen(card):
    body = card.split("\n---\n", 1)[1]
    return Seen(MarkdownIt("gfm-like", {"linkify": False, "html": True}).enable("table").render(body))


def tables(card):
    """Every table as rows of what their cells show."""
    html = MarkdownIt("gfm-like", {"linkify": False}).render(card.split("\n---\n", 1)[1])
    return [
        [
            [Seen(cell).text for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)]
            for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)
        ]
        for table in re.findall(r"<table>(.*?)</table>", html, re.S)
    ]


HOSTILE = st.text(st.sampled_from("\\`*_[]()<>#|~$&!:@.-+=1 \n\t\"'{}ab/hs\u202e\x1b\u2028"), max_size=40)


@settings(max_examples=50)
@given(HOSTILE, st.lists(HOSTILE, min_size=1, max_size=3), st.dictionaries(HOSTILE, HOSTILE, max_size=3))
def test_names_show_as_they_are_and_do_nothing(name, classes, training):
    plain = model_card(PROMPT, "run", METRICS, {"template": "t"})
    hostile = replace(
        PROMPT, class_names=tuple(classes), training={"data": name, "recipe": training} | {"x": name}, revision=name
    )
    card = model_card(hostile, "run", METRICS, {"template": name})
    told, before = seen(card), seen(plain)
    assert set(told.tags) == set(before.tags) and set(told.links) == set(before.links)
    for text in (name, *classes, *training, *training.values()):
        shown = " ".join(text.replace("_", " ").split())
        if shown.isprintable():
            assert shown in " ".join(told.text.replace("_", " ").split())
    assert not re.search("[\x1b\u202e\u2028]", card)
    data = ModelCard(card).data
    last = (
        name
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and "/" in str(data.datasets)
        else re.split(r"[\\/]", name.rstrip("\\/"))[-1]
    )
    last = " ".join(last.split()).replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert data.library_name == "coop" and data.eval_results[0].dataset_name == (last or "its own data")


# ----------------------------------------------------------------------------------------------- the snippet works


@pytest.fixture
def run(coop, photos):
    """A run folder of a real fit."""
    ran(coop("fit", photos, "--shots", "2", "--model", "mini", "--epochs", "2", "--views", "2", "-o", "my run"))
    return photos.parent / "my run"


def test_the_snippet_runs(coop, run, photos):
    (photos / "red" / "0.png").rename(photos.parent / "photo.jpg")
    card = model_card(load(run), "my run")
    shell, python = re.findall(r"```(?:sh|python)\n(.*?)```", card, re.S)
    commands = [shlex.split(line, comments=True) for line in shell.splitlines()]
    assert commands.pop(0) == ["pip", "install", "coopcli"]
    assert [command[:3] for command in commands] == [["coop", name, "my run"] for name in ("predict", "eval", "interpret")]
    for command in commands:
        assert ran(coop(*command[1:]))
    with redirect_stdout(io.StringIO()) as told:
        exec(compile(python, "card", "exec"), {})
    assert "red" in told.getvalue()


def load(run):
    from coopcli.learned.prompt import load_learned

    return load_learned(run)


# ------------------------------------------------------------------------------------------------ cards of a folder


def test_card_of_a_run_folder_or_a_file(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "settings.toml").write_text('template = "a {}"\n[resolved]\nlr = 1\n')
    assert card_of(tmp_path, PROMPT, "alice/x") == model_card(PROMPT, "alice/x", METRICS, {"template": "a {}"})
    assert card_of(tmp_path / "prompt.safetensors", PROMPT, "alice/x") == model_card(PROMPT, "alice/x")
    for broken in ("{", "[1]", '{"learned": {"n": 1}}', '{"learned": 1}'):
        (tmp_path / "metrics.json").write_text(broken)
        with pytest.raises(CoopError, match=r'metrics.json" is not what `coop fit` wrote'):
            card_of(tmp_path, PROMPT, "alice/x")


def test_a_card_that_the_user_took_over_is_kept(tmp_path):
    assert kept_card(tmp_path) is None
    readme = tmp_path / "README.md"
    written = model_card(PROMPT, "run")
    readme.write_text(written)
    assert kept_card(tmp_path) is None
    own = written.replace(MARK, "").replace("# run", "# My flowers")
    readme.write_text(own)
    assert kept_card(tmp_path) == card_of(tmp_path, PROMPT, "alice/x") == own
    licensed = card_of(tmp_path, PROMPT, "alice/x", "cc-by-4.0")
    assert ModelCard(licensed).data.license == "cc-by-4.0" and ModelCard(licensed).text == ModelCard(own).text
    readme.write_text("---\na: [\n---\n")
    with pytest.raises(CoopError, match=r"front matter of README.md is not YAML"):
        card_of(tmp_path, PROMPT, "alice/x", "mit")
    readme.write_bytes(b"\xff")
    with pytest.raises(CoopError, match=r'README.md" cannot be read'):
        card_of(tmp_path, PROMPT, "alice/x")


def test_a_licence_on_a_new_card(tmp_path):
    card = card_of(tmp_path / "prompt.safetensors", PROMPT, "alice/x", "mit")
    assert front_matter(card, tmp_path) == front_matter(model_card(PROMPT, "alice/x"), tmp_path) | {"license": "mit"}
