"""Compute class features from class names and prompts: one cached path for hand-written and learned prompts.

Prompts are encoded in parts that depend on their number alone, which the processes of a job share out: the same bytes come of
one process and of many.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CoopError
from ..parallel import gather, gather_rows, world
from .backbone import Backbone
from .cache import FeatureCache
from .image_features import OnProgress
from .integrity import check_features
from .prompts import ContextSettings, context_prompts, hand_written_prompts
from .text_encoder import TextEncoder

ROWS_AT_ONCE = 1 << 15  # rows that are encoded at once: memory does not grow with the number of classes
ROWS_OF_A_PROMPT = 8  # in a token tree, the most on average beside a context of its own; elsewhere it may take all positions

Part = tuple[Any, ...]


def hand_written_features(
    backbone: Backbone,
    templates: Sequence[str],
    class_names: Sequence[str],
    cache: FeatureCache | None = None,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """Compute class features [K, p] of hand-written prompts.

    With several templates (ensembling): the mean of their normalised text features, normalised again
    (CLIP, Section 3.1.4). Cached features are not computed again. `on_progress` gets (templates done, all templates).
    """

    def encode() -> Tensor:
        encoder = backbone.text_encoder
        total = torch.zeros(len(class_names), backbone.feature_width, device=backbone.device)
        classes = _parts(encoder, len(class_names))
        todo = [(template, part) for template in templates for part in classes]

        def features_of(template: str, part: slice) -> Tensor:
            prompts = hand_written_prompts(backbone.tokenizer, template, class_names[part], encoder.max_length)
            return encoder.encode(prompts)

        for done, ((_, part), features) in enumerate(_in_turn(features_of, todo, backbone.feature_width), 1):
            total[part] += features.to(total.device)
            if on_progress and done % len(classes) == 0:
                on_progress(done // len(classes), len(templates))
        return F.normalize(total / len(templates), dim=-1)

    return _kept(cache, [backbone.model_key, list(templates), list(class_names)], class_names, encode)


def context_features(
    backbone: Backbone,
    context: Tensor,
    settings: ContextSettings,
    class_names: Sequence[str],
    cache: FeatureCache | None = None,
) -> Tensor:
    """Compute class features [K, p] of a learned context, float32 [M, d], or [K, M, d] with one per class.

    Cached features are not computed again.
    """

    def encode() -> Tensor:
        encoder = backbone.text_encoder
        prompts = context_prompts(backbone.tokenizer, settings, class_names, encoder.max_length)
        on_device = context.to(backbone.device)

        def features_of(part: slice) -> Tensor:
            return encoder.encode(prompts[part], on_device)

        parts = _parts(encoder, len(prompts), settings.n_ctx if settings.csc else 0)
        turns = _in_turn(features_of, [(part,) for part in parts], backbone.feature_width)
        return torch.cat([features for _, features in turns])

    numbers = hashlib.blake2b(context.flatten().numpy().data).hexdigest()
    about = [backbone.model_key, numbers, asdict(settings), list(class_names)]
    return _kept(cache, about, class_names, encode)


def _parts(encoder: TextEncoder, n_classes: int, n_own: int = 0) -> list[slice]:
    """The classes that are encoded at once, where each has `n_own` context vectors of its own."""
    size = max(1, ROWS_AT_ONCE // (ROWS_OF_A_PROMPT + n_own if encoder.tower.causal else encoder.max_length))
    return [slice(start, min(start + size, n_classes)) for start in range(0, n_classes, size)]


def _in_turn(encode: Callable[..., Tensor], todo: Sequence[Part], width: int) -> Iterator[tuple[Part, Tensor]]:
    """Yield each part with its features [k, p], in order; the processes of a job take turns, and all get all.

    A part is what `encode` takes; its last entry says which classes it is of.
    """
    team = world()
    for first in range(0, len(todo), team.size):
        turn = todo[first : first + team.size]
        if team.size == 1:
            yield turn[0], encode(*turn[0])
            continue
        own, failed = torch.empty(0, width), None
        try:
            if team.rank < len(turn):
                own = encode(*turn[team.rank]).cpu()
        except CoopError as error:  # a name too long: all fail alike, for whoever catches it must not work on alone
            failed = error
        reasons = gather(failed and str(failed))
        if any(reasons):
            raise failed or CoopError(next(filter(None, reasons)))
        counts = [part[-1].stop - part[-1].start for part in turn]
        features = gather_rows(own, counts + [0] * (team.size - len(turn)))
        yield from zip(turn, features.split(counts), strict=True)


def _kept(
    cache: FeatureCache | None, about: Sequence[object], class_names: Sequence[str], encode: Callable[[], Tensor]
) -> Tensor:
    """Get class features [K, p] from the cache, keyed by what they are `about`; or compute and keep them.

    The processes of a job compute them together, unless all know them. Raises CoopError, naming the class, for numbers that
    are not finite.
    """
    key = hashlib.blake2b(json.dumps(about).encode(), digest_size=16).digest()
    known = cache.get([key]).get(key) if cache else None
    if all(gather(known is not None)) and known is not None:
        return torch.from_numpy(known.copy()).view(len(class_names), -1)
    with torch.inference_mode():
        features = encode().cpu()
    check_features(features, "class", class_names)
    if cache:
        cache.put({key: features.flatten().numpy()})
    return features.clone()  # outside inference mode: usable wherever a tensor is
