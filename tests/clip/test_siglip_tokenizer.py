"""SigLIP's own tokenizer, which needs the extra coopcli[siglip]: without it one line names it, with it prompts are right."""

import importlib.util
import io
import json

import pytest
from families import WORDS, folder_of_family

from coopcli.clip.backbone import load_backbone
from coopcli.clip.prompts import ContextSettings, context_prompts, hand_written_prompts, tokenize
from coopcli.errors import CoopError

INSTALLED = importlib.util.find_spec("sentencepiece") is not None


def with_sentencepiece(folder, model):
    """The folder of a tiny SigLIP with a SentencePiece model, as google/siglip-base-patch16-224 is published."""
    folder_of_family("siglip", folder)
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(model)
    ends = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", "model_input_names": ["input_ids"]}
    config = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 64, **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.skipif(INSTALLED, reason="sentencepiece is installed")
def test_a_missing_package_is_named(tmp_path):
    with pytest.raises(CoopError, match=r"needs sentencepiece and protobuf: pip install 'coopcli\[siglip\]'"):
        load_backbone(with_sentencepiece(tmp_path, b"\0"))


@pytest.mark.skipif(not INSTALLED, reason="needs sentencepiece and protobuf (coopcli[siglip])")
def test_prompts_of_siglips_own_tokenizer(tmp_path):
    import sentencepiece

    model = io.BytesIO()
    text = iter([" ".join(WORDS), *WORDS] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=text, model_writer=model, vocab_size=200, pad_id=-1, eos_id=1, unk_id=2, bos_id=-1,
        hard_vocab_limit=False, minloglevel=2, user_defined_symbols=[f"<{i}>" for i in range(120)],
    )  # fmt: skip
    clip = load_backbone(with_sentencepiece(tmp_path, model.getvalue()), device="cpu")
    tokenizer, length = clip.tokenizer, clip.text_encoder.max_length
    assert tokenize(tokenizer, ".") == [] and tokenize(tokenizer, "A Cat.") == tokenize(tokenizer, "a cat")
    assert clip.text_encoder.tower.fill == tokenizer.pad_token_id == 1
    prompts = hand_written_prompts(tokenizer, "a photo of a {}.", ["Red_star"], length)
    assert list(prompts[0]) == tokenizer("a photo of a red star").input_ids and prompts[0][-1] == 1
    name = tokenize(tokenizer, "red star")
    for position, expected in {"end": [-1, -2, *name, 1], "middle": [-1, *name, -2, 1], "front": [*name, -1, -2, 1]}.items():
        assert list(context_prompts(tokenizer, ContextSettings(2, position), ["Red_star"], length)[0]) == expected
