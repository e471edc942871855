"""How near a device comes to the CPU, and to itself: measured here, judged by test_gpu.py and benchmarks/gpu.py.

Every function takes the device's name and returns numbers; none needs files, a tokenizer or a network.
"""

from __future__ import annotations

import copy
import logging

import torch
import torch.nn.functional as F

from coopcli.clip.prompts import ContextSettings, random_context
from coopcli.clip.text_encoder import TextEncoder
from coopcli.learning import fit, training
from coopcli.learning.recipe import Recipe
from coopcli.learning.training import TrainingState, TrainingTask, drawn_views, train_context

SOS, EOS, STOP, VOCABULARY = 1, 2, 3, 10_000
M = 4


def text_tower(width=64, heads=4, layers=3, vocabulary=VOCABULARY, seed=0):
    """A CLIPModel with a random text tower of these sizes and the smallest image tower."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    text = dict(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=heads, bos_token_id=SOS, eos_token_id=EOS, pad_token_id=EOS,
    )  # fmt: skip
    vision = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    # Larger weights than a fresh model's: small ones make all prompts alike and hide mistakes.
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=width, initializer_factor=4.0)
    return CLIPModel(config).eval().requires_grad_(False)


def prompts(n_classes, n_ctx=M, csc=False, position="end", longest=3, seed=0):
    """Prompts of classes whose names are 1 to `longest` random tokens."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for k in range(n_classes):
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        name = torch.randint(STOP + 1, VOCABULARY, (length,), generator=generator).tolist()
        context = [-1 - j for j in range(k * n_ctx * csc, k * n_ctx * csc + n_ctx)]
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        made.append((SOS, *context[:before], *name, *context[before:], STOP, EOS))
    return made


class Task:
    """A small training run: 7 classes, 40 images of 3 views, batches of 8."""

    n_classes, scale, batch = 7, 20.0, 8

    def __init__(self, csc=False, position="end", seed=5):
        self.model = text_tower()
        self.prompts = prompts(self.n_classes, csc=csc, position=position)
        shape = (self.n_classes, M, 64) if csc else (M, 64)
        self.start = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 0.02
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(40) % self.n_classes
        centres = torch.randn(self.n_classes, 1, 64, generator=generator)
        features = centres[self.labels] + torch.randn(40, 3, 64, generator=generator)
        self.features = drawn_views(F.normalize(features, dim=-1), 1)

    def encoder(self, device, dtype=torch.float32):
        return TextEncoder(copy.deepcopy(self.model).to(device, dtype))

    def train(self, device, epochs=6, optimizer="sgd", state=None, chunk=0, on_epoch=lambda state: None):
        recipe = Recipe(epochs=epochs, batch_size=self.batch, optimizer=optimizer)
        task = TrainingTask(self.prompts, self.features, self.labels, self.scale, recipe, 1, chunk)
        return train_context(self.encoder(device), task, state or TrainingState(self.start), on_epoch)


def far(a, b):
    """How far tensors lie apart, relative to the second."""
    return float((a.cpu().double() - b.cpu().double()).norm() / b.cpu().double().norm())


def features(device, csc=False, position="end", dtype=torch.float32):
    """Largest difference of class features from the CPU's in float32."""
    task = Task(csc, position)
    with torch.inference_mode():
        exact = task.encoder("cpu").encode(task.prompts, task.start)
    with torch.inference_mode():
        made = task.encoder(device, dtype).encode(task.prompts, task.start.to(device))
    return float((made.cpu() - exact).abs().max())


def gradient(device, csc=False, position="end", dtype=torch.float32):
    """Relative difference of the context's gradient from the CPU's in float32."""
    task = Task(csc, position)

    def of(place, kind):
        context = task.start.to(place).requires_grad_()
        text = task.encoder(place, kind).encode(task.prompts, context)
        images = task.features(0).to(place)
        F.cross_entropy(task.scale * images @ text.T, task.labels.to(place)).backward()
        return context.grad

    exact = of("cpu", torch.float32)
    return far(of(device, dtype), exact)


def whole_fit(device, csc=False, optimizer="sgd"):
    """Relative difference of a learned context from the CPU's, by the way that it went; largest difference of a loss."""
    task = Task(csc)
    exact, made = task.train("cpu", optimizer=optimizer), task.train(device, optimizer=optimizer)
    losses = max(abs(a.loss - b.loss) for a, b in zip(made.log, exact.log, strict=True))
    return far(made.context - task.start, exact.context - task.start), losses


def recorded_steps(device, optimizer="sgd", csc=False, chunk=0):
    """Relative difference of a context learned by replayed steps from one learned by plain steps; 0: the same bytes."""
    task = Task(csc)
    replayed = task.train(device, optimizer=optimizer, chunk=chunk)
    can_record, training.can_record = training.can_record, lambda device: False
    try:
        plain = task.train(device, optimizer=optimizer, chunk=chunk)
    finally:
        training.can_record = can_record
    return far(replayed.context, plain.context)


def same_twice(device, optimizer="sgd", csc=False):
    """Whether two runs end in the same bytes, logs included."""
    runs = [Task(csc).train(device, optimizer=optimizer) for _ in range(2)]
    return same_state(*runs)


def resumed(device, optimizer="sgd"):
    """Whether a run taken up after its first and after its fourth epoch ends in the same bytes."""
    states = []
    end = Task().train(device, optimizer=optimizer, on_epoch=states.append)
    return all(same_state(Task().train(device, optimizer=optimizer, state=state), end) for state in (states[0], states[3]))


def same_state(a, b):
    optimizer = all(torch.equal(a.optimizer[name], b.optimizer[name]) for name in b.optimizer)
    return torch.equal(a.context, b.context) and a.log == b.log and optimizer


def full_memory(share=0.6):
    """How often training on a CUDA device with `share` of the memory that it needs went on with less, and whether the
    context has the same bytes as with all of it."""
    n_classes, width = 2000, 256
    encoder = TextEncoder(text_tower(width=width, layers=4).to("cuda"))
    start = TrainingState(random_context(ContextSettings(M), n_classes, width, seed=1))
    features = F.normalize(torch.randn(32, width, generator=torch.Generator().manual_seed(1)), dim=-1)
    task = TrainingTask(prompts(n_classes), lambda epoch: features, torch.arange(32), 20.0, Recipe(epochs=2), 1)
    warned = []

    def learn():
        context = fit._train(encoder, task, start, lambda state: None).context
        torch.cuda.synchronize()
        return context

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    exact = learn()
    needed = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share * needed / torch.cuda.get_device_properties(0).total_memory)
    listener = logging.Handler()
    listener.emit = warned.append
    logging.getLogger(fit.__name__).addHandler(listener)
    try:
        context = learn()
    finally:
        logging.getLogger(fit.__name__).removeHandler(listener)
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    return len(warned), torch.equal(context, exact)


def image_features_of_mini(device):
    """Largest difference of `mini`'s image features from the CPU's."""
    from coopcli.clip.backbone import load_backbone

    pixels = torch.randint(0, 256, (20, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = []
    for place in (device, "cpu"):
        backbone = load_backbone("mini", device=place)
        side = backbone.image_size
        made.append(backbone.encode_images(F.interpolate(pixels.float(), side).to(torch.uint8)))
    return float((made[0] - made[1]).abs().max())
