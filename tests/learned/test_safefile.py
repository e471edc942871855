import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from coopcli.errors import CoopError, UsageError
from coopcli.files import HEAD_FILE, PROMPT_FILE
from coopcli.learned.safefile import content_of, is_names, is_text, read


def write(path, entry, tensors):
    path.write_bytes(content_of(path, entry, tensors, lambda contents: None))


SHAPE = st.lists(st.integers(1, 4), min_size=1, max_size=3)
SHAPES = st.dictionaries(st.sampled_from(["a", "b", "weights", "x"]), SHAPE, min_size=1)


@given(SHAPES, st.booleans(), st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_written_is_read(tmp_path_factory, shapes, counts, text):
    path = tmp_path_factory.mktemp("file") / "f"
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    if counts:
        tensors["z"] = torch.tensor([-(2**63), 2**63 - 1])
    write(path, {"said": text}, tensors)
    contents = read(path)
    assert contents.entry["said"] == text
    # Integers come first, the rest by name, as safetensors sorts them.
    floats = {name: ("F32", shapes[name]) for name in sorted(shapes)}
    found = contents.tensors(({"z": ("I64", [2])} if counts else {}) | floats)
    assert {*found} == {*tensors} and all(torch.equal(found[name], tensors[name]) for name in found)
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(path).items())


def test_a_layout_that_is_not_the_files(tmp_path):
    write(tmp_path / "f", {}, {"a": torch.ones(2, 3), "b": torch.ones(6)})
    contents = read(tmp_path / "f")
    right = {"a": ("F32", [2, 3]), "b": ("F32", [6])}
    contents.tensors(right)
    for wrong in (
        {"a": ("F32", [3, 2]), "b": ("F32", [6])},
        {"a": ("F32", [2, 3])},
        {"b": ("F32", [6]), "a": ("F32", [2, 3])},
        {**right, "c": ("F32", [1])},
        {"a": ("I64", [3]), "b": ("F32", [6])},
        {},
    ):
        with pytest.raises(CoopError, match="its header says otherwise"):
            contents.tensors(wrong)


def test_numbers_that_are_none_are_named(tmp_path):
    write(tmp_path / "f", {}, {"a": torch.ones(3), "b": torch.tensor([1.0, float("nan")])})
    with pytest.raises(CoopError, match="NaN or infinite numbers in its b"):
        read(tmp_path / "f").tensors({"a": ("F32", [3]), "b": ("F32", [2])})


def test_entries_that_are_wrong_are_named(tmp_path):
    write(tmp_path / "f", {"one": 1, "two": "2"}, {"a": torch.ones(1)})
    checks = {"one": lambda entry: entry == 1, "two": lambda entry: entry == 2, "three": lambda entry: True}
    with pytest.raises(CoopError, match=r"garbles an entry of its header: two, three$"):
        read(tmp_path / "f").check(checks)


def test_a_run_folder_holds_a_prompt_or_a_head(tmp_path):
    with pytest.raises(UsageError, match=f"no prompt file .*{PROMPT_FILE}"):
        read(tmp_path)
    write(tmp_path / HEAD_FILE, {"is": "head"}, {"a": torch.ones(1)})
    assert read(tmp_path).entry["is"] == "head" and read(tmp_path).path == tmp_path / HEAD_FILE
    write(tmp_path / PROMPT_FILE, {"is": "prompt"}, {"a": torch.ones(1)})
    assert read(tmp_path).entry["is"] == "prompt"


def test_texts_and_names():
    assert is_text("x" * 1000) and not is_text("x" * 1001) and not is_text(1)
    assert is_names(["a", ""]) and not any(map(is_names, ([], "ab", ("a",), ["a", 1], [["a"]], None)))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400", "9" * 5000, '"\\ud800"', "[" * 10**5])
def test_what_cannot_be_printed_or_compared_is_refused(tmp_path, number):
    write(tmp_path / "f", {"training": 12345}, {"a": torch.ones(1)})
    whole = (tmp_path / "f").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length].replace(b"12345", number.replace("\\", "\\\\").replace('"', '\\"').encode())
    (tmp_path / "f").write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
    with pytest.raises(UsageError, match="not a prompt file"):
        read(tmp_path / "f")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "\ud800", {"a": float("-inf")}, object()])
def test_what_could_not_be_read_again_is_not_written(tmp_path, value):
    with pytest.raises(CoopError, match="could not be read again, so it is not written"):
        write(tmp_path / "f", {"training": value}, {"a": torch.ones(1)})
    assert not (tmp_path / "f").exists()
