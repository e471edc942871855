import json
import os
import random
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from conftest import tiny_clip
from safetensors.torch import save_file

from coopcli import __main__
from coopcli.clip.backbone import Backbone
from coopcli.clip.hf_clip import MINI_FOLDER
from coopcli.clip.prompts import ContextSettings
from coopcli.errors import CoopError, UsageError
from coopcli.learned.applied import learned_features
from coopcli.learned.prompt import load_prompt
from coopcli.learned.reference import import_prompt, read_checkpoint, read_initial_context
from coopcli.learned.safefile import MAX_FILE

NAMES = ("red_star", "annual crop", "kite (bird of prey)", "sea")
M = 5
WIDTH = json.loads((MINI_FOLDER / "config.json").read_text())["text_config"]["hidden_size"]


def context_of(csc=False, n_ctx=M, width=WIDTH):
    shape = (len(NAMES), n_ctx, width) if csc else (n_ctx, width)
    return 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(3))


def learner(mini, csc=False, names=NAMES, dtype=torch.float16, n_ctx=M):
    return oracle.PromptLearner(mini.model, mini.tokenizer, names, context_of(csc, n_ctx), dtype)


def save(path, content, form="zip"):
    """As torch.save of today wrote it, of 2020 to 2024 (without the entries added since), or before 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    if form == "old zip":
        entries = {}
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(("data.pkl", "version")) or "/data/" in name:
                    entries[name] = archive.read(name)
        with zipfile.ZipFile(path, "w") as archive:
            for name, entry in entries.items():
                archive.writestr(name, entry)
    return path


@pytest.fixture
def saved(tmp_path, mini):
    """A checkpoint on disk, its prompt learner's tensors changed or removed."""

    def write(csc=False, form="zip", val_result=None, **changes):
        content = oracle.checkpoint(learner(mini, csc), val_result=val_result)
        content["state_dict"].update(changes)
        for name in [name for name, value in changes.items() if value is None]:
            del content["state_dict"][name]
        return save(tmp_path / "model.pth.tar-3", content, form)

    return write


@pytest.mark.parametrize("form", ["zip", "old zip", "legacy"])
@pytest.mark.parametrize("csc", [False, True])
def test_a_checkpoint_becomes_a_prompt(mini, saved, tmp_path, csc, form):
    path = saved(csc, form)
    kept = torch.load(path, weights_only=False)["state_dict"]["ctx"]
    assert kept.dtype == torch.float16
    import_prompt(read_checkpoint(path), mini, NAMES, list("abcd")).save(tmp_path / "p.safetensors")
    prompt = load_prompt(tmp_path / "p.safetensors")
    assert prompt.context.dtype == torch.float32 and torch.equal(prompt.context, kept.float())
    assert prompt.settings == ContextSettings(M, "end", csc)
    assert (prompt.class_names, prompt.folders) == (NAMES, ("a", "b", "c", "d"))
    assert (prompt.model, prompt.fingerprint) == ("mini", mini.fingerprint)
    assert prompt.training["imported"] == "model.pth.tar-3" and prompt.training["epoch"] == 3
    assert len(prompt.training["sha256"]) == 64


@pytest.mark.parametrize("csc", [False, True])
def test_the_prompt_gives_the_references_text_features(mini, saved, csc):
    """From the tensors in the checkpoint alone, run through the stock tower over all 77 positions."""
    path = saved(csc)
    state = {name: value.float() for name, value in torch.load(path, weights_only=False)["state_dict"].items()}
    context = state["ctx"] if csc else state["ctx"].expand(len(NAMES), -1, -1)
    rows = torch.cat([state["token_prefix"], context, state["token_suffix"]], dim=1)
    x = rows + mini.model.text_model.embeddings.position_embedding.weight
    mask = torch.full((77, 77), -torch.inf).triu(1)[None, None]
    hidden = mini.model.text_model.encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state
    end = mini.model.text_model.embeddings.token_embedding.weight[mini.tokenizer.eos_token_id]
    at = (rows - end).norm(dim=-1).argmin(dim=1)
    expected = mini.model.text_projection(mini.model.text_model.final_layer_norm(hidden[range(len(NAMES)), at]))
    found = learned_features(mini, import_prompt(read_checkpoint(path), mini, NAMES, NAMES), NAMES)
    assert (found - torch.nn.functional.normalize(expected, dim=-1)).abs().max() < 1e-3  # the embeddings are float16 there


