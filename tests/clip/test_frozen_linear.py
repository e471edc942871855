import pytest
import torch
import torch.nn.functional as F

from coopcli.clip import frozen_linear as linear
from coopcli.clip.frozen_linear import FrozenLinear


def weights(n_out, n_in, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_out, n_in, generator=generator), torch.randn(n_out, generator=generator)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("rows", "n_in", "n_out"), [(1, 8, 24), (7, 64, 64), (33, 24, 8), (100, 512, 2048)])
def test_product_and_gradient_are_those_of_a_plain_layer(monkeypatch, packed, rows, n_in, n_out):
    if not packed:  # as where oneDNN is absent
        monkeypatch.setattr(linear, "_packed", lambda weight: weight)
    weight, bias = weights(n_out, n_in)
    mine = FrozenLinear(weight, bias)
    x = torch.randn(rows, n_in, generator=torch.Generator().manual_seed(1))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, plain = mine(a), F.linear(b, weight, bias)
    ours.sin().sum().backward()
    plain.sin().sum().backward()
    assert (ours - plain).norm() / plain.norm() < 1e-6
    assert (a.grad - b.grad).norm() / b.grad.norm() < 1e-5


def test_bfloat16_stays_close_and_gives_back_float32_gradients():
    weight, bias = weights(48, 64)
    mine = FrozenLinear(weight.bfloat16(), bias.bfloat16())
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y = mine(x)
    y.float().sum().backward()
    exact = F.linear(x, weight, bias)
    assert y.dtype == torch.bfloat16 and x.grad.dtype == torch.float32
    assert (y.float() - exact).norm() / exact.norm() < 0.01
    assert (x.grad - weight.sum(0)).norm() / (9**0.5 * weight.sum(0).norm()) < 0.01


def test_gradients_agree_with_differences():
    weight, bias = weights(5, 4)
    mine = FrozenLinear(weight, bias)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    (gradient,) = torch.autograd.grad(mine(x).pow(2).sum(), x)
    step = 1e-2
    gradient = gradient.tolist()
    for i in range(3):
        for j in range(4):
            nudge = torch.zeros(3, 4)
            nudge[i, j] = step
            difference = (mine(x + nudge).pow(2).sum() - mine(x - nudge).pow(2).sum()) / (2 * step)
            assert gradient[i][j] == pytest.approx(float(difference.detach()), rel=1e-2, abs=1e-2)
