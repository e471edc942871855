"""Damage prompt and head files in thousands of ways and load them: each is valid or is refused in one line.

    python tools/fuzz_prompts.py --seconds 600 --seed 1

Prints how many files were tried, loaded and refused, and the peak memory over the start. Any other outcome ends it with
exit code 1 and keeps the file.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from coopcli.clip.prompts import ContextSettings
from coopcli.errors import CoopError
from coopcli.learned.head import MAX_KEYS, Head
from coopcli.learned.prompt import LearnedPrompt, load_learned
from coopcli.learned.safefile import MAX_FILE, MAX_HEADER

SLOW = 5.0  # seconds of computing for one file: a hang
CROWDED = 256  # MiB over the start: more than the header's bound explains


def example(csc: bool = False) -> LearnedPrompt:
    """A small valid prompt."""
    return LearnedPrompt(
        context=torch.linspace(-1, 1, 64 if csc else 32).view((2, 4, 8) if csc else (4, 8)),
        settings=ContextSettings(4, "middle", csc),
        class_names=("Stern ☆", "ring"),
        folders=("s", "r"),
        model="mini",
        revision=None,
        fingerprint="f" * 32,
        training={"shots": 16, "seed": 1, "recipe": {"lr": 0.002, "views": [1, 2]}},
    )


def example_head(bias: bool = True, keys: int = 3) -> Head:
    """A small valid head of two classes and four numbers a feature."""
    return Head(
        method="tip-adapter" if keys else "linear-probe",
        weights=torch.linspace(-1, 1, 8).view(2, 4),
        class_names=("Stern ☆", "ring"),
        folders=("s", "r"),
        model="mini",
        revision=None,
        fingerprint="f" * 32,
        training={"parameters": 8, "C": 0.1},
        bias=torch.tensor([0.5, -0.5]) if bias else None,
        keys=torch.linspace(-1, 1, 4 * keys).view(keys, 4) if keys else None,
        values=torch.arange(keys) % 2 if keys else None,
        alpha=1.0,
        beta=5.5,
    )


EXAMPLES: list[LearnedPrompt | Head] = [
    example(), example(csc=True), example_head(), example_head(bias=False), example_head(keys=0), example_head(False, 0)
]  # fmt: skip


def content_of(learned: LearnedPrompt | Head) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        learned.save(Path(folder) / "p")
        return (Path(folder) / "p").read_bytes()


def taken_apart(content: bytes) -> tuple[Any, Any, bytes]:
    """The safetensors header, coop's entry in it, and the numbers. Raises whatever damage makes json raise."""
    end = 8 + int.from_bytes(content[:8], "little")
    outer = json.loads(content[8:end])
    return outer, json.loads(outer["__metadata__"]["coop"]), content[end:]


def put_together(outer: Any, entry: Any, numbers: bytes) -> bytes:
    """The file; `entry` is coop's, as text or as what JSON says. None leaves the outer header as it is."""
    if entry is not None:
        text = entry if isinstance(entry, str) else json.dumps(entry)
        outer = outer | {"__metadata__": outer["__metadata__"] | {"coop": text}}
    text = outer if isinstance(outer, str) else json.dumps(outer)
    header = text.encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + numbers


# ----------------------------------------------------------------------------------------------- random damage

ODD = [None, True, False, 0, 1, -1, 5, 77, 2**31, 2**63, -(2**63), 10**400, 0.5, 1e308, float("nan"), float("inf"), "",
       "end", "mini", "F32", "I8", "../../etc/passwd", "\x00", "\x1b[2J\x1b]0;x\x07", "a\nb", "\u202eabc", "\ud800", "é中☆",
       "x" * 2000, [], {}, [[]], [""], [1], {"": 1}]  # fmt: skip
ODD_TEXT = ['"', "{", "[", "]", "}", ",", ":", "\\", "\\ud800", "\\u0000", "NaN", "1e999", "9" * 5000, "[" * 3000,
            '"model":0,', "\x1b"]  # fmt: skip


def random_json(choose: random.Random, depth: int = 3) -> Any:
    kind = choose.randrange(4) if depth else 0
    if kind == 1:
        return [random_json(choose, depth - 1) for _ in range(choose.randrange(4))]
    if kind == 2:
        return {str(choose.choice(ODD)): random_json(choose, depth - 1) for _ in range(choose.randrange(4))}
    return choose.choice(ODD)


