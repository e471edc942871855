"""On a GPU: the same numbers as on the CPU, the same bytes twice. `pytest -m gpu`."""

import gpu_checks
import pytest
import torch

VARIANTS = [(False, "end"), (False, "middle"), (True, "end"), (True, "front")]


@pytest.fixture(autouse=True)
def needs_gpu(request):
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and PyTorch sees none here")


def test_the_checks_are_rehearsed_on_a_cpu():
    assert gpu_checks.features("cpu", csc=True) == gpu_checks.gradient("cpu", position="middle") == 0
    assert gpu_checks.features("cpu", dtype=torch.bfloat16) > 1e-4
    assert gpu_checks.whole_fit("cpu") == (0, 0)
    assert gpu_checks.recorded_steps("cpu") == 0
    assert gpu_checks.image_features_of_mini("cpu") == 0
    assert gpu_checks.same_twice("cpu") and gpu_checks.resumed("cpu", "adam")
    assert not gpu_checks.same_state(*(gpu_checks.Task().train("cpu", epochs=epochs) for epochs in (1, 2)))


@pytest.mark.gpu
@pytest.mark.parametrize("csc, position", VARIANTS)
def test_class_features_and_gradients_are_the_cpus(csc, position):
    assert gpu_checks.features("cuda", csc, position) < 1e-5
    assert gpu_checks.gradient("cuda", csc, position) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("csc, position", VARIANTS)
def test_bfloat16_stays_near_float32(csc, position):
    assert gpu_checks.features("cuda", csc, position, torch.bfloat16) < 0.05


@pytest.mark.gpu
def test_image_features_are_the_cpus():
    assert gpu_checks.image_features_of_mini("cuda") < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_whole_fit_is_the_cpus(csc, optimizer):
    context, loss = gpu_checks.whole_fit("cuda", csc, optimizer)
    assert context < 1e-2
    assert loss < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("chunk", [0, 3])
def test_replayed_steps_learn_what_plain_ones_do(csc, optimizer, chunk):
    assert gpu_checks.recorded_steps("cuda", optimizer, csc, chunk) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_same_bytes_twice_and_after_a_stop(optimizer):
    assert gpu_checks.same_twice("cuda", optimizer)
    assert gpu_checks.resumed("cuda", optimizer)


@pytest.mark.gpu
def test_training_with_less_memory_gives_the_same_bytes():
    reductions, same = gpu_checks.full_memory()
    assert reductions and same