@pytest.mark.parametrize("result", [None, 71.25, np.float64(71.25), np.float32(71.25)])
def test_a_validation_score_of_any_kind(saved, result):
    assert read_checkpoint(saved(val_result=result)).epoch == 3


def test_a_score_of_the_numpy_of_2022(saved, tmp_path):
    path = saved(form="legacy", val_result=np.float64(71.25))
    then = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert then != path.read_bytes()
    path.write_bytes(then)
    assert read_checkpoint(path).epoch == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_state_dict_alone_or_without_the_optimizer(mini, tmp_path, dtype):
    state = learner(mini, dtype=dtype).state_dict()
    alone = read_checkpoint(save(tmp_path / "a.pt", state))
    without = read_checkpoint(save(tmp_path / "b.pth", {"state_dict": state, "epoch": 7, "val_result": None}))
    assert torch.equal(alone.context, state["ctx"].float()) and torch.equal(without.context, alone.context)
    assert (alone.epoch, without.epoch) == (None, 7)
    import_prompt(alone, mini, NAMES, NAMES)


def test_the_position_is_the_users_word(mini, saved, caplog):
    prompt = import_prompt(read_checkpoint(saved()), mini, NAMES, NAMES, "middle")
    assert prompt.settings.position == "middle"
    assert '1 class names end in punctuation (first: "kite (bird of prey)")' in caplog.text
    caplog.clear()
    import_prompt(read_checkpoint(saved()), mini, NAMES, NAMES, "end")
    assert not caplog.text


# ---------------------------------------------------------------------------------------------- what is not believed


class Runs:
    """Unpickled, it would call."""

    def __init__(self, call, *arguments):
        self.made = call, arguments

    def __reduce__(self):
        return self.made


def hostile(folder):
    parameter = torch.nn.Parameter(torch.zeros(2))
    return {
        "os.system": Runs(os.system, f"touch {folder}/ran"),
        "eval": Runs(eval, f"open('{folder}/ran', 'w')"),
        "exec": Runs(exec, f"open('{folder}/ran', 'w')"),
        "getattr": Runs(getattr, Path(folder / "ran"), "touch"),
        "torch.load": Runs(torch.load, str(folder / "ran")),
        "torch.optim.adam.Adam": torch.optim.Adam([parameter]),
        "torch.optim.lr_scheduler.StepLR": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([parameter], 0.1), 1),
        "test_reference.Runs": Counter({"a": Runs}),
    }


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", list(hostile(Path())))
def test_what_a_checkpoint_never_names_is_refused_before_it_runs(mini, tmp_path, name, form):
    content = oracle.checkpoint(learner(mini))
    content["scheduler"]["successor"].extra = hostile(tmp_path)[name]
    with pytest.raises(CoopError, match="as a pickle can run code, it was not read") as error:
        read_checkpoint(save(tmp_path / "evil", content, form))
    assert name.split(".")[-1] in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_what_is_allowed_is_not_made(saved, monkeypatch):
    """Neither scheduler nor optimizer: none of their code runs."""
    path = saved(val_result=np.float64(1))
    for kind in (torch.optim.SGD, torch.optim.lr_scheduler.CosineAnnealingLR):
        for method in ("__init__", "__setstate__"):
            monkeypatch.setattr(kind, method, lambda *a, **k: pytest.fail("it ran"), raising=False)
    assert read_checkpoint(path).epoch == 3


def test_damage_is_told_or_harmless(mini, saved):
    """Bytes changed, cut off or put in at random: it is read or refused, and nothing else happens."""
    outcomes = Counter()
    for form in ("zip", "legacy"):
        path, choose = saved(form=form), random.Random(1)
        whole = path.read_bytes()
        for _ in range(150):
            # Most of a file is numbers; its structure lies at either end.
            at = choose.choice([choose.randrange(3000), choose.randrange(len(whole)), len(whole) - 1 - choose.randrange(600)])
            path.write_bytes(whole[:at] + choose.choice([b"", choose.randbytes(1), choose.randbytes(9)]) + whole[at + 1 :])
            try:
                import_prompt(read_checkpoint(path), mini, NAMES, NAMES)
                outcomes["read"] += 1
            except CoopError as error:
                assert "\n" not in str(error)
                outcomes["refused"] += 1
    assert outcomes["read"] > 10 and outcomes["refused"] > 100


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02.", b"no checkpoint", b"\x80\x02" + b"}" * 1000])
def test_another_file(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CoopError, match=r"was not written by torch\.save"):
        read_checkpoint(tmp_path / "x")


