"""Tokens as readable text, and what tokenizers of several families do around and within a text."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, PreTrainedTokenizerBase


def whole_words(tokenizer: CLIPTokenizer) -> dict[int, str]:
    """Find the tokens that are whole words, by id: letters only, and the word's own tokenization.

    Endings of longer words are among them: "ing" is one token both alone and at the end of "painting".
    """
    texts = {token_id: readable_token(tokenizer, token_id) for token_id in sorted(tokenizer.get_vocab().values())}
    words = {token_id: text for token_id, text in texts.items() if text.isalpha()}
    inside = [within(tokenizer, word) for word in words.values()]
    tokens = tokenizer(inside, add_special_tokens=False).input_ids if words else []
    return {token_id: word for (token_id, word), made in zip(words.items(), tokens, strict=True) if made == [token_id]}


def readable_token(tokenizer: CLIPTokenizer, token_id: int) -> str:
    """Format a token as text; a piece that does not end a word gets a trailing hyphen: "photo", "phot-".

    Bytes that are not valid text, and unprintable letters, become escapes: "\\xc3-".
    """
    token = str(tokenizer.convert_ids_to_tokens(token_id))
    if token in tokenizer.all_special_tokens:
        return token
    if not _is_byte_level(tokenizer):  # WordPiece marks pieces within a word, SentencePiece the beginning of one
        return f"-{token[2:]}" if token.startswith("##") else token.removeprefix("▁") or token
    ends_word = token.endswith("</w>")
    to_byte = _letter_bytes()
    text = bytes(to_byte[letter] for letter in token.removesuffix("</w>")).decode("utf-8", errors="backslashreplace")
    text = "".join(c if c.isprintable() and not c.isspace() else f"\\x{ord(c):02x}" for c in text)
    return text if ends_word else f"{text}-"


def ends_of(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids at the beginning and the end of every text: SOS and EOS in CLIP; nothing and EOS in SigLIP."""
    ends = tuple(tokenizer("").input_ids)
    return ends[:-1], ends[-1:]


def within(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text as it must be tokenized when something precedes it: some tokenizers tell " cat" from "cat" (SigLIP 2)."""
    alone, spaced, behind = (tokenizer(words, add_special_tokens=False).input_ids for words in ("cat", " cat", "a cat"))
    return f" {text}" if behind[1:] == spaced != alone else text


def lower_case(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the tokenizer lower-case: SigLIP 2 was trained on lower-cased text, and its files do not say so.

    Source: big_vision's `lower | tok(length=64, model=gemma, bos=no, eos=sticky)`.
    """
    from tokenizers import normalizers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend and backend.encode("CAT").ids != backend.encode("cat").ids:
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *filter(None, [backend.normalizer])])


def byte_letters() -> dict[int, str]:
    """Map each byte to the letter that byte-level BPE writes for it; printable ones are themselves (GPT-2's encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    return str(tokenizer.convert_ids_to_tokens(int(tokenizer.convert_tokens_to_ids("a</w>") or 0))) == "a</w>"


@cache
def _letter_bytes() -> dict[str, int]:
    return {letter: byte for byte, letter in byte_letters().items()}
