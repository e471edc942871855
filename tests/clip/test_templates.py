import pytest

from coopcli.clip.templates import TEMPLATE_SETS, read_templates
from coopcli.errors import UsageError


def test_the_sets_have_one_place_for_the_class_each():
    assert len(TEMPLATE_SETS["imagenet"]) == 80
    assert TEMPLATE_SETS["paper_EuroSAT"] == ["a centered satellite photo of {}."]
    assert all(template.count("{}") == 1 for templates in TEMPLATE_SETS.values() for template in templates)


def test_the_sets_are_the_published_ones(shared_data):
    import json

    published = json.loads((shared_data / "prompts" / "template_sets.json").read_text())
    paper = json.loads((shared_data / "prompts" / "coop_paper_templates.json").read_text())
    assert {name: TEMPLATE_SETS[name] for name in published} == published
    assert TEMPLATE_SETS["imagenet_select_7"] == paper["imagenet_select_7"]
    assert {name: TEMPLATE_SETS[f"paper_{name}"][0] for name in paper["hand_written"]} == paper["hand_written"]


@pytest.mark.parametrize("text", ['["a {}", "the {}"]', "a {}\n\nthe {}\n"])
def test_a_file_of_templates(tmp_path, text):
    (tmp_path / "t").write_text(text)
    assert read_templates(str(tmp_path / "t")) == ["a {}", "the {}"]


@pytest.mark.parametrize("text", ["", '{"a": 1}', "[1]"])
def test_a_file_without_templates(tmp_path, text):
    (tmp_path / "t").write_text(text)
    with pytest.raises(UsageError, match="must contain"):
        read_templates(str(tmp_path / "t"))


def test_an_unknown_name_lists_the_known():
    with pytest.raises(UsageError, match="the sets are: imagenet,"):
        read_templates("imagenett")


@pytest.mark.parametrize("text", ["\ufeffa {}\n\nthe {}\n", '\ufeff["a {}", "the {}"]', " a {} \r\n the {}\r\n"])
def test_marks_and_blanks_are_no_part_of_a_template(tmp_path, text):
    (tmp_path / "t").write_bytes(text.encode())
    assert read_templates(str(tmp_path / "t")) == ["a {}", "the {}"]


@pytest.mark.parametrize("content", [b"caf\xe9 {}", "a {}".encode("utf-16"), b'["a {}"', b'["\\ud800 {}"]'])
def test_a_file_that_cannot_be_read_as_templates(tmp_path, content):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(UsageError, match=r'template file ".*t" (cannot be read: it is not UTF-8 text|is not valid JSON)'):
        read_templates(str(tmp_path / "t"))
