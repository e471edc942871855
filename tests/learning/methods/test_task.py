import pytest
import torch
from few_shot_tasks import clustered

from coopcli.learning.methods.task import accuracy


def test_the_head_tells_where_it_comes_from(mini):
    task, _, _ = clustered(mini, seed=3)
    head = task.head("some-method", torch.ones(4, 16, dtype=torch.float64), 64, {"trains": "all"})
    assert (head.model, head.revision, head.fingerprint) == (mini.name, mini.revision, mini.fingerprint)
    assert head.weights.dtype == torch.float32 and head.class_names == task.class_names and head.folders == task.folders
    assert head.training == {
        "parameters": 64, "trains": "all", "images": 16, "val_images": 8, "seed": 3, "dtype": "float32", "device": "cpu",
        "torch": torch.__version__,
    }  # fmt: skip
    assert task.head("m", torch.ones(4, 16), 0, {}, fingerprint="other").fingerprint == "other"


def test_counts_and_accuracy(mini):
    assert clustered(mini, classes=3, shots=5)[0].counts.tolist() == [5, 5, 5]
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert accuracy(logits, torch.tensor([1, 0, 0])) == pytest.approx(2 / 3)


def test_few_numbers_are_for_one_thread(mini):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for classes, threads in ((4, 1), (1024, 2)):
            with clustered(mini, classes=classes, shots=1)[0].threads():
                assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
