"""Some hundred damaged inputs of every kind; `tools/fuzz_inputs.py` tries thousands."""

import fuzz_inputs
import pytest

from coopcli.experiments.listing import list_runs

MOST = {"models": 8, "results": 12, "settings": 60, "classnames": 60}


@pytest.mark.parametrize("kind", fuzz_inputs.KINDS)
def test_damaged_inputs_are_understood_or_refused_in_one_line(tmp_path, kind):
    seen = fuzz_inputs.run(tmp_path, kind, seconds=60, seed=7, most=MOST.get(kind, 100))
    assert seen["refused"] and seen.total() >= 5


@pytest.mark.parametrize("text", ["", 'keep-close = "abc"', "keep-close = [1]", "position = 3"])
def test_settings_that_no_command_wrote_are_listed(tmp_path, text):
    """Found by fuzzing: `coop list` ended in an error. Without text: a link to itself."""
    settings = tmp_path / "run" / "settings.toml"
    settings.parent.mkdir()
    settings.write_text(text) if text else settings.symlink_to(settings.name)
    (row,) = list_runs(tmp_path)
    assert row.state == "damaged settings" and row.variant == "?"


def test_a_long_value_in_a_settings_file_makes_no_long_line(coop, tmp_path):
    (tmp_path / "long.toml").write_text(f'device = "{"[" * 5000}"')
    code, out, err = coop("fit", "photos", "--config", "long.toml")
    assert (code, out, err.count("\n")) == (2, "", 1) and len(err) < 600
