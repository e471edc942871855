"""Prompts as token sequences, hand-written or with a learnable context (CoOp, Section 3.2).

A prompt is a tuple of integers `[SOS] ... [EOS]`. A non-negative integer is a token; the negative integer `-1 - j` is
row j of the context, the one tensor that learns. So hand-written and learned prompts are the same kind of thing, and
one text encoder serves both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from ..choices import Position
from ..errors import CoopError, UsageError
from ..names import readable_name
from .tokens import ends_of, within

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTokenizer

PromptTokens = tuple[int, ...]
INIT_STD = 0.02  # standard deviation of the random initial context: the reference's trainers/coop.py


@dataclass(frozen=True)
class ContextSettings:
    """Form of a learned context: M vectors, the class token position, one context or one per class (`csc`)."""

    n_ctx: int = 16
    position: Position = "end"
    csc: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError for no vectors, or an unknown position."""
        if self.n_ctx < 1:
            raise UsageError(f"a context needs 1 vector or more, not {self.n_ctx} (--context-length)")
        if self.position not in get_args(Position):
            raise UsageError(f'unknown position "{self.position}"; choose {", ".join(get_args(Position))}')

    def shape(self, n_classes: int, width: int) -> tuple[int, ...]:
        """The context's shape: (M, width), or class-specific (K, M, width)."""
        return (n_classes, self.n_ctx, width) if self.csc else (self.n_ctx, width)


def tokenize(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    """Tokenize a text, without SOS and EOS."""
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def hand_written_prompts(
    tokenizer: CLIPTokenizer, template: str, class_names: Sequence[str], max_length: int = 77
) -> list[PromptTokens]:
    """Build one prompt per class from a template such as "a photo of a {}.".

    Raises UsageError for a template without exactly one `{}`, CoopError for a prompt over `max_length` tokens.
    """
    if template.count("{}") != 1:
        raise UsageError(f'template "{template}" must contain {{}} exactly once, in place of the class name')
    texts = [template.replace("{}", readable_name(name)) for name in class_names]
    ends = ends_of(tokenizer)
    return [_enclosed(ends, tokenize(tokenizer, text), name, max_length) for text, name in zip(texts, class_names, strict=True)]


def context_prompts(
    tokenizer: CLIPTokenizer, settings: ContextSettings, class_names: Sequence[str], max_length: int = 77
) -> list[PromptTokens]:
    """Build one prompt per class around the learnable context (CoOp, Equations 2 and 3).

    `end` = context, name, "."; `middle` = first half, name, second half, "."; `front` = name, context, ".".
    Class k uses context rows 0..M-1, or kM..kM+M-1 when the context is class-specific.
    Raises CoopError for a prompt over `max_length` tokens.
    """
    if settings.n_ctx + 4 > max_length:  # SOS, a name, full stop, EOS
        raise UsageError(
            f"{settings.n_ctx} context vectors (--context-length) leave no room in the {max_length} tokens of a prompt"
        )
    ends, stop = ends_of(tokenizer), tokenize(tokenizer, ".")
    prompts = []
    for k, class_name in enumerate(class_names):
        name = readable_name(class_name)
        first_row = k * settings.n_ctx if settings.csc else 0
        context = [-1 - (first_row + m) for m in range(settings.n_ctx)]
        if settings.position == "end":
            # Tokenized together: punctuation at the end of a name merges with the full stop, as in the reference.
            body = context + tokenize(tokenizer, within(tokenizer, f"{name}."))
        else:
            before = settings.n_ctx // 2 if settings.position == "middle" else 0
            text = within(tokenizer, name) if before else name
            body = context[:before] + tokenize(tokenizer, text) + context[before:] + stop
        prompts.append(_enclosed(ends, body, class_name, max_length))
    return prompts


Ends = tuple[tuple[int, ...], tuple[int, ...]]


def _enclosed(ends: Ends, body: list[int], class_name: str, max_length: int) -> PromptTokens:
    begin, end = ends
    length = len(begin) + len(body) + len(end)
    if length > max_length:
        raise CoopError(
            f'class name "{class_name}" is too long: its prompt has {length} tokens and the model reads {max_length}; '
            "shorten the name (--classnames) or the context (--context-length)"
        )
    return (*begin, *body, *end)


def random_context(settings: ContextSettings, n_classes: int, width: int, seed: int) -> torch.Tensor:
    """Draw a context from N(0, 0.02): float32 [M, width], or [K, M, width] with each class drawn separately."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randn(settings.shape(n_classes, width), generator=generator) * INIT_STD


def word_context(
    tokenizer: CLIPTokenizer, token_embedding: torch.Tensor, words: str, n_classes: int, csc: bool
) -> torch.Tensor:
    """Make a context of the token embeddings of words: float32 [M, width], or [K, M, width] with all classes equal.

    `token_embedding` is the text tower's table, [vocabulary, width]. M is the number of tokens, not of words.
    Raises UsageError when the words hold no token.
    """
    import torch

    tokens = tokenize(tokenizer, readable_name(words))
    if not tokens:
        raise UsageError('--init needs at least one word, such as "a photo of a"')
    context = token_embedding.detach()[torch.tensor(tokens, device=token_embedding.device)].float().cpu()
    return context.expand(n_classes, *context.shape).clone() if csc else context
