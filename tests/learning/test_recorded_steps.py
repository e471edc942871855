"""Recorded steps on a CPU, with stand-ins for stream and graph: capture runs nothing, replay runs the step."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F

from coopcli.clip.prompts import ContextSettings, context_prompts, random_context
from coopcli.learning import training
from coopcli.learning.recipe import Recipe
from coopcli.learning.training import TrainingState, TrainingTask, drawn_views, train_context

NAMES = ["star", "red ring", "annual crop"]


class Recorder:
    """Takes the place of CUDA's streams and graphs; counts the steps that ran, by how they ran."""

    def __init__(self, monkeypatch):
        self.ran = {"plain": 0, "replayed": 0}
        self.waited = []
        recorder, recorded = self, training._recorded

        class Stream:
            def wait_stream(self, other):
                recorder.waited.append((self, other))

        class Graph:
            step = None

            def replay(self):
                assert recorder.places() == self.places, "a graph reads and writes where it was captured"
                recorder.ran["replayed"] += 1
                self.step()

        self.main, self.capturing = Stream(), None

        @contextmanager
        def capture(graph):
            self.capturing = graph
            yield
            graph.places = self.places()
            self.capturing = None

        def record(step, optimizer, learned, batch_number):
            self.places = lambda: [t.data_ptr() for t in (learned, batch_number, *optimizer.state[learned].values())]

            def run():
                if self.capturing:
                    assert self.capturing.step is None, "one step to a graph"
                    self.capturing.step = step
                else:
                    self.ran["plain"] += 1
                    step()

            return recorded(run, optimizer, learned, batch_number)

        monkeypatch.setattr(training, "can_record", lambda device: True)
        monkeypatch.setattr(training, "_recorded", record)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.main)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", capture)


@pytest.fixture
def task(tiny_encoder, tokenizer):
    """Train from a state by the paper's batches: two full ones an epoch, a short one dropped."""
    generator = torch.Generator().manual_seed(5)
    features = drawn_views(F.normalize(torch.randn(10, 3, 24, generator=generator), dim=-1), 1)
    labels = torch.arange(10) % 3

    def train(start, recipe, csc=False, class_chunk=0, on_epoch=lambda state: None):
        prompts = context_prompts(tokenizer, ContextSettings(2, csc=csc), NAMES)
        return train_context(
            tiny_encoder, TrainingTask(prompts, features, labels, 20.0, recipe, 1, class_chunk), start, on_epoch
        )

    return train


def first_state(encoder, csc=False):
    return TrainingState(random_context(ContextSettings(2, csc=csc), len(NAMES), encoder.width, seed=2))


def same(a, b):
    assert torch.equal(a.context, b.context)
    assert a.log == b.log
    assert a.optimizer.keys() == b.optimizer.keys()
    assert all(torch.equal(a.optimizer[name], b.optimizer[name]) for name in a.optimizer)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("class_chunk", [0, 2])
def test_replayed_steps_end_in_the_same_bytes_as_plain_ones(task, tiny_encoder, monkeypatch, optimizer, csc, class_chunk):
    recipe, start = Recipe(epochs=5, batch_size=4, optimizer=optimizer), first_state(tiny_encoder, csc)
    plain = task(start, recipe, csc, class_chunk)
    recorder = Recorder(monkeypatch)
    replayed = task(start, recipe, csc, class_chunk)
    same(replayed, plain)
    assert recorder.ran["replayed"] == 5 * 2
    assert recorder.ran["plain"] == 3  # before the recording, and undone
    assert torch.equal(start.context, first_state(tiny_encoder, csc).context)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_resumed_recording_ends_in_the_same_bytes(task, tiny_encoder, monkeypatch, optimizer, stop):
    recipe, states = Recipe(epochs=5, batch_size=4, optimizer=optimizer), []
    plain = task(first_state(tiny_encoder), recipe, on_epoch=states.append)
    Recorder(monkeypatch)
    same(task(states[stop - 1], recipe), plain)  # begun by plain steps, ended by replayed ones
    replayed = []
    task(first_state(tiny_encoder), recipe, on_epoch=replayed.append)
    for state, other in zip(replayed, states, strict=True):
        same(state, other)
    same(task(replayed[stop - 1], recipe), plain)


def test_the_side_stream_waits_for_the_main_one_and_the_other_way_round(task, tiny_encoder, monkeypatch):
    recorder = Recorder(monkeypatch)
    task(first_state(tiny_encoder), Recipe(epochs=1, batch_size=4))
    (side, main), (last, again) = recorder.waited
    assert main is last is recorder.main and side is again and side is not main
