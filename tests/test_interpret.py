import torch

from coopcli.interpret import nearest_tokens, readable_token


def test_nearest_are_the_closest_rows(tokenizer):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(len(tokenizer), 6, generator=generator)
    context = torch.randn(3, 6, generator=generator)
    for vector, near in zip(context, nearest_tokens(context, table, tokenizer, top=7), strict=True):
        distances = [float(((vector - row).double() ** 2).sum() ** 0.5) for row in table]
        order = sorted(range(len(table)), key=distances.__getitem__)[:7]
        assert [token.token_id for token in near] == order
        assert all(abs(token.distance - distances[i]) < 1e-6 for token, i in zip(near, order, strict=True))


def test_a_tokens_own_vector_is_nearest_at_distance_zero(tokenizer):
    table = torch.randn(len(tokenizer), 6, generator=torch.Generator().manual_seed(0))
    (near,) = nearest_tokens(table[300:301], table, tokenizer, top=1)
    assert (near[0].token_id, near[0].distance) == (300, 0.0)


def test_readable_tokens(tokenizer):
    def read(token):
        return readable_token(tokenizer, tokenizer.convert_tokens_to_ids(token))

    assert read("photo</w>") == "photo"
    assert read("phot") == "phot-"
    assert read("<|endoftext|>") == "<|endoftext|>"
    assert read("Ã") == "\\xc3-"  # half of a two-byte letter
    assert read("Ġ</w>") == "\\x20"  # a space
    everything = [readable_token(tokenizer, i) for i in range(len(tokenizer))]
    assert all(text.isprintable() and text.strip() and "</w>" not in text for text in everything)
