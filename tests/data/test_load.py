import pytest
from conftest import write_picture

from coopcli.data.load import load_data
from coopcli.errors import CoopError, UsageError


def test_missing_path():
    with pytest.raises(UsageError, match="no folder or file"):
        load_data("./nowhere")


def test_wrong_file(photos):
    with pytest.raises(UsageError, match="is not DATA; give a folder of class folders"):
        load_data(str(photos / "red" / "0.png"))


def test_a_root_for_a_folder(photos, tmp_path):
    with pytest.raises(UsageError, match=r"--images goes with a split file or a table, which .* is not"):
        load_data(str(photos), tmp_path)


def test_one_class_only(tmp_path):
    write_picture(tmp_path / "red" / "0.png")
    with pytest.raises(CoopError, match="only one class"):
        load_data(str(tmp_path))
