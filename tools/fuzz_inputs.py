"""Damage what coop reads besides prompts, in thousands of ways: each is understood, or refused in one line.

    python tools/fuzz_inputs.py [KIND ...] --seconds 300 --seed 1

Kinds: tables, classnames, splits, settings, results (metrics.json, log.jsonl, results.json, result.json, fewshot.json, with
the list and the report that are made from them) and models (config, tokenizer files, preprocessor and weights of a tiny
CLIPModel). Prints for each kind how many inputs were read and refused. Any other outcome ends it with exit code 1, a
traceback and the folder that was read.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from fuzz_prompts import ODD_TEXT, _cut, _flip, _splice, edited, example
from PIL import Image

from coopcli.cli.app import app
from coopcli.cli.command import usage_line
from coopcli.cli.console import printable
from coopcli.clip.backbone import Backbone, load_backbone
from coopcli.clip.class_features import hand_written_features
from coopcli.clip.hf_clip import MINI_FOLDER
from coopcli.data.classnames import read_choices
from coopcli.data.load import describe, load_data
from coopcli.errors import CoopError
from coopcli.experiments.contents import trained_on
from coopcli.experiments.grid import Cell, Result, Variant
from coopcli.experiments.listing import list_runs
from coopcli.experiments.run_folder import kept_run, read_run
from coopcli.experiments.sweep_folder import read_result, read_sweep, write_result, write_results
from coopcli.files import write_json
from coopcli.report.look import Look
from coopcli.report.page import write_report
from coopcli.settings import to_toml

COOP: Any = typer.main.get_command(app)
SLOW = 20.0  # seconds of computing for one input: a hang
NAMES = ("kite", "bird\u2028", "long leaf")

Damage = Callable[[random.Random, bytes], bytes]


# ----------------------------------------------------------------------------------------------------- damage

WORDS = [
    "path", "label", "split", "train", "test", "is_valid", "true", "fold", "name", "0", "-1", "1.0", "NaN", "Infinity", "1e999",
    "sep=;", "red/0.png", "../../x", "/dev/zero", "a\x00b", "\x1b[2J", "[red]", "\u202e", "\u2028", "\ufeff", "é", "9" * 5000,
    "n01440764 name", "{}", "null", '"', '""', "'", "\t", ";", ",", "\r", "\n\n",
]  # fmt: skip


def _insert(choose: random.Random, content: bytes) -> bytes:
    at = choose.randrange(len(content) + 1)
    word = choose.choice([*WORDS, *ODD_TEXT]).encode("utf-8", "surrogatepass")
    return content[:at] + word + content[at + choose.randrange(3) :]


def _swap_lines(choose: random.Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    a, b = choose.randrange(len(lines)), choose.randrange(len(lines))
    lines[a], lines[b] = lines[b], choose.choice([lines[a], b"", lines[a] * 2])
    return b"\n".join(lines)


def _encode(choose: random.Random, content: bytes) -> bytes:
    encoding = choose.choice(["utf-16", "utf-16-le", "utf-8-sig", "latin-1", "utf-32", "cp037"])
    return content.decode("utf-8", "replace").encode(encoding, "replace")


def _edit_json(choose: random.Random, content: bytes) -> bytes:
    parsed = json.loads(content)
    for _ in range(choose.randrange(1, 4)):
        parsed = edited(choose, parsed)
    return json.dumps(parsed).encode("utf-8", "surrogatepass")


def _edit_json_line(choose: random.Random, content: bytes) -> bytes:
    lines = content.splitlines()
    at = choose.randrange(len(lines))
    lines[at] = _edit_json(choose, lines[at])
    return b"\n".join(lines)


def _empty(choose: random.Random, content: bytes) -> bytes:
    return choose.choice([b"", b"\0" * 100, b"\xff" * 50, b"\n", b"{}", b"[]", b"null", b"[" * 50_000])


BYTES: list[Damage] = [_flip, _cut, _splice, _insert, _insert, _swap_lines, _encode, _empty]


def damaged(choose: random.Random, name: str, content: bytes) -> bytes:
    """The content of a file of this name, damaged in one or more ways that fit its form."""
    damages = list(BYTES)
    if name.endswith(".json"):
        damages += [_edit_json] * 12
    elif name.endswith(".jsonl"):
        damages += [_edit_json_line] * 8
    for _ in range(choose.randrange(1, 3)):
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError, IndexError):
            content = choose.choice(damages)(choose, content)
    return content


def damage_one(choose: random.Random, folder: Path, names: list[str]) -> None:
    """Damage one of the files, or more; sometimes one is gone, a folder, or a link to itself."""
    for name in choose.sample(names, min(len(names), choose.choice([1, 1, 1, 2]))):
        path = folder / name
        kind = choose.randrange(40)
        content = path.read_bytes()
        path.unlink()
        if kind == 0:
            continue
        if kind == 1:
            path.mkdir()
        elif kind == 2:
            path.symlink_to(path.name)
        else:
            path.write_bytes(damaged(choose, name, content))


# ------------------------------------------------------------------------------------------------------ kinds


def _photos(folder: Path) -> None:
    for name in ("red", "blue", "green"):
        for number in range(3):
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), name).save(path)


def write_tables(folder: Path) -> list[str]:
    _photos(folder)
    rows = [(f"{name}/{number}.png", name, ("train", "val", "test")[number]) for name in ("red", "blue") for number in range(3)]
    (folder / "t.csv").write_text("path,label,split\n" + "".join(f"{','.join(row)}\n" for row in rows))
    (folder / "t.tsv").write_text("file\tclass\tis_valid\n" + "".join(f"{a}\t{b}\t{int(c == 'val')}\n" for a, b, c in rows))
    lines = [json.dumps({"image": a, "category": b, "fold": k, "boxes": [1]}) for k, (a, b, _) in enumerate(rows)]
    (folder / "t.jsonl").write_text("\n".join(lines))
    return ["t.csv", "t.tsv", "t.jsonl"]


def read_tables(folder: Path) -> None:
    for name in ("t.csv", "t.tsv", "t.jsonl"):
        describe(load_data(str(folder / name), folder))


def write_classnames(folder: Path) -> list[str]:
    _photos(folder)
    (folder / "lines.txt").write_text("red\tred kite\nblue\tblue bird\ngreen\tgreen leaf\n")
    (folder / "names.txt").write_text("\n".join(NAMES))
    (folder / "names.json").write_text(json.dumps(dict(zip(("red", "blue", "green"), NAMES, strict=True))))
    (folder / "list.json").write_text(json.dumps(NAMES))
    return ["lines.txt", "names.txt", "names.json", "list.json"]


def read_classnames(folder: Path) -> None:
    data = folder / "data"
    data.mkdir(exist_ok=True)
    for name in ("red", "blue", "green"):
        (folder / name).rename(data / name)
    for name in ("lines.txt", "names.txt", "names.json", "list.json"):
        describe(load_data(str(data), classnames=folder / name))
        read_choices(folder / name)


def write_splits(folder: Path) -> list[str]:
    _photos(folder)
    rows = [[f"{name}/{number}.png", label, name] for label, name in enumerate(("red", "blue", "green")) for number in range(3)]
    (folder / "split_zhou_toys.json").write_text(json.dumps({"train": rows[::3], "val": rows[1::3], "test": rows[2::3]}))
    return ["split_zhou_toys.json"]


def read_splits(folder: Path) -> None:
    describe(load_data(str(folder / "split_zhou_toys.json"), folder))


SETTINGS = {
    "data": "photos", "shots": 16, "seed": 1, "context-length": 4, "position": "end", "csc": False, "lr": 0.002, "epochs": 5,
    "views": "online", "model": "mini", "template": "a photo of a {}.", "device": "cpu", "resolved": {"fingerprint": "f"},
}  # fmt: skip


def write_settings(folder: Path) -> list[str]:
    (folder / "settings.toml").write_text(to_toml(SETTINGS))
    return ["settings.toml"]


def read_settings(folder: Path) -> None:
    """As `coop fit --config`, up to the point where the command would begin; and as `coop list` shows them."""
    list_runs(folder)
    try:
        COOP.commands["fit"].make_context("fit", ["photos", "--config", str(folder / "settings.toml")])
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise CoopError(usage_line(error)) from error


def _evaluation() -> dict[str, Any]:
    confusion = [[2, 0, 1], [0, 3, 0], [1, 1, 1]]
    return {
        "class_names": list(NAMES), "n": 9, "top1": 6 / 9, "macro": 6 / 9,
        "per_class": dict(zip(NAMES, (2 / 3, 1.0, 1 / 3), strict=True)), "confusion": confusion,
    }  # fmt: skip


def _many() -> dict[str, Any]:
    by_class = {key: dict.fromkeys(NAMES, 3) for key in ("images", "hits")}
    rest = {key: value for key, value in _evaluation().items() if key != "confusion"}
    return rest | by_class | {"largest_confusions": [{"true": NAMES[0], "predicted": NAMES[1], "images": 2}]}


CELLS = [Cell("zeroshot", "mini"), Cell("coop", "mini", 4, 1, Variant(4)), Cell("linear-probe", "mini", None, 2)]


def write_results_of_all(folder: Path) -> list[str]:
    run = folder / "run"
    run.mkdir()
    example().save(run / "prompt.safetensors")
    (run / "settings.toml").write_text(to_toml(SETTINGS | {"recipe": "paper"}))
    metrics = {"learned": _evaluation(), "hand_written": _many(), "skipped": 0, "seconds": {"training": 1.5}, "seed": 1,
               "versions": {"coop": "0.1"}, "machine": "x", "peak_memory": 5, "command_line": "coop fit"}  # fmt: skip
    write_json(run / "metrics.json", metrics)
    epochs = [{"epoch": k, "epochs": 3, "lr": 0.1, "loss": 1.0 / (k + 1), "accuracy": 0.5} for k in range(3)]
    (run / "log.jsonl").write_text("".join(f"{json.dumps(epoch)}\n" for epoch in epochs))
    write_json(run / "fewshot.json", {"train": ["a", "b"], "val": [], "train_contents": ["0" * 32, "1" * 32]})
    results = [Result(cell, 0.5, 0.5, 0.25, 1 / 3, 8, 4, 10, 1.5, "", "s", "f", 5, {"coop": "0.1"}, "l", "t") for cell in CELLS]
    for result in results:
        write_result(folder / "sweep", result)
    write_results(folder / "sweep", "toys", SETTINGS | {"methods": "coop"}, results, plot=False)
    (folder / "sweep" / "settings.toml").write_text(to_toml(SETTINGS | {"methods": "coop"}))
    files = [path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".toml") and path.is_file()]
    return sorted(str(path.relative_to(folder)) for path in files)


def read_results(folder: Path) -> None:
    """All that reads them; whether one refuses does not keep the others from reading."""
    refused: list[CoopError] = []

    def reading(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except CoopError as error:
            refused.append(error)
        return None

    for cell in CELLS:
        if result := read_result(folder / "sweep", cell):
            assert 0 <= (result.top1 or 0) <= 1
            json.dumps(vars(result) | {"cell": None}).encode()
    trained_on(example(), folder / "run", load_data(str(folder / "data")))
    list_runs(folder)
    reading(lambda: kept_run(folder / "run"))
    run, sweep = reading(lambda: read_run(folder / "run")), reading(lambda: read_sweep(folder / "sweep"))
    if run or sweep:
        runs, looks = ([run], [Look()]) if run else ([], [])
        write_report(folder / "report.html", runs, looks, [sweep] if sweep else [])
    if refused:
        raise refused[0]


def write_models(folder: Path) -> list[str]:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(MINI_FOLDER)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small | {"vocab_size": len(tokenizer)} | ends,
        vision_config=small | {"image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 16, "crop_size": 16, "do_resize": True}))
    return sorted(path.name for path in folder.iterdir())


def read_models(folder: Path) -> None:
    backbone: Backbone = load_backbone(str(folder), device="cpu")
    side = backbone.image_size
    backbone.encode_images(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    hand_written_features(backbone, ["a {}."], list(NAMES))


def _read_with_photos(folder: Path) -> None:
    _photos(folder / "data")
    read_results(folder)


KINDS: dict[str, tuple[Callable[[Path], list[str]], Callable[[Path], None]]] = {
    "tables": (write_tables, read_tables),
    "classnames": (write_classnames, read_classnames),
    "splits": (write_splits, read_splits),
    "settings": (write_settings, read_settings),
    "results": (write_results_of_all, _read_with_photos),
    "models": (write_models, read_models),
}


# ---------------------------------------------------------------------------------------------------- verdict


def verdict(read: Callable[[Path], None], folder: Path) -> str:
    """`read` or `refused`. Raises what reading should not raise, AssertionError for what is not one line."""
    began = time.process_time()
    talk = io.StringIO()
    try:
        with contextlib.redirect_stderr(talk):
            read(folder)
    except CoopError as error:
        assert str(error).strip() and "\n" not in printable(str(error)) and len(str(error)) < 6000, "not one line"
        outcome = "refused"
    else:
        outcome = "read"
    assert "Traceback" not in talk.getvalue()
    assert time.process_time() - began < SLOW, "a hang"
    return outcome


def run(folder: Path, kind: str, seconds: float, seed: int, most: int = sys.maxsize) -> Counter[str]:
    """Damage and read one kind until the time is over, or `most` times; raises for an outcome that must not be."""
    write, read = KINDS[kind]
    whole = folder / "whole"
    whole.mkdir()
    names = write(whole)
    choose, seen, deadline = random.Random(f"{kind} {seed}"), Counter[str](), time.monotonic() + seconds
    place = folder / "damaged"
    assert verdict(read, shutil.copytree(whole, place)) == "read", "the example itself"
    while time.monotonic() < deadline and seen.total() < most:
        shutil.rmtree(place)
        shutil.copytree(whole, place, copy_function=shutil.copyfile)
        damage_one(choose, place, names)
        seen[verdict(read, place)] += 1
    shutil.rmtree(whole)
    shutil.rmtree(place)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", metavar="KIND", nargs="*", default=[*KINDS], help=", ".join(KINDS))
    parser.add_argument("--seconds", type=float, default=60, help="for each kind")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.getLogger("coopcli").addHandler(logging.NullHandler())
    for kind in options.kinds:
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{kind}-"))
        try:
            seen = run(folder, kind, options.seconds, options.seed)
        except Exception:
            traceback.print_exc()
            sys.exit(f"kept in {folder}")
        folder.rmdir()
        print(f"{kind}: {seen.total()} inputs: {seen['read']} read, {seen['refused']} refused", flush=True)


if __name__ == "__main__":
    main()
