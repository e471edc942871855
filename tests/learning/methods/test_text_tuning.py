import torch
from few_shot_tasks import check_method, clustered

from coopcli.learning.methods.text_tuning import biased, learn_bias, learn_transform, transformed
from coopcli.learning.recipe import paper_recipe


def test_the_bias_one_by_one():
    text, bias = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 4.0])
    assert torch.allclose(biased(text, bias), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))


def test_learning_a_bias(mini, tmp_path):
    """Right but vague text features that all lean one way: one bias can put them right."""
    task, images, labels = clustered(mini, shots=16, misleading=False)
    object.__setattr__(task, "text", biased(task.text, 1.5 * task.text[0]))
    head = check_method(learn_bias, task, images, labels, tmp_path, at_least=0.9)
    assert head.training["parameters"] == 16 and head.training["recipe"]["lr"] == paper_recipe(16, 4).lr
    assert torch.allclose(head.weights.norm(dim=-1), torch.tensor(mini.logit_scale), rtol=1e-4)


def test_all_classes_have_the_same_bias(mini):
    """w_k / |w_k| = (t_k + b) / |t_k + b|: with r_k = |t_k + b|, r_k w_k - t_k is one b for all k."""
    task, _, _ = clustered(mini, misleading=False)
    w = learn_bias(task).weights / mini.logit_scale
    # Solve for the r_k from r_k w_k - r_0 w_0 = t_k - t_0, a linear system in r.
    rows = [torch.zeros(4, 16) for _ in range(3)]
    for k, row in enumerate(rows, 1):
        row[k], row[0] = w[k], -w[0]
    system, right = torch.cat([row.T for row in rows]), torch.cat([task.text[k] - task.text[0] for k in (1, 2, 3)])
    r = torch.linalg.lstsq(system.double(), right.double()).solution
    assert (system.double() @ r - right).abs().max() < 1e-5


def test_the_transformation_one_by_one():
    text, matrix = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[3.0, 0.0], [4.0, 5.0]])
    expected = [[0.6, 0.8], [1.8, 2.4 + 4.0]]
    length = (1.8**2 + 6.4**2) ** 0.5
    assert torch.allclose(transformed(text, matrix), torch.tensor([expected[0], [1.8 / length, 6.4 / length]]))


def test_learning_a_matrix(mini, tmp_path):
    """Names that mean another class: a matrix can turn each to its own."""
    task, images, labels = clustered(mini, shots=16)
    assert ((images @ task.text.T).argmax(-1) == labels).float().mean() < 0.1
    head = check_method(learn_transform, task, images, labels, tmp_path, at_least=0.9)
    assert head.training["parameters"] == 16 * 16
    assert torch.allclose(head.weights.norm(dim=-1), torch.tensor(mini.logit_scale), rtol=1e-4)