def test_a_file_that_unpacks_to_more_than_it_is(saved):
    path = saved()
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry + bytes(10**7) * name.endswith("data/0"))
    assert path.stat().st_size < 10**6
    with pytest.raises(CoopError, match=r"was not written by torch\.save"):
        read_checkpoint(path)


def test_a_checkpoint_that_is_not_there(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for name, words in {"none": "no file", "folder": "is a folder", "pipe": "no file", "x" * 5000: "x"}.items():
        with pytest.raises(UsageError, match=words):
            read_checkpoint(tmp_path / name)


def test_a_file_beyond_all_size(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(MAX_FILE + 1)
    with pytest.raises(CoopError, match="has at most"):
        read_checkpoint(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], 'holds no "ctx"'),
        ({"state_dict": [1]}, 'holds no "ctx"'),
        ({"weights": torch.zeros(2, 2)}, 'holds no "ctx"'),
        ({"ctx": "text"}, 'a str as "ctx"'),
        ({"ctx": torch.zeros(4)}, r'of shape \[4\] as "ctx"'),
        ({"ctx": torch.zeros(0, WIDTH)}, rf"\[0, {WIDTH}\]"),
        ({"ctx": torch.zeros(4, WIDTH, dtype=torch.int64)}, "a torch.int64"),
        ({"ctx": torch.zeros(4, WIDTH).to_sparse()}, "expected vectors"),
        ({"ctx": torch.zeros(4, WIDTH, device="meta")}, "expected vectors"),
        ({"ctx": torch.zeros(1, 1).expand(10**6, 10**6)}, "expected vectors"),
        ({"ctx": torch.full((4, WIDTH), torch.nan)}, "NaN or infinite"),
        ({"ctx": torch.zeros(4, WIDTH), "meta_net.linear1.weight": torch.zeros(1)}, r"another method.*meta_net\.linear1"),
    ],
)
def test_what_no_prompt_learner_holds(tmp_path, content, words):
    with pytest.raises(CoopError, match=words):
        read_checkpoint(save(tmp_path / "x", content))


# -------------------------------------------------------------------------------------------------------- back-checks


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token_prefix": None}, 'lacks "token_prefix" or "token_suffix"'),
        ({"token_suffix": None}, 'lacks "token_prefix" or "token_suffix"'),
        ({"token_prefix": torch.zeros(3, 1, WIDTH)}, "contradicts itself"),
        ({"token_suffix": torch.zeros(4, 71, 127)}, "contradicts itself"),
        ({"ctx": torch.zeros(3, 5, WIDTH)}, "contradicts itself"),
        ({"ctx": torch.zeros(5, 127)}, "contradicts itself"),
        ({"ctx": torch.zeros(6, WIDTH)}, "prompts of 78 tokens"),
    ],
)
def test_shapes_that_do_not_fit_together(mini, saved, changes, words):
    with pytest.raises(CoopError, match=words):
        import_prompt(read_checkpoint(saved(**changes)), mini, NAMES, NAMES)


@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (NAMES[:3], "was trained on 4 classes; the class-name file names 3"),
        ((*NAMES, "more"), "was trained on 4 classes; the class-name file names 5"),
        ((NAMES[1], NAMES[0], *NAMES[2:]), r'class 1 of the class-name file is "annual crop"; in ".*" it is "red star"'),
        ((*NAMES[:3], "seas"), r'class 4 .* is "seas"; .* it is "sea"'),
        ((*NAMES[:2], "kite", NAMES[3]), r'class 3 .* is "kite"; .* it is "kite \( bird of prey \)"'),
        ((*NAMES[:3], ""), "class 4"),
    ],
)
def test_other_class_names(mini, saved, csc, names, words):
    with pytest.raises(CoopError, match=words):
        import_prompt(read_checkpoint(saved(csc)), mini, names, names)


def test_another_backbone(mini, saved, tokenizer):
    def backbone(width, seed=0):
        model = tiny_clip(tokenizer, width=width, layers=1, seed=seed)
        return Backbone("other", None, model, tokenizer, mini.image_processor, "f" * 32, torch.device("cpu"), "float32", 100.0)

    checkpoint = read_checkpoint(saved())
    with pytest.raises(CoopError, match=rf'vectors of {WIDTH} numbers.*model "other" has 64.*--model'):
        import_prompt(checkpoint, backbone(64), NAMES, NAMES)
    with pytest.raises(CoopError, match="the embedding of SOS differs"):
        import_prompt(checkpoint, backbone(WIDTH), NAMES, NAMES)


# ------------------------------------------------------------------------------------------------------ to start from


