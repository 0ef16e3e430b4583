"""The pretend GPU finds what a GPU would refuse and what the host would wait for, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.gradient import gradient_step
from attempt_cli.training.processes import Processes
from tests.pretend_cuda import PretendGpu, pretend_cuda
from tests.training import tiny


def test_numbers_and_gradients_are_those_of_the_cpu(gpu: PretendGpu) -> None:
    x = torch.randn(3, 4)
    there, here = x.to("cuda").requires_grad_(), x.clone().requires_grad_()
    for one in (there, here):
        ((one @ one.T).softmax(-1)[:, 1] * 3).sum().backward()
    assert there.grad is not None
    assert there.grad.device == torch.device("cuda:0")
    torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=0, atol=0)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x, y: x + y,
        lambda x, y: torch.cat([x, y]),
        lambda x, y: x @ y,
        lambda x, y: torch.where(x > 0, x, y),
    ],
)
def test_tensors_of_two_devices_are_refused(gpu: PretendGpu, mistake: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        mistake(torch.ones(2, 2, device="cuda"), torch.ones(2, 2))


def test_tensors_of_two_cards_are_refused_and_moved_ones_have_a_gradient() -> None:
    with pretend_cuda(2):
        x, y = torch.ones(2, 2, device="cuda:0").requires_grad_(), torch.ones(2, 2, device="cuda:1")
        for mistake in (lambda: x + y, lambda: y[x.long()], lambda: torch.cat([x, y]), lambda: y @ x):
            with pytest.raises(RuntimeError, match=r"same device.*cuda:0, cuda:1"):
                mistake()
        moved = x.to("cuda:1")
        product = moved @ y * torch.zeros_like(moved).fill_(3.0)
        assert product.device == moved[:1].device == torch.arange(2, device=product.device).device
        product.sum().backward()
        assert x.grad is not None
        assert x.grad.device == x.device
        assert x.grad.tolist() == [[6.0, 6.0], [6.0, 6.0]]
        x.data[:1] = y[1:]  # a copy


@pytest.mark.parametrize(
    ("waits", "what"),
    [
        (1, lambda x: float(x.sum())),
        (1, lambda x: x.tolist()),
        (1, lambda x: x.cpu()),
        (1, lambda x: x.nonzero()),
        (1, lambda x: x[x > 0]),
        (1, lambda x: x[[0, 1]]),
        (1, lambda x: torch.tensor([1, 2], device=x.device)),
        (1, lambda x: torch.zeros(2).to(x.device)),
        (1, lambda x: torch.zeros(2).to(x.device, non_blocking=True)),  # from pageable memory
        (1, lambda x: torch.zeros(2, 2).pin_memory().T.to(x.device, non_blocking=True)),
        (1, lambda x: torch.cuda.synchronize()),
        (0, lambda x: torch.zeros(2).pin_memory().to(x.device, non_blocking=True)),
        (0, lambda x: torch.zeros(2, pin_memory=True).to(x.device, non_blocking=True)),
        (0, lambda x: x[:, torch.arange(2, device=x.device)] * 2.0 + torch.tensor(3.0)),
        (0, lambda x: torch.full((2,), 3, device=x.device)),
    ],
)
def test_waits_are_counted(gpu: PretendGpu, waits: int, what: Callable[[Tensor], object]) -> None:
    x = torch.ones(2, 2, device="cuda")
    gpu.clear()
    what(x)
    assert gpu.waits.total() == waits


def test_a_copy_beside_is_there_when_it_was_waited_for(gpu: PretendGpu) -> None:
    beside, block = torch.cuda.Stream(), torch.ones(3).pin_memory()
    with torch.cuda.stream(beside):
        first = block.to("cuda", non_blocking=True)
        event = beside.record_event()
        second = block.to("cuda", non_blocking=True)
        with pytest.raises(NotImplementedError):
            first + 1
    assert (first + second).isnan().all()
    torch.cuda.current_stream().wait_event(event)
    assert first.tolist() == [1, 1, 1]
    assert second.isnan().all()
    beside.wait_event(torch.cuda.current_stream().record_event())  # before their memory is given back


def test_pinned_memory_is_the_host_s_again_when_it_has_waited_for_what_reads_it(gpu: PretendGpu) -> None:
    computing, beside, block = torch.cuda.current_stream(), torch.cuda.Stream(), torch.ones(3).pin_memory()

    def refused() -> None:
        with pytest.raises(RuntimeError, match="while a copy may still read it"):
            block.view(3)[1:].fill_(2)

    block.to("cuda", non_blocking=True)
    refused()
    torch.cuda.synchronize()
    block.fill_(3)
    with torch.cuda.stream(beside):
        there = block.to("cuda", non_blocking=True)
    float(torch.ones((), device="cuda"))  # this number does not depend on the copy
    refused()
    computing.wait_event(beside.record_event())
    refused()
    assert there.tolist() == [3, 3, 3]
    block.fill_(1)


@pytest.mark.parametrize("waits", ["not", "too early", "in time"])
def test_memory_of_a_stream_is_given_back_when_it_has_waited_for_what_reads_it(gpu: PretendGpu, waits: str) -> None:
    beside, computing = torch.cuda.Stream(), torch.cuda.current_stream()
    with torch.cuda.stream(beside):
        there = torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    computing.wait_event(beside.record_event())
    part = there[1:]
    if waits == "too early":
        beside.wait_event(computing.record_event())
    part + 1
    if waits == "in time":
        beside.wait_event(computing.record_event())
    del there
    assert not gpu.streams.races  # the part is still there
    del part
    assert len(gpu.streams.races) == (waits != "in time")
    gpu.streams.races.clear()


def test_a_tensor_that_does_not_fit_is_out_of_memory(gpu: PretendGpu) -> None:
    gpu.largest = 1000
    torch.zeros(10, device="cuda")
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(1000, device="cuda")


def test_planted_mistakes_in_a_step_are_found(
    gpu: PretendGpu, load: Callable[[str, str], FrozenBackbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load("llama", "cuda")
    model, rows, config = tiny.model(backbone), tiny.encoded(backbone, 6), TrainingConfig(prompt_length=tiny.LENGTH)
    assert model.mixture is not None
    model.mixture.to(backbone.device)
    gpu.clear()
    gradient_step(model, rows, config, Processes())
    assert not gpu.waits

    hidden = DecoderOnlyBackbone._hidden
    with monkeypatch.context() as planted:
        planted.setattr(
            DecoderOnlyBackbone, "_hidden", lambda self, x, *a, **k: hidden(self, x + torch.zeros(x.shape[2]), *a, **k)
        )
        with pytest.raises(RuntimeError, match="same device"):
            gradient_step(model, rows, config, Processes())
    with monkeypatch.context() as planted:
        planted.setattr(
            DecoderOnlyBackbone, "_hidden", lambda self, x, *a, **k: hidden(self, x * int(x.shape[0] > 0), *a, **k)
        )
        gradient_step(model, rows, config, Processes())
        assert not gpu.waits
        planted.setattr(
            DecoderOnlyBackbone, "_hidden", lambda self, x, *a, **k: hidden(self, x * float(x[0, 0, 0] < 99), *a, **k)
        )
        gradient_step(model, rows, config, Processes())
        assert gpu.waits.total() == 1
