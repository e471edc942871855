"""Tokens of a byte-level vocabulary as readable text."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def whole_words(tokenizer: CLIPTokenizer) -> dict[int, str]:
    """Find the tokens that are whole words, by id: letters only, and the word's own tokenization.

    Endings of longer words are among them: "ing" is one token both alone and at the end of "painting".
    """
    texts = {token_id: readable_token(tokenizer, token_id) for token_id in sorted(tokenizer.get_vocab().values())}
    words = {token_id: text for token_id, text in texts.items() if text.isalpha()}
    tokens = tokenizer(list(words.values()), add_special_tokens=False).input_ids if words else []
    return {token_id: word for (token_id, word), made in zip(words.items(), tokens, strict=True) if made == [token_id]}


def readable_token(tokenizer: CLIPTokenizer, token_id: int) -> str:
    """Format a token as text; a piece that does not end a word gets a trailing hyphen: "photo", "phot-".

    Bytes that are not valid text, and unprintable letters, become escapes: "\\xc3-".
    """
    token = str(tokenizer.convert_ids_to_tokens(token_id))
    if token in tokenizer.all_special_tokens:
        return token
    ends_word = token.endswith("</w>")
    to_byte = _letter_bytes()
    text = bytes(to_byte[letter] for letter in token.removesuffix("</w>")).decode("utf-8", errors="backslashreplace")
    text = "".join(c if c.isprintable() and not c.isspace() else f"\\x{ord(c):02x}" for c in text)
    return text if ends_word else f"{text}-"


def byte_letters() -> dict[int, str]:
    """Map each byte to the letter that byte-level BPE writes for it; printable ones are themselves (GPT-2's encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@cache
def _letter_bytes() -> dict[str, int]:
    return {letter: byte for byte, letter in byte_letters().items()}
