import pytest
from families import bert_tokenizer, gemma_tokenizer, roberta_tokenizer

from coopcli.clip.prompts import tokenize
from coopcli.clip.tokens import byte_letters, readable_token, whole_words


def test_readable_tokens(tokenizer):
    def read(token):
        return readable_token(tokenizer, tokenizer.convert_tokens_to_ids(token))

    assert read("photo</w>") == "photo"
    assert read("pho") == "pho-"
    assert read("<|endoftext|>") == "<|endoftext|>"
    assert read("Ã") == "\\xc3-"  # half of a two-byte letter
    assert read("Ġ</w>") == "\\x20"  # a space
    everything = [readable_token(tokenizer, i) for i in range(len(tokenizer))]
    assert all(text.isprintable() and text.strip() and "</w>" not in text for text in everything)


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (bert_tokenizer, {"photo": "photo", "##a": "-a", "星": "星", "[CLS]": "[CLS]"}),
        (roberta_tokenizer, {"▁photo": "photo", "▁": "▁", "</s>": "</s>"}),
        (gemma_tokenizer, {"▁photo": "photo", "▁": "▁", "<eos>": "<eos>"}),
    ],
)
def test_readable_tokens_of_other_families(make, shown):
    tokenizer = make()
    assert {token: readable_token(tokenizer, tokenizer.convert_tokens_to_ids(token)) for token in shown} == shown
    everything = [readable_token(tokenizer, i) for i in range(len(tokenizer))]
    assert all(text.isprintable() and text.strip() for text in everything)
    assert {"cat", "in"} <= set(whole_words(tokenizer).values())


def test_every_byte_has_its_letter():
    letters = byte_letters()
    assert sorted(letters) == list(range(256)) and len(set(letters.values())) == 256


def test_whole_words_are_what_they_say(tokenizer):
    words = whole_words(tokenizer)
    assert {"photo", "red", "background"} <= set(words.values())
    assert not {"pho-", ".", "A", "3"} & set(words.values())
    for token_id, word in words.items():
        assert word.isalpha() and tokenize(tokenizer, word) == [token_id]
        assert tokenizer.convert_ids_to_tokens(token_id) == f"{word}</w>"
