"""`coop push`: a learned prompt and its card to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import line, print_json, say, status


def push(
    prompt: options.PromptArgument,
    target: Annotated[
        str, typer.Argument(metavar="USER/NAME[@BRANCH]", help="The model repository; created if it does not exist yet.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    license: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Licence for the card, e.g. mit or cc-by-4.0.")
    ] = None,
    message: Annotated[str, typer.Option("--message", metavar="TEXT", help="Commit message.")] = "Push with coop",
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    json: options.JsonOption = False,
) -> None:
    """Share a learned prompt: send it with its model card to the Hugging Face hub.

    Every command then takes USER/NAME, or USER/NAME@REVISION, where it takes a prompt. What else is in a run folder stays
    here. The card is made from the run folder; a README.md in it that you made your own is sent as it is. Needs
    `hf auth login`, or HF_TOKEN.
    """
    from ..files import HEAD_FILE, PROMPT_FILE, TUNED_FOLDER
    from ..hub import prepare_hub
    from ..hub import push as push_prompt
    from ..learned.card import card_of
    from ..learned.head import Head
    from ..learned.prompt import load_learned
    from .setup import find_prompt

    path = find_prompt(prompt)
    learned = load_learned(path)
    is_head = isinstance(learned, Head)
    kind, folder = HEAD_FILE if is_head else PROMPT_FILE, path if path.is_dir() else path.parent
    files = {kind: path / kind if path.is_dir() else path}  # whatever its name here, on the hub it has this one
    if is_head and Path(learned.model) == folder / TUNED_FOLDER:
        files |= {f"{TUNED_FOLDER}/{part.name}": part for part in sorted((folder / TUNED_FOLDER).iterdir())}
    prepare_hub()  # before the card is made, with the hub's library
    card = card_of(path, learned, target, license)
    with status(f"pushing to {target}"):
        pushed = push_prompt(files, card, target, message, private)
    if json:
        print_json({"command": "push", "prompt": prompt, "url": pushed.url, "commit": pushed.commit, "files": pushed.files})
    else:
        line(pushed.url)
        say(f"to use it: coop eval {target} DATA")
