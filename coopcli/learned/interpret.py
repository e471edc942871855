"""What was learned, in words: tokens near the learned vectors, and words that the class features moved towards.

Source of the first: CoOp, Section 4.3, with the closest rows of the same model's token embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..choices import Metric
from ..clip.backbone import Backbone
from ..clip.cache import FeatureCache
from ..clip.class_features import hand_written_features
from ..clip.templates import DEFAULT_TEMPLATE
from ..clip.tokens import readable_token, whole_words
from ..errors import UsageError
from ..names import distinct
from ..version import __version__
from .applied import learned_features
from .prompt import LearnedPrompt

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

T = TypeVar("T")
SAMPLE = 1024  # tokens to measure the spacing on: shares are then right to 1 or 2 %
ROWS = 256  # of distances to a whole vocabulary at a time: 50 MB for 49,408 tokens
SPARE = 64  # tokens beyond the wanted ones that the rough search may mistake for one of these
WORDS = 2048  # words to encode at a time
MOST_KEPT = 1 << 15  # vectors whose nearest tokens the cache keeps; those of 21,841 contexts would be one entry of 75 MB


@dataclass(frozen=True, slots=True)
class NearToken:
    """A token near a context vector, and its distance from it."""

    token: str
    token_id: int
    distance: float


def nearest_tokens(
    context: Tensor,
    token_embedding: Tensor,
    tokenizer: CLIPTokenizer,
    top: int,
    metric: Metric = "euclidean",
    among: Sequence[int] | None = None,
) -> list[list[NearToken]]:
    """For each context vector the `top` nearest tokens, nearest first; of all, or `among` these token ids.

    `context` is [R, d], `token_embedding` [V, d]. Distances are computed in float64: close ones keep their order.
    """
    table = _Table.of(token_embedding, metric, among)
    ids = list(among) if among is not None else range(len(table.exact))
    texts: dict[int, str] = {}
    nearest = []
    for vectors in _rows(context, metric).split(ROWS):
        distances, rows = table.nearest(vectors, min(top, len(table.exact)))
        for row in set(rows.flatten().tolist()) - texts.keys():
            texts[row] = readable_token(tokenizer, ids[row])
        for of_vector in zip(distances.tolist(), rows.tolist(), strict=True):
            nearest.append([NearToken(texts[row], ids[row], far) for far, row in zip(*of_vector, strict=True)])
    return nearest


@dataclass(frozen=True)
class _Table:
    """Token embeddings to search: [V, d] in float64, and in float32 with half their squared lengths [V].

    Twice those, less twice the products with a vector, order tokens as their squared distances do; for cosines all are 0.
    """

    metric: Metric
    exact: Tensor
    rough: Tensor
    halves: Tensor
    longest: Tensor  # of the lengths of all

    @classmethod
    def of(cls, token_embedding: Tensor, metric: Metric, among: Sequence[int] | None) -> _Table:
        exact = _rows(token_embedding, metric, among)
        rough = exact.float()
        halves = torch.zeros(len(rough)) if metric == "cosine" else rough.square().sum(dim=1) / 2
        return cls(metric, exact, rough, halves, exact.norm(dim=1).max())

    def nearness(self, rough_vectors: Tensor) -> Tensor:
        """What orders the tokens [R, V] for vectors [R, d], largest first, up to the rounding of float32."""
        return rough_vectors @ self.rough.T - self.halves

    def nearest(self, vectors: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """Distances and rows [R, top] of the tokens nearest to some vectors, float64 [R, d].

        They are computed exactly for the tokens that a rough search leaves; and for all tokens where it might, by its
        rounding, have lost one of the nearest.
        """
        candidates = self.nearness(vectors.float()).topk(min(top + SPARE, len(self.exact)), dim=1)
        near = self._distances(vectors[:, None], self.exact[candidates.indices])[:, 0].topk(top, dim=1, largest=False)
        distances, rows = near.values, candidates.indices.gather(1, near.indices)
        if candidates.indices.shape[1] < len(self.exact):
            lengths = vectors.norm(dim=1)
            relative = (vectors.shape[1] + 8) * 2.0**-23  # twice what it can be at most
            rounding = relative * self.longest * (lengths + self.longest)
            others = candidates.values[:, -1] + rounding  # at most as near as this
            farther = 1 - others if self.metric == "cosine" else (lengths.square() - 2 * others).clamp(min=0).sqrt()
            for row in (~(distances[:, -1] < farther)).nonzero()[:, 0].tolist():
                near = self._distances(vectors[row : row + 1], self.exact).topk(top, dim=1, largest=False)
                distances[row], rows[row] = near.values[0], near.indices[0]
        return distances, rows

    def _distances(self, vectors: Tensor, tokens: Tensor) -> Tensor:
        if self.metric == "cosine":
            return (1 - vectors @ tokens.mT).clamp(min=0)
        return torch.cdist(vectors, tokens, compute_mode="donot_use_mm_for_euclid_dist")


@dataclass(frozen=True)
class TokenSpacing:
    """How far tokens are from each other: of each of n, the distance to the nearest other token, float64 [n], ascending."""

    distances: Tensor

    @property
    def median(self) -> float:
        """Half of the tokens have another token nearer than this."""
        return float(self.distances.quantile(0.5))

    def share_below(self, distance: float) -> float:
        """The share of tokens, in [0, 1], that have another token nearer than this: near 1, "nearest" means nothing."""
        return float((self.distances < distance).double().mean())


def token_spacing(token_embedding: Tensor, metric: Metric = "euclidean", among: Sequence[int] | None = None) -> TokenSpacing:
    """The spacing of all tokens, or `among` these ids, by at most SAMPLE of them spread evenly over the vocabulary.

    `token_embedding` is [V, d].
    """
    table = _Table.of(token_embedding, metric, among)
    sample = torch.arange(0, len(table.exact), -(-len(table.exact) // SAMPLE))
    distances = []
    for rows in sample.split(ROWS):
        nearness = table.nearness(table.rough[rows])  # to find which is nearest; how near is computed in float64
        nearness[torch.arange(len(rows)), rows] = -torch.inf
        vectors, nearest = table.exact[rows], table.exact[nearness.argmax(dim=1)]
        distances.append(
            (1 - (vectors * nearest).sum(dim=1)).clamp(min=0) if metric == "cosine" else (vectors - nearest).norm(dim=1)
        )
    return TokenSpacing(torch.cat(distances).sort().values)


def _rows(vectors: Tensor, metric: Metric, among: Sequence[int] | None = None) -> Tensor:
    """The vectors in float64 on the CPU, of length 1 where only their directions count."""
    rows = vectors.detach().double().cpu()
    rows = rows if among is None else rows[list(among)]
    return F.normalize(rows, dim=1) if metric == "cosine" else rows


@dataclass(frozen=True)
class Movement:
    """Where a learned class feature t' went from the hand-written one t.

    `similarity` is cos(t, t'). `towards` are the words w whose gain cos(t', w) - cos(t, w), less the mean of it over the
    classes, is largest and above 0, with what that is.
    """

    similarity: float
    towards: list[tuple[str, float]]


def movements(
    learned: Tensor, hand_written: Tensor, words: Sequence[str], word_features: Tensor, top: int, n_classes: int | None = None
) -> tuple[list[tuple[str, float]], list[Movement]]:
    """The `top` words that all classes together moved towards, with their mean gains, and the movement of each class.

    Of the first `n_classes`; None: of all. Features are L2-normalised: `learned` and `hand_written` [K, p], `word_features`
    [V, p]. What all classes have in common adds the same to each logit of an image and changes no prediction, so it is kept
    apart from each class's own.
    """
    moves = learned - hand_written
    common = moves.mean(dim=0)

    def gaining(some: Tensor) -> list[list[tuple[str, float]]]:
        best = (some @ word_features.T).topk(min(top, len(words)))
        rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [[(words[word], gain) for gain, word in zip(*row, strict=True) if gain > 0] for row in rows]

    similarities = (learned * hand_written).sum(dim=1)[:n_classes].tolist()
    towards = [words for some in moves[:n_classes].split(ROWS) for words in gaining(some - common)]
    return gaining(common[None])[0], [Movement(*of_class) for of_class in zip(similarities, towards, strict=True)]


def encode_words(
    backbone: Backbone,
    words: Sequence[str],
    template: str = DEFAULT_TEMPLATE,
    cache: FeatureCache | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """The features of one-word prompts such as "a photo of a WORD.", L2-normalised float32 [V, p], kept in the cache."""
    features = []
    for start in range(0, len(words), WORDS):
        features.append(hand_written_features(backbone, [template], words[start : start + WORDS], cache))
        on_progress(min(start + WORDS, len(words)), len(words))
    return torch.cat(features)


Gains = list[tuple[str, float]]  # words with their gains in similarity, largest first


@dataclass(frozen=True)
class Lexicon:
    """What contexts of one model are read by: its tokens, all or whole words only, and how far they lie from each other.

    `word_features` [V, p] are those of the one-word prompts of all whole words; None where no movement is asked for.
    """

    backbone: Backbone
    metric: Metric
    words_only: bool
    spacing: TokenSpacing
    cache: FeatureCache
    word_features: Tensor | None = None

    @cached_property
    def words(self) -> dict[int, str]:
        """The model's whole words by token id."""
        return words_of(self.backbone, self.cache)

    @property
    def among(self) -> list[int] | None:
        """The ids of the tokens that contexts are read by; None: all."""
        return list(self.words) if self.words_only else None


