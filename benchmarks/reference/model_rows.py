"""Rows about the model: zero-shot and ensemble, rates, import of a checkpoint, interpretation."""

from __future__ import annotations

import runpy
import sys

import torch

from coopcli.clip.class_features import hand_written_features
from coopcli.learned.classifier import learned_features
from coopcli.learned.interpret import nearest_tokens
from coopcli.learned.reference import import_prompt, read_checkpoint
from coopcli.learning.recipe import Recipe, learning_rate

from .bench import Bench, Row, compare_logits, reference_logits
from .shims import quiet
from .training_rows import EPOCHS, Variant, train


def hand_written(bench: Bench) -> list[Row]:
    rows = []
    for what, kind in (("zero-shot, its template", "ZeroshotCLIP"), ("ensemble, its templates", "ZeroshotCLIP2")):
        trainer = bench.trainer(trainer=kind)
        import trainers.zsclip

        templates = getattr(trainer, "templates", [trainers.zsclip.CUSTOM_TEMPLATES["EuroSAT"]])
        features = hand_written_features(bench.backbone, templates, bench.dataset.class_names)
        ours = bench.backbone.logit_scale * bench.test_features @ features.T
        labels = [item.label for item in bench.dataset.splits["test"]]
        rows.append(Row(what, compare_logits(ours, reference_logits(trainer), labels)))
    return rows


def rates(bench: Bench) -> list[Row]:
    from dassl.optim import build_lr_scheduler

    worst, n_rates = 0.0, 0
    for epochs in (50, 100, 200):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.002)
        schedule = build_lr_scheduler(optimizer, bench.config("OPTIM.MAX_EPOCH", epochs).OPTIM)
        for epoch in range(epochs):
            theirs = optimizer.param_groups[0]["lr"]
            worst = max(worst, abs(learning_rate(Recipe(epochs=epochs), epoch) / theirs - 1))
            n_rates += 1
            optimizer.step()
            schedule.step()
    return [Row(f"learning rates, {n_rates} epochs of 50, 100 and 200", f"relative difference {worst:.1e} at most")]


def checkpoint(bench: Bench) -> list[Row]:
    rows = []
    for variant in (Variant(), Variant("middle"), Variant(csc=True)):
        done, names = train(bench, variant), bench.dataset.class_names
        saved = read_checkpoint(done.folder / "prompt_learner" / f"model.pth.tar-{EPOCHS}")
        prompt = import_prompt(saved, bench.backbone, names, bench.dataset.folders, variant.position)
        features = learned_features(bench.backbone, prompt, names)
        ours = bench.backbone.logit_scale * bench.test_features @ features.T
        labels = [item.label for item in bench.dataset.splits["test"]]
        rows.append(Row(f"import of its checkpoint, {variant.name}", compare_logits(ours, done.their_logits, labels)))
    return rows


def interpretation(bench: Bench) -> list[Row]:
    """Its interpret_prompt.py, which takes the table of RN50 whatever was trained, with the right table in that place."""
    from clip.simple_tokenizer import SimpleTokenizer

    top = 5
    done, backbone = train(bench, Variant()), bench.backbone
    arguments = sys.argv
    sys.argv = ["interpret_prompt.py", str(done.folder / "prompt_learner" / f"model.pth.tar-{EPOCHS}"), str(top)]
    try:
        with quiet() as printed:
            runpy.run_path(str(bench.coop / "interpret_prompt.py"), run_name="__main__")
    finally:
        sys.argv = arguments
    lines = [line.partition(": ")[2] for line in printed.getvalue().splitlines() if line.partition(":")[0].isdigit()]
    ours = nearest_tokens(done.theirs, backbone.text_encoder.token_embedding, backbone.tokenizer, top)
    decoder, words, worst = SimpleTokenizer().decoder, 0, 0.0
    for line, near in zip(lines, ours, strict=True):
        their_words, their_distances = (eval(part) for part in (line[: line.index("]") + 1], line[line.index("]") + 2 :]))
        words += sum(decoder[token.token_id] == word for token, word in zip(near, their_words, strict=True))
        worst = max(worst, *(abs(token.distance - float(far)) for token, far in zip(near, their_distances, strict=True)))
    outcome = f"{words} of {top * len(ours)} equal, distances within {worst:.0e} (it prints four digits)"
    return [Row(f"nearest tokens of {len(ours)} vectors, {top} each, with the right table", outcome)]