def edited(choose: random.Random, content: Any) -> Any:
    """The same JSON with a random value at a random place, a part gone, or one more."""
    if not content or not isinstance(content, (dict, list)) or choose.randrange(6) == 0:
        return random_json(choose)
    places: list[Any] = list(content) if isinstance(content, dict) else list(range(len(content)))
    place = choose.choice(places)
    copy: Any = content.copy()
    how = choose.randrange(8)
    if how == 0:
        del copy[place]
    elif how == 1:
        copy = copy | {str(choose.choice(ODD)): random_json(choose)} if isinstance(copy, dict) else [*copy, random_json(choose)]
    else:
        copy[place] = edited(choose, copy[place])
    return copy


def _flip(choose: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(choose.randrange(1, 9)):
        damaged[choose.randrange(len(damaged))] ^= 1 << choose.randrange(8)
    return bytes(damaged)


def _cut(choose: random.Random, content: bytes) -> bytes:
    return content[: choose.randrange(len(content))]


def _splice(choose: random.Random, content: bytes) -> bytes:
    at, start, end = (choose.randrange(len(content) + 1) for _ in range(3))
    return content[:at] + content[start:end] + content[at + choose.randrange(4) :]


def _lie_about_length(choose: random.Random, content: bytes) -> bytes:
    length = choose.choice([0, 1, 2, 8, len(content) - 8, len(content), 2**24, 2**31, 2**32, 2**63 - 1, 2**64 - 1])
    return (length % 2**64).to_bytes(8, "little") + content[8:]


def _edit_header(choose: random.Random, content: bytes) -> bytes:
    outer, _, numbers = taken_apart(content)
    return put_together(edited(choose, outer), None, numbers)


def _edit_entry(choose: random.Random, content: bytes) -> bytes:
    outer, entry, numbers = taken_apart(content)
    return put_together(outer, edited(choose, entry), numbers)


def _edit_entry_text(choose: random.Random, content: bytes) -> bytes:
    outer, entry, numbers = taken_apart(content)
    text = json.dumps(entry)
    at = choose.randrange(len(text))
    return put_together(outer, text[:at] + choose.choice(ODD_TEXT) + text[at + choose.randrange(3) :], numbers)


def _edit_numbers(choose: random.Random, content: bytes) -> bytes:
    outer, entry, numbers = taken_apart(content)
    value = choose.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\xff\xff\x7f\x7f", b"", b"\x00"])
    at = 4 * choose.randrange(len(numbers) // 4 + 1)
    return put_together(outer, entry, numbers[:at] + value + numbers[at + 4 :])


DAMAGES: list[Callable[[random.Random, bytes], bytes]] = [
    _flip, _cut, _splice, _lie_about_length, _edit_header, _edit_entry, _edit_entry, _edit_entry, _edit_entry_text,
    _edit_numbers,
]  # fmt: skip


def damaged(choose: random.Random, content: bytes) -> bytes:
    """The content after one to three random damages; one that the damages before made impossible is left out."""
    for _ in range(choose.randrange(1, 4)):
        try:
            content = choose.choice(DAMAGES)(choose, content) or content
        except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
            continue
    return content


# ------------------------------------------------------------------------------------------------ made by hand


def attacks() -> dict[str, bytes]:
    """Hostile files by name; none of them is a prompt or a head."""
    made = {f"prompt: {name}": content for name, content in _attacks_on(example(), "context").items()}
    made |= {f"head: {name}": content for name, content in _attacks_on(example_head(), "weights").items()}
    return made | _attacks_on_context() | _attacks_on_cache()


def _attacks_on(learned: LearnedPrompt | Head, name: str) -> dict[str, bytes]:
    """What can be done to any file; `name` is one of its float tensors, the last in the file."""
    content = content_of(learned)
    outer, entry, numbers = taken_apart(content)
    tensor = outer[name]
    rows, width = tensor["shape"]
    start, end = tensor["data_offsets"]
    made = {
        "huge metadata": put_together(outer, entry | {"training": {"x": "x" * 100 * 2**20}}, numbers),
        "much small JSON": put_together(f"[{'[],' * (MAX_HEADER // 3 - 2)}0]", None, numbers),
        "deep JSON": put_together("[" * 100_000 + "]" * 100_000, None, numbers),
        "deep entry": put_together(outer, "[" * 100_000 + "]" * 100_000, numbers),
        "deep training": put_together(
            outer, json.dumps(entry)[:-1] + ', "more": ' + "[" * 50_000 + "]" * 50_000 + "}", numbers
        ),
        "twofold key": put_together(outer, json.dumps(entry)[:-1] + ', "model": "other"}', numbers),
        "twofold tensor": put_together(json.dumps(outer)[:-1] + f', "{name}": {json.dumps(tensor)}}}', None, numbers),
        "another tensor": put_together(outer | {"more": tensor}, None, numbers),
        "no tensor": put_together({key: value for key, value in outer.items() if key != name}, None, numbers),
        "tensor is no object": put_together(outer | {name: [4, 8]}, None, numbers),
        "entry is no text": put_together(outer | {"__metadata__": {"coop": entry}}, None, numbers),
        "metadata is a list": put_together(outer | {"__metadata__": ["coop"]}, None, numbers),
        "no metadata": put_together({name: tensor}, None, numbers),
        "huge integer": put_together(
            outer, json.dumps(entry).replace('"training": {', '"training": {"n": ' + "9" * 10_000 + ", "), numbers
        ),
        "no numbers": put_together(outer, None, b""),
        "one byte more": content + b"\0",
        "one byte less": content[:-1],
        "NaN": put_together(outer, None, numbers[:-4] + b"\x00\x00\xc0\x7f"),
        "infinity": put_together(outer, None, numbers[:start] + b"\x00\x00\x80\xff" + numbers[start + 4 :]),
    }
    for length in (0, 9, len(content) - 8, len(content) - 7, 2**40, 2**63, 2**64 - 1):
        made[f"header of {length} bytes"] = length.to_bytes(8, "little") + content[8:]
    for key, values in {
        "shape": [[2**40, 2**40], [-rows, -width], [rows, -width], [0, width], [rows * width], [rows, width, 1], [width, rows],
                  [rows, str(width)], [[rows, width]], f"{rows}, {width}", None, rows * width],
        "dtype": ["F16", "BF16", "I32", "I64", "F64", "f32", None, 4, []],
        "data_offsets": [[0, 2**62], [-1, end], [start + 4, end], [end, start], [start, end - 64], [start], None, "0"],
    }.items():  # fmt: skip
        for value in values:
            made[f"{key} {value}"] = put_together(outer | {name: tensor | {key: value}}, None, numbers)
    odd = {
        "format_version": [0, -1, 2, 1.0, True, "1", None, [], 10**400],
        "class_names": ["ab", [], ["a"], ["a", 1], ["a", None], ["a", ["b"]], {"a": 1, "b": 2}, None, 2, ["a", "\ud800"],
                        ["a", "b" * 10_000], ["a", "b", "c"]],
        "folders": ["ab", [], ["a"], ["a", 1], None, ["a", "\udcff"]],
        "model": [None, 1, [], "x" * 10_000, "\udfff"],
        "revision": [1, [], "../../../etc", "x" * 10_000],
        "fingerprint": [None, 1, "\ud800"],
        "training": [None, [], "x", 1, {"deep": {"\ud800": 1}}],
    }  # fmt: skip
    return made | _with_entries(outer, entry, numbers, odd)


def _with_entries(outer: Any, entry: Any, numbers: bytes, odd: dict[str, list[Any]]) -> dict[str, bytes]:
    """The file with each odd value in an entry of its header, and without that entry."""
    made = {}
    for key, values in odd.items():
        for value in [*values, ...]:
            changed = {**entry, key: value} if value is not ... else {k: v for k, v in entry.items() if k != key}
            made[f"{key} {str(value)[:40]!a}"] = put_together(outer, changed, numbers)
    return made


def _attacks_on_context() -> dict[str, bytes]:
    outer, entry, numbers = taken_apart(content_of(example()))
    made = _with_entries(outer, entry, numbers, {"context": [[], None, "middle", ["n_ctx", "position", "csc"], {"n_ctx": 4}]})
    settings = entry["context"]
    for key, values in {
        "n_ctx": [0, -4, 4.0, "4", None, True, [4], 5, 3, 1000, 2**70],
        "position": ["", "END", "begin", None, 0, ["middle"], {}],
        "csc": [0, 1, "no", None, [], True],
        "what": [1],
    }.items():
        for value in values:
            made[f"context.{key} {value}"] = put_together(outer, entry | {"context": settings | {key: value}}, numbers)
    made["prompt: named a head"] = put_together(outer, entry | {"method": "tip-adapter"}, numbers)
    return made


def _attacks_on_cache() -> dict[str, bytes]:
    """What can be done to a head's bias, keys and values, and to the model that it names."""
    outer, entry, numbers = taken_apart(content_of(example_head()))
    wide = [None, "1", [], {}, True, -1, 2 * 10**6, 10**400, float("nan"), float("inf"), -float("inf")]
    odd = {
        "method": [None, 1, [], "x" * 10_000, "\ud800"],
        "own_model": [None, 0, 1, "model", "../model", [], True],  # True: and there is no such folder
        "bias": [None, 0, 1, "yes", [], False],
        "keys": [None, -1, 0, 1, 2, 4, 3.0, "3", True, [], MAX_KEYS, 2**63, 10**400],
        "alpha": wide,
        "beta": wide,
    }
    made = {f"head: {name}": content for name, content in _with_entries(outer, entry, numbers, odd).items()}
    for label in (-1, 2, 2**31, 2**63 - 1, -(2**63)):
        made[f"head: a key of class {label}"] = put_together(
            outer, None, label.to_bytes(8, "little", signed=True) + numbers[8:]
        )
    for name in ("values", "bias", "keys", "weights"):
        made[f"head: no {name}"] = put_together({key: value for key, value in outer.items() if key != name}, None, numbers)
        for other in ("values", "bias", "keys", "weights"):
            if other != name:
                made[f"head: {name} where {other} lie"] = put_together(outer | {name: outer[other]}, None, numbers)
    for name in ("bias", "keys"):
        start = outer[name]["data_offsets"][0]
        made[f"head: NaN in {name}"] = put_together(outer, None, numbers[:start] + b"\x00\x00\xc0\x7f" + numbers[start + 4 :])
    return made


def write_huge(path: Path) -> None:
    """A valid prompt over the bound; it has holes, so that it takes no room."""
    width = MAX_FILE // 16
    outer, entry, _ = taken_apart(content_of(example()))
    outer["context"] |= {"shape": [4, width], "data_offsets": [0, 16 * width]}
    start = put_together(outer, entry, b"")
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + 16 * width)


# ------------------------------------------------------------------------------------------------------ verdict


def verdict(path: Path) -> str:
    """`loaded` or `refused`. Raises what load_learned should not raise, AssertionError for what it should have refused."""
    began = time.process_time()
    try:
        learned = load_learned(path)
    except CoopError as error:
        assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 1000, "not one line that names the file"
        outcome = "refused"
    else:
        names, folders = learned.class_names, learned.folders
        assert len(names) == len(folders) > 0 and isinstance(learned.training, dict)
        "".join([*names, *folders, learned.model, learned.revision or "", learned.fingerprint]).encode()
        (_check_head if isinstance(learned, Head) else _check_prompt)(learned)
        outcome = "loaded"
    assert time.process_time() - began < SLOW, "a hang"
    return outcome


def _check_prompt(prompt: Any) -> None:
    how = prompt.settings
    assert type(how.n_ctx) is int and type(how.csc) is bool and how.position in ("end", "middle", "front")
    assert [*prompt.context.shape[:-1]] == [len(prompt.class_names)] * how.csc + [how.n_ctx]
    _check_floats(prompt.context)


def _check_head(head: Any) -> None:
    n_classes, width = head.weights.shape
    head.method.encode()
    assert n_classes == len(head.class_names) and math.isfinite(head.alpha) and math.isfinite(head.beta)
    assert (head.keys is None) == (head.values is None)
    for tensor, shape in ((head.weights, (n_classes, width)), (head.bias, (n_classes,)), (head.keys, (-1, width))):
        if tensor is not None:
            assert tensor.shape == tensor.view(shape).shape
            _check_floats(tensor)
    if head.values is not None:
        assert head.values.dtype == torch.int64 and head.values.shape == head.keys.shape[:1]
    assert head.logits(torch.zeros(1, width)).shape == (1, n_classes)  # reads and writes where it may


def _check_floats(tensor: torch.Tensor) -> None:
    assert tensor.dtype == torch.float32 and tensor.isfinite().all() and tensor.numel()


def peak() -> float:
    """MiB that this process has held since `forget_peak`, at most."""
    return int(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def forget_peak() -> None:
    """Making the attacks takes more memory than reading them may."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def run(folder: Path, seconds: float, seed: int) -> tuple[Counter[str], float]:
    """Try the attacks once and random damages until the time is over: the outcomes, and the peak memory over the start.

    Raises for an outcome that must not be, and leaves its file in the folder.
    """
    choose, seen = random.Random(seed), Counter[str]()
    valid = [content_of(learned) for learned in EXAMPLES]
    write_huge(folder / "huge")
    for number, content in enumerate(attacks().values()):
        (folder / f"{number}").write_bytes(content)
    del content
    forget_peak()
    start, deadline = peak(), time.monotonic() + seconds
    for path in folder.iterdir():
        seen[verdict(path)] += 1
        path.unlink()
    path = folder / "prompt"
    while time.monotonic() < deadline:
        path.write_bytes(damaged(choose, choose.choice(valid)))
        seen[verdict(path)] += 1
        path.unlink()
    return seen, peak() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-prompts-"))
    try:
        seen, more = run(folder, options.seconds, options.seed)
    except Exception:
        traceback.print_exc()
        sys.exit(f"kept in {folder}")
    folder.rmdir()
    print(
        f"{seen.total()} files: {seen['loaded']} loaded, {seen['refused']} refused; peak memory {more:.0f} MiB over the start"
    )
    sys.exit(1 if more > CROWDED else 0)


if __name__ == "__main__":
    main()