@pytest.mark.parametrize("csc", [False, True])
def test_a_context_to_start_from(mini, saved, tmp_path, csc):
    how = ContextSettings(M, "middle", csc)
    context = context_of(csc)
    save_file({"ctx": context}, tmp_path / "a.safetensors")
    save_file({"context": context.half()}, tmp_path / "b.safetensors")
    save(tmp_path / "c.pt", {"ctx": context})
    for name, expected in {"a.safetensors": context, "b.safetensors": context.half().float(), "c.pt": context}.items():
        found = read_initial_context(tmp_path / name, how, len(NAMES), WIDTH)
        assert found.dtype == torch.float32 and torch.equal(found, expected)
    path = saved(csc)
    assert torch.equal(read_initial_context(path, how, len(NAMES), WIDTH), read_checkpoint(path).context)
    import_prompt(read_checkpoint(path), mini, NAMES, NAMES).save(tmp_path / "prompt.safetensors")
    found = read_initial_context(tmp_path / "prompt.safetensors", how, len(NAMES), WIDTH)
    assert torch.equal(found, read_checkpoint(path).context)


@pytest.mark.parametrize(
    ("how", "n_classes", "width"),
    [
        (ContextSettings(M + 1), 4, WIDTH),
        (ContextSettings(M, csc=True), 4, WIDTH),
        (ContextSettings(M), 4, 64),
    ],
)
def test_a_context_of_another_shape(tmp_path, how, n_classes, width):
    save_file({"ctx": context_of()}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=rf"holds a context of shape \[5, {WIDTH}\]; .* need \["):
        read_initial_context(tmp_path / "a.safetensors", how, n_classes, width)


def test_a_class_specific_context_of_other_classes(tmp_path):
    save_file({"ctx": context_of(csc=True)}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=rf"shape \[4, 5, {WIDTH}\]; .*--csc and 3 classes need \[3, 5, {WIDTH}\]"):
        read_initial_context(tmp_path / "a.safetensors", ContextSettings(M, csc=True), 3, WIDTH)


def test_no_context_to_start_from(tmp_path):
    save_file({"other": context_of()}, tmp_path / "other.safetensors")
    save_file({"ctx": context_of() / 0}, tmp_path / "nan.safetensors")
    save_file({"ctx": torch.zeros(M, WIDTH, dtype=torch.int32)}, tmp_path / "int.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ???")
    for name in ("other", "nan", "int", "damaged", "none"):
        with pytest.raises(CoopError, match=rf"{name}\.safetensors"):
            read_initial_context(tmp_path / f"{name}.safetensors", ContextSettings(M), 4, WIDTH)


# --------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def coop(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["coop", *map(str, arguments)])
        capsys.readouterr()
        try:
            __main__.main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code or 0
        return code, *capsys.readouterr()

    return run


def test_import_then_eval(coop, saved, photos, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    command = ["import", saved(), "--classnames", "names.json", "--model", "mini"]
    code, out, err = coop(*command)
    assert (code, out) == (0, f"4 classes, 5 vectors of {WIDTH} for all classes, class name at position end\n"), err
    written = f"{saved()}.safetensors"
    assert f"prompt: {Path(os.path.relpath(written))}" in err
    first = Path(written).read_bytes()
    code, out, err = coop(*command, "--json", "--output", "run/prompt.safetensors")
    told = json.loads(out)
    assert told["class_names"] == list(NAMES) and (told["n_ctx"], told["position"], told["csc"]) == (M, "end", False)
    assert (tmp_path / "run" / "prompt.safetensors").read_bytes() == first
    code, out, err = coop("eval", "run", photos, "--json")
    assert code == 0 and json.loads(out)["n"] == 18, err


def test_import_tells_in_one_line(coop, saved, tmp_path):
    (tmp_path / "names.txt").write_text("red_star\nannual crop\nsea\nkite (bird of prey)\n")
    torch.save({"a": Runs(os.system, f"touch {tmp_path}/ran")}, tmp_path / "evil.pt")
    ending = ["--classnames", "names.txt", "--model", "mini"]
    for path, code, words in (
        (saved(), 1, 'class 3 of the class-name file is "sea"'),
        ("names.txt", 1, "was not written by torch.save"),
        ("evil.pt", 1, "it was not read"),
        ("none", 2, "no file"),
    ):
        got, out, err = coop("import", path, *ending)
        assert (got, out) == (code, "") and words in err and err.count("\n") == 1 and err.startswith("coop: "), err
    assert not (tmp_path / "ran").exists()