@dataclass(frozen=True)
class Reading:
    """A learned prompt in words.

    `near` holds the nearest tokens of each vector by class (None: one context for all), `movements` what all class
    features moved towards and where each of them went. Both may be of the first classes alone.
    """

    prompt: LearnedPrompt
    spacing: TokenSpacing
    near: dict[str | None, list[list[NearToken]]]
    movements: tuple[Gains, list[Movement]] | None

    def farther_than(self, vector: Sequence[NearToken]) -> float:
        """Give the share of tokens, in [0, 1], that have another token nearer than the vector has its nearest."""
        return self.spacing.share_below(vector[0].distance)


def lexicon_of(
    backbone: Backbone,
    metric: Metric = "euclidean",
    words: bool = False,
    template: str | None = None,
    cache: FeatureCache | None = None,
    on_words: Callable[[int, int], None] = lambda done, total: None,
) -> Lexicon:
    """Prepare a model for reading contexts: by all tokens or whole `words` only; with a `template`, for movements too.

    What the `cache` holds of it is not computed again. Raises UsageError for whole words of a vocabulary
    without any.
    """
    cache = cache or FeatureCache(None)
    features = None
    if template is not None:
        features = encode_words(backbone, list(words_of(backbone, cache).values()), template, cache, on_words)

    def measure() -> list[float]:
        among = list(words_of(backbone, cache)) if words else None
        if among == []:
            raise UsageError(f'the vocabulary of "{backbone.name}" holds no whole words; use --pieces')
        distances = token_spacing(backbone.text_encoder.token_embedding, metric, among).distances
        return [float(distance) for distance in distances]

    distances = torch.tensor(_kept(cache, ["token spacing", backbone.model_key, metric, words], measure), dtype=torch.double)
    return Lexicon(backbone, metric, words, TokenSpacing(distances), cache, features)


