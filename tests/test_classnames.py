import pytest

from coopcli.errors import UsageError
from coopcli.images import load_data


@pytest.mark.parametrize("text", ['{"red": "crimson"}', "red\tcrimson\n", '["blue", "green", "crimson"]'])
def test_classnames(photos, tmp_path, text):
    (tmp_path / "names").write_text(text)
    data = load_data(str(photos), classnames=tmp_path / "names")
    assert data.class_names == ("blue", "green", "crimson")
    assert data.folders == ("blue", "green", "red")


@pytest.mark.parametrize(
    ("text", "reason"),
    [('["one"]', "lists 1 names for 3"), ("red crimson", "folder<TAB>name"), ('{"a": "b"}', "names none"), ("7", "must hold")],
)
def test_bad_classnames(photos, tmp_path, text, reason):
    (tmp_path / "names").write_text(text)
    with pytest.raises(UsageError, match=reason):
        load_data(str(photos), classnames=tmp_path / "names")


def test_missing_classnames(photos, tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_data(str(photos), classnames=tmp_path / "names")
