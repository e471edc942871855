"""`coop cache`: size, bound and clearing."""

import json

from conftest import ran


def test_cache_command(coop, photos):
    ran(coop("zeroshot", photos, "--model", "mini"))
    kept = 18 + 1 + 1  # the images, the class features of the prompt, the facts of the model
    assert json.loads(ran(coop("cache", "--json")))["features"] == kept
    ran(coop("zeroshot", photos, "--model", "mini", "--no-cache"))
    cleared = json.loads(ran(coop("cache", "clear", "--json")))
    assert (cleared["features"], cleared["removed"]) == (0, kept)
    assert ran(coop("cache")).startswith("0 features")
    assert json.loads(ran(coop("cache", "--json")))["max_bytes"] is None
    assert json.loads(ran(coop("cache", "--max-size", "2GB", "--json")))["max_bytes"] == 2 * 10**9
    ran(coop("zeroshot", photos, "--model", "mini"))
    assert "of at most 1907.3 MiB" in ran(coop("cache"))
    code, out, err = coop("cache", "--max-size", "much")
    assert (code, out) == (2, "") and '"much"' in err
