"""`coop interpret`: the tokens nearest to the learned vectors."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from . import options
from .console import out, print_json, shown
from .options import Device, Dtype


def interpret(
    prompt: options.PromptArgument,
    top: Annotated[int, typer.Option("--top", min=1, help="Tokens to show for each vector.")] = 5,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="ID|FOLDER", rich_help_panel=options.MODEL,
            help="The same model in another place; by default the one that the prompt names.",
        ),
    ] = None,
    pickles: options.PicklesOption = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """The tokens nearest to each learned vector, by Euclidean distance in the same model's token embedding.

    A trailing hyphen marks a token that does not end a word: "phot-" begins one, "photo" is whole or ends one.
    """
    from ..artifact import load_prompt
    from ..evaluation import check_backbone
    from ..interpret import nearest_tokens
    from .setup import find_prompt, open_backbone

    learned = load_prompt(find_prompt(prompt))
    backbone = open_backbone(model or learned.model, None if model else learned.revision, Device.cpu, Dtype.float32, pickles)
    check_backbone(learned, backbone)
    context = learned.context if learned.settings.csc else learned.context[None]
    owners = learned.class_names if learned.settings.csc else (None,)
    near = [nearest_tokens(of_class, backbone.text_encoder.token_embedding, backbone.tokenizer, top) for of_class in context]
    if json:
        print_json(
            {
                "command": "interpret",
                "prompt": prompt,
                "model": backbone.name,
                "contexts": [
                    {"class": owner, "vectors": [[asdict(token) for token in vector] for vector in of_class]}
                    for owner, of_class in zip(owners, near, strict=True)
                ],
            }
        )
        return
    for owner, of_class in zip(owners, near, strict=True):
        if owner is not None:
            out.print(f"[bold]{shown(owner)}[/bold]")
        table = Table(box=None, pad_edge=False)
        table.add_column("vector", justify="right")
        for rank in range(len(of_class[0])):
            table.add_column("nearest token (distance)" if rank == 0 else str(rank + 1))
        for number, vector in enumerate(of_class, 1):
            table.add_row(str(number), *(f"{shown(token.token)} ({token.distance:.3f})" for token in vector))
        out.print(table)