def words_of(backbone: Backbone, cache: FeatureCache) -> dict[int, str]:
    """Find the whole words of a model's vocabulary by token id; what the cache holds is not searched for again."""
    words = _kept(cache, ["whole words", backbone.fingerprint], lambda: list(whole_words(backbone.tokenizer).items()))
    return dict(words)


def _kept(cache: FeatureCache, about: Sequence[object], make: Callable[[], T]) -> T:
    """Get what was made before, from the cache; or make it and keep it."""
    about = [__version__, *about]
    if (known := cache.recall(about)) is not None:
        return known
    made = make()
    cache.remember(about, made)
    return made


def read_prompt(
    prompt: LearnedPrompt, lexicon: Lexicon, top: int, template: str | None = None, n_classes: int | None = None
) -> Reading:
    """Find the `top` nearest tokens of each vector, and with a `template` where the class features moved from it.

    Of the first `n_classes`; None: of all. Nearest tokens that were found before come from the lexicon's cache, without the
    model.
    """
    moved, backbone, cache = None, lexicon.backbone, lexicon.cache
    if template is not None and lexicon.word_features is not None:
        before = hand_written_features(backbone, [template], prompt.class_names, cache)
        after = learned_features(backbone, prompt, prompt.class_names, cache)
        moved = movements(after, before, list(lexicon.words.values()), lexicon.word_features, top, n_classes)

    def find() -> dict[str | None, list[list[NearToken]]]:
        return nearest_by_class(prompt, backbone, top, lexicon.metric, lexicon.among, n_classes)

    def texts() -> list[list[tuple[str, int, float]]]:
        return [[astuple(token) for token in vector] for vectors in find().values() for vector in vectors]

    context = prompt.context[:n_classes] if prompt.settings.csc else prompt.context
    if context.shape[:-1].numel() > MOST_KEPT:
        return Reading(prompt, lexicon.spacing, find(), moved)
    numbers = hashlib.blake2b(context.flatten().numpy().data).hexdigest()
    about = ["nearest tokens", backbone.model_key, numbers, list(context.shape), top, lexicon.metric, lexicon.words_only]
    near = [[NearToken(*token) for token in vector] for vector in _kept(cache, about, texts)]
    return Reading(prompt, lexicon.spacing, _by_class(prompt, near), moved)


def nearest_by_class(
    prompt: LearnedPrompt,
    backbone: Backbone,
    top: int,
    metric: Metric = "euclidean",
    among: Sequence[int] | None = None,
    n_classes: int | None = None,
) -> dict[str | None, list[list[NearToken]]]:
    """The nearest tokens of each context vector by class, of the first `n_classes`; None for one context for all."""
    contexts = prompt.context[:n_classes].flatten(0, 1) if prompt.settings.csc else prompt.context
    near = nearest_tokens(contexts, backbone.text_encoder.token_embedding, backbone.tokenizer, top, metric, among)
    return _by_class(prompt, near)


def _by_class(prompt: LearnedPrompt, near: list[list[NearToken]]) -> dict[str | None, list[list[NearToken]]]:
    """Sort what was found for each vector by class; None for one context for all."""
    n_ctx = prompt.settings.n_ctx
    owners: Sequence[str | None] = distinct(prompt.class_names)[: len(near) // n_ctx] if prompt.settings.csc else (None,)
    return {owner: near[k * n_ctx : (k + 1) * n_ctx] for k, owner in enumerate(owners)}
