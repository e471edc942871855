import os
import socket
from pathlib import Path

import pytest
from hub_server import ask_only, serving
from huggingface_hub import constants

from coopcli.errors import CoopError, UsageError
from coopcli.files import PROMPT_FILE
from coopcli.hub import HUB_ID, prepare_hub, prompt_path, push


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_unreachable_means_offline_at_once(monkeypatch):
    with socket.socket() as unused:  # bound, but nothing listens
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        prepare_hub()
    assert os.environ.pop("HF_HUB_OFFLINE") == "1" and constants.HF_HUB_OFFLINE


def test_reachable_stays_online(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        prepare_hub()
    assert "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_behind_a_proxy_nothing_is_assumed(monkeypatch, name):
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    prepare_hub()
    assert "HF_HUB_OFFLINE" not in os.environ


# ------------------------------------------------------------------------------------------------------- fetching


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub, an empty cache, and nobody logged in."""
    with serving() as server:
        ask_only(server, monkeypatch, tmp_path)
        yield server


FILES = {PROMPT_FILE: b"prompt", "README.md": b"card", "big.bin": b"no one needs this"}


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("user/name", "user/name", None),
        ("user/name@main", "user/name", "main"),
        ("u-1/a.b_c-d@refs/pr/1", "u-1/a.b_c-d", "refs/pr/1"),
        ("coop-runs/photos-mini-end-16shots-seed1", "coop-runs/photos-mini-end-16shots-seed1", None),
    ],
)
def test_what_can_be_on_the_hub(text, repo, revision):
    match = HUB_ID.fullmatch(text)
    assert (match["repo"], match["revision"]) == (repo, revision)


@pytest.mark.parametrize(
    "text",
    ["", "name", "a/b/c", "./a", "../a", "/a/b", "a/b@", "a/-b", "a--b/c", "a/b..c", "a b/c", "é/b", "a/b\n", f"a/{'b' * 250}"],
)
def test_what_cannot_be_on_the_hub_is_a_path(hub, text):
    assert prompt_path(text) == Path(text)
    assert not hub.asked


def test_a_path_of_this_machine_comes_first(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.add("alice/flowers", FILES)
    Path("alice/flowers").mkdir(parents=True)
    assert prompt_path("alice/flowers") == Path("alice/flowers")
    assert prompt_path("alice/prompt.safetensors") == Path("alice/prompt.safetensors")
    assert not hub.asked
    assert prompt_path("alice/flowers@main") != Path("alice/flowers@main")


def test_only_the_prompt_is_fetched_and_once(hub):
    hub.add("alice/flowers", FILES | {"model/config.json": b"{}", "model/deep/x": b"x"})
    folder = prompt_path("alice/flowers")
    assert (folder / PROMPT_FILE).read_bytes() == b"prompt"
    assert {path.name for path in folder.iterdir()} == {PROMPT_FILE, "model"}
    del hub.asked[:]
    assert prompt_path("alice/flowers") == folder
    assert hub.asked == [("GET", "/api/models/alice/flowers/revision/main")]


def test_without_the_hub_the_cache_serves(hub, monkeypatch):
    hub.add("alice/flowers", FILES)
    folder = prompt_path("alice/flowers")
    hub.fail = 503
    assert prompt_path("alice/flowers") == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    del hub.asked[:]
    assert prompt_path("alice/flowers") == folder
    assert not hub.asked
    with pytest.raises(CoopError, match=r'"alice/trees" is neither a path here nor in the cache.* cannot be reached$'):
        prompt_path("alice/trees")


def test_revisions(hub):
    first = hub.add("alice/flowers", FILES)
    second = hub.repos["alice/flowers"].commit("main", {PROMPT_FILE: b"better"})
    hub.repos["alice/flowers"].branches["old"] = first
    for revision, content in (("", b"better"), ("@main", b"better"), ("@old", b"prompt"), (f"@{first}", b"prompt")):
        assert (prompt_path(f"alice/flowers{revision}") / PROMPT_FILE).read_bytes() == content
    assert prompt_path("alice/flowers").name == second
    with pytest.raises(UsageError, match='"alice/flowers" on the hub has no branch, tag or commit "v2"'):
        prompt_path("alice/flowers@v2")


def test_what_the_hub_does_not_give(hub, monkeypatch):
    hub.add("alice/secret", FILES, private=True)
    hub.add("alice/gated", FILES, gated="manual")
    hub.add("alice/model", {"model.safetensors": b""})
    for name in ("alice/secret", "alice/nothing"):
        with pytest.raises(UsageError, match=f'"{name}" is neither a path here nor a model repository.*hf auth login'):
            prompt_path(name)
    with pytest.raises(CoopError, match=f'"alice/gated" is gated: ask for access on {hub.url}/alice/gated'):
        prompt_path("alice/gated")
    with pytest.raises(CoopError, match=r'"alice/model" on the hub contains no coop prompt \(no prompt.safetensors\)'):
        prompt_path("alice/model")
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert (prompt_path("alice/secret") / PROMPT_FILE).is_file()
    monkeypatch.setenv("HF_TOKEN", "hf_mallory")
    with pytest.raises(CoopError, match=r'answered 401 for "alice/nothing": Invalid credentials.*hf auth whoami'):
        prompt_path("alice/nothing")
    hub.fail = 500
    with pytest.raises(CoopError, match=rf"nor in the cache of the hub, and {hub.url} answered 500 .*: by design$"):
        prompt_path("alice/trees")


def test_a_hub_that_refuses_connections(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(CoopError, match=r"http://127.0.0.1:1 cannot be reached"):
        prompt_path("alice/flowers")


# -------------------------------------------------------------------------------------------------------- pushing


@pytest.fixture
def run(tmp_path):
    """A run folder, as far as pushing looks at it."""
    folder = tmp_path / "run"
    (folder / "tensorboard").mkdir(parents=True)
    for name in (PROMPT_FILE, "settings.toml", "fewshot.json", "tensorboard/events"):
        (folder / name).write_text(name)
    return folder


def files_of(run):
    return {PROMPT_FILE: run / PROMPT_FILE}


CARD = "---\nlibrary_name: coop\n---\n# A card\n"


def test_push_makes_the_repository_and_sends_prompt_and_card(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    pushed = push(files_of(run), CARD, "alice/flowers", "first")
    assert pushed.url == f"{hub.url}/alice/flowers" and pushed.files == ("README.md", PROMPT_FILE)
    repo = hub.repos["alice/flowers"]
    assert repo.branches == {"main": pushed.commit} and not repo.private
    assert repo.commits[pushed.commit] == {".gitattributes": b"", "README.md": CARD.encode(), PROMPT_FILE: PROMPT_FILE.encode()}
    assert prompt_path("alice/flowers").name == pushed.commit

    again = push(files_of(run), CARD + "more", "alice/flowers@new", "second")
    assert again.url == f"{hub.url}/alice/flowers/tree/new"
    assert repo.branches == {"main": pushed.commit, "new": again.commit}
    assert repo.commits[again.commit]["README.md"] == f"{CARD}more".encode()


def test_push_to_a_private_repository(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    for _ in range(2):  # and again, private as before
        push(files_of(run), CARD, "alice/secret", "m", private=True)
    assert hub.repos["alice/secret"].private


def test_what_cannot_be_pushed(hub, run, monkeypatch):
    with pytest.raises(UsageError, match=r"needs a login.*HF_TOKEN"):
        push(files_of(run), CARD, "alice/flowers", "m")
    assert not hub.asked
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    with pytest.raises(UsageError, match='"flowers" is not a hub name'):
        push(files_of(run), CARD, "flowers", "m")
    with pytest.raises(CoopError, match=r'answered 403 for "bob/flowers": You don.t have the rights.*hf auth whoami'):
        push(files_of(run), CARD, "bob/flowers", "m")
    with pytest.raises(CoopError, match=r'^"alice/flowers": Invalid metadata in README.md'):
        push(files_of(run), "---\na: [\n---\n", "alice/flowers", "m")
    with pytest.raises(UsageError, match='"alice/flowers" already exists and is public'):
        push(files_of(run), CARD, "alice/flowers", "m", private=True)
    assert PROMPT_FILE not in hub.repos["alice/flowers"].commits[hub.repos["alice/flowers"].branches["main"]]
    monkeypatch.setenv("HF_TOKEN", "hf_mallory")
    with pytest.raises(CoopError, match="answered 401"):
        push(files_of(run), CARD, "alice/flowers", "m")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CoopError, match=f"^{hub.url} cannot be reached"):
        push(files_of(run), CARD, "alice/flowers", "m")
