"""The stand-in GPU refuses what a GPU refuses, counts what keeps one waiting, and leaves nothing behind."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.standin import stand_in_gpu


@pytest.fixture
def gpu():
    with stand_in_gpu() as gpu:
        yield gpu


def layers():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(4, 5),
        lambda x: x @ torch.ones(5, 2),
        lambda x: torch.cat([x, torch.ones(1, 5)]),
        lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]),
        lambda x: x.add_(torch.ones(4, 5)),
        lambda x: torch.ones(4, 5)[x.argmax(0)],
        lambda x: F.linear(torch.ones(2, 5), x),
        lambda x: torch.where(x > 0, x, torch.ones(4, 5)),
        lambda x: torch.rand(3, device="cuda", generator=torch.Generator()),
        lambda x: x.normal_(generator=torch.Generator()),
    ],
)  # fmt: skip
def test_a_mix_of_devices_is_refused(gpu, mix):
    with pytest.raises(RuntimeError, match="same device|Expected a 'cuda' device type for generator"):
        mix(draw(4, 5).to("cuda"))


def test_what_a_gpu_allows_is_allowed(gpu):
    x = draw(4, 5).cuda()
    assert torch.equal((x * torch.tensor(2.0)).cpu(), 2 * draw(4, 5))
    assert x.device == torch.zeros(2, device=x.device).device == torch.device("cuda:0")
    assert x.new_zeros(3).is_cuda and torch.tensor([1.0], device="cuda").is_cuda and not x.cpu().is_cuda
    with pytest.raises(TypeError, match="Tensor.cpu"):
        x.numpy()


@pytest.mark.parametrize(
    "waits, transfers, work",
    [
        (1, 1, lambda x: x.sum().item()),
        (1, 1, lambda x: bool((x > 0).any())),
        (1, 1, lambda x: x.tolist()),
        (1, 1, lambda x: x.cpu()),
        (1, 1, lambda x: x.copy_(torch.ones(4, 5))),
        (1, 1, lambda x: torch.tensor([1.0], device="cuda")),
        (1, 1, lambda x: torch.ones(3).to("cuda", non_blocking=True)),  # its memory is not pinned
        (0, 1, lambda x: torch.ones(3).pin_memory().to("cuda", non_blocking=True)),
        (1, 1, lambda x: torch.ones(3).pin_memory().to("cuda")),
        (1, 0, lambda x: x.nonzero()),
        (1, 0, lambda x: x[x > 0]),
        (1, 0, lambda x: x.index_put_((x > 0,), x[0, 0])),
        (0, 0, lambda x: x.index_put_((x > 0,), torch.tensor(1.0))),
        (1, 1, lambda x: x[torch.tensor([0, 1])]),  # the index is fetched
        (0, 0, lambda x: x[x.argmax(0)]),
        (1, 0, lambda x: x.unique()),
        (1, 0, lambda x: x.argmax(0).bincount()),
        (1, 0, lambda x: torch.equal(x, x)),
        (1, 0, lambda x: torch.linalg.svdvals(x)),
        (1, 0, lambda x: torch.cuda.synchronize()),
        (0, 0, lambda x: x.masked_scatter(x > 0, x).masked_fill_(x > 1, 0.0).sort(dim=1).values.cumsum(0)),
        (0, 0, lambda x: torch.zeros(3, device="cuda") + torch.arange(3, device="cuda")),
    ],
)  # fmt: skip
def test_waits_and_transfers_are_counted(gpu, waits, transfers, work):
    x = draw(4, 5).cuda()
    gpu.clear()
    work(x)
    assert (gpu.waits.total(), gpu.transfers.total()) == (waits, transfers)


def test_the_line_that_waits_is_named(gpu):
    x = draw(4, 5).cuda().requires_grad_()
    gpu.clear()
    x[x > 0].sum().backward()  # the gradient looks for the places once more
    ((line, times),) = gpu.waits.items()
    assert line.startswith("tests/test_standin.py:") and "x[x > 0].sum().backward()" in line and times == 2


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16, None])
def test_a_step_of_training_is_the_cpus_and_waits_for_nothing(gpu, amp):
    """With the gradients scaled, where there are 16 bits: autocast and its scaler work as on a GPU."""
    weights = []
    for device in ("cpu", "cuda"):
        model = layers().to(device)
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        scaler = torch.amp.GradScaler(device, enabled=amp is torch.float16)
        x = draw(4, 5).pin_memory().to(device, non_blocking=True)
        gpu.clear()
        with torch.autocast(device, amp, enabled=amp is not None):
            out = model(x)
            assert out.dtype == (amp or torch.float32)
            if device == "cuda":  # the CPU's autocast leaves it as it is
                assert model[1](model[0](x)).dtype == torch.float32
            loss = F.cross_entropy(out, torch.zeros(4, dtype=torch.int64, device=device))
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimiser)
        scaler.update()
        assert not gpu.waits or device == "cpu"
        weights.append(torch.cat([p.detach().flatten().cpu() for p in model.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=0.0 if amp is None else 0.02)
    assert not torch.equal(weights[1], torch.cat([p.detach().flatten() for p in layers().parameters()]))


def test_afterwards_torch_is_as_before():
    before = torch.cuda.is_available(), torch.cuda.synchronize, torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        with stand_in_gpu():
            x, model = draw(2).cuda(), layers().cuda()
            raise ZeroDivisionError
    assert before[:2] == (torch.cuda.is_available(), torch.cuda.synchronize)
    assert torch.equal(before[2], torch.get_rng_state())
    assert not torch.__future__.get_overwrite_module_params_on_conversion()
    for gone in (lambda: x + 1, lambda: model(torch.ones(1, 5)), lambda: float(x.sum())):
        with pytest.raises(RuntimeError, match="is gone"):
            gone()


def test_an_older_card_has_no_bfloat16():
    with stand_in_gpu(capability=(7, 5)):
        assert torch.cuda.get_device_capability() == (7, 5) and not torch.cuda.is_bf16_supported()
