import torch
from few_shot_tasks import check_method, clustered

from coopcli.learning.methods.text_transform import learn, transformed


def test_the_transformation_one_by_one():
    text, matrix = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[3.0, 0.0], [4.0, 5.0]])
    expected = [[0.6, 0.8], [1.8, 2.4 + 4.0]]
    length = (1.8**2 + 6.4**2) ** 0.5
    assert torch.allclose(transformed(text, matrix), torch.tensor([expected[0], [1.8 / length, 6.4 / length]]))


def test_learning(mini, tmp_path):
    """Names that mean another class: a matrix can turn each to its own."""
    task, images, labels = clustered(mini, shots=16)
    assert ((images @ task.text.T).argmax(-1) == labels).float().mean() < 0.1
    head = check_method(learn, task, images, labels, tmp_path, at_least=0.9)
    assert head.training["parameters"] == 16 * 16
    assert torch.allclose(head.weights.norm(dim=-1), torch.tensor(mini.logit_scale), rtol=1e-4)
