"""The bench: its clockwork, both sides computing the same, the cost model against torch's own counts."""

import json
import math
import platform
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from bench import __main__ as command
from bench import cost, inpainting, loading, naive, scoring, training
from bench.measure import Compared, bf16_pays, copy_bandwidth, device_name, interleaved, matmul_peak, peak_memory
from bench.plans import FULL, QUICK
from bench.rows import Figure, Parity, compared, describe, write_json
from lab5.config import DecodeConfig, TransformerConfig, VQGANConfig
from lab5.data.dataset import normalise, token_mask
from lab5.data.holes import fill_holes
from lab5.data.toycats import random_holes, render
from lab5.fid import frechet_distance
from lab5.inpainting.fill import decode_holes
from lab5.inpainting.pair import Pair
from lab5.inpainting.tokenizer import Tokenizer
from lab5.transformer import BidirectionalTransformer

CPU = torch.device("cpu")


# --- the clockwork --------------------------------------------------------------------------------------------------


class FakeTime:
    """A clock that only work moves, and what was done."""

    def __init__(self, **seconds):
        self.now, self.seconds, self.done = 0.0, {name: list(values) for name, values in seconds.items()}, []

    def clock(self):
        return self.now

    def work(self, name):
        def go():
            self.done.append(name)
            self.now += self.seconds[name].pop(0)

        return go


def test_rounds_swap_their_order_and_are_compared_within_themselves():
    # The machine becomes ten times slower in the second round, for both.
    time = FakeTime(naive=[99, 6, 80, 6], lab5=[99, 2, 20, 1])
    times = interleaved(time.work("naive"), time.work("lab5"), 3, clock=time.clock)
    assert time.done == ["naive", "lab5", "naive", "lab5", "lab5", "naive", "naive", "lab5"]
    assert times == Compared(naive=6, lab5=2, ratio=4, lowest=3, highest=6, rounds=3)


def test_units_make_calls_of_different_size_comparable_and_the_warm_up_can_be_left_out():
    time = FakeTime(naive=[6], lab5=[8])
    times = interleaved(time.work("naive"), time.work("lab5"), 1, units=(1, 4), warm_up=False, clock=time.clock)
    assert times == Compared(6, 2, 3, 3, 3, 1)


def test_a_device_is_waited_for_inside_the_measured_time():
    time = FakeTime(naive=[1], lab5=[1])
    pending = [0.0, 5.0, 0.0, 2.0]  # what the device has left to do whenever it is waited for

    def wait():
        time.now += pending.pop(0)

    times = interleaved(time.work("naive"), time.work("lab5"), 1, warm_up=False, clock=time.clock, wait=wait)
    assert times.naive == 6 and times.lab5 == 3


def test_the_machine_is_measured_and_named_without_its_own_name():
    assert matmul_peak(CPU, size=64, seconds=0.01) > 1e6 and copy_bandwidth(CPU, megabytes=1) > 1e6
    assert isinstance(bf16_pays(CPU, size=32), bool)
    name = device_name(CPU)
    assert "cores" in name and platform.node() not in name


def test_peak_memory_sees_what_is_freed_again():
    with peak_memory(CPU) as small:
        pass
    with peak_memory(CPU) as large:
        torch.ones(64 << 20, dtype=torch.uint8)
    if small.bytes is None:
        pytest.skip("this system does not tell")
    assert large.bytes - small.bytes > 32 << 20


# --- both sides compute the same ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks():
    return training.networks(QUICK, CPU)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_naive_transformer_is_the_same_function(norm):
    config = replace(QUICK.transformer, norm=norm)
    fast = BidirectionalTransformer(config, generator=torch.Generator().manual_seed(1)).eval()
    slow = naive.Transformer(config).eval()
    slow.load_state_dict(fast.state_dict())
    tokens = torch.randint(config.codes + 1, (2, 256), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(slow(tokens), fast(tokens), atol=1e-5, rtol=0)


def test_loss_and_gradients_agree_and_other_weights_are_found_out(networks):
    vqgan, slow, fast = networks
    images = render(3, 2).images
    assert training.check(vqgan, slow, fast, images).holds
    other = BidirectionalTransformer(QUICK.transformer, generator=torch.Generator().manual_seed(1))
    assert not training.check(vqgan, slow, other, images).holds


def test_the_naive_way_fills_a_hole_with_the_same_tokens(networks):
    vqgan, slow, fast = networks
    images, holes = render(4, 2).images, random_holes(4, 2)
    grey, unknown = fill_holes(images, holes, "grey"), token_mask(holes)
    decode = DecodeConfig(steps=4, codes="argmax", choice_temperature=0.0)
    *_, last = decode_holes(Pair(Tokenizer(vqgan), fast.eval(), ""), images, holes, decode, 0)
    for i in range(2):
        pictures, tokens = naive.inpaint(slow.eval(), vqgan, grey[i], unknown[i], 4)
        assert len(pictures) == 4 and pictures[0].shape == (3, 64, 64)
        assert torch.equal(tokens, last.filled[i])


def test_the_naive_distance_is_that_of_two_gaussians():
    draw = np.random.default_rng(0)
    a, b = draw.standard_normal((2, 300, 4)) * np.array([[[1.0]], [[2.0]]]) + np.array([[[0.0]], [[3.0]]])
    right = 4 * 3**2 + 4 * (2 - 1) ** 2  # |m1 - m2|² + Σ (s1 - s2)², of the law
    assert naive.frechet_distance(a, b) == pytest.approx(right, rel=0.15)
    assert frechet_distance(a, b) == pytest.approx(naive.frechet_distance(a, b), rel=1e-9)


def test_our_distance_is_exact_where_scipys_is_off_by_a_millionth(monkeypatch):
    features = scoring.made_up_features(30, 90, 1)
    parity = scoring.check(features)
    assert parity.holds and parity.apart < 1e-12
    monkeypatch.setattr(scoring, "frechet_distance", naive.frechet_distance)
    assert 1e-9 < scoring.check(features).apart < 1e-4


def test_the_naive_loader_normalises_every_file(tmp_path):
    images = render(5, 5).images
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    batches = list(naive.load(files, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(batches), normalise(images))


def featuriser(scale):
    """A stand-in for Inception: pixels by random directions."""
    directions = torch.randn(3 * 64 * 64, QUICK.features, generator=torch.Generator().manual_seed(0)) * scale
    return lambda images, batch=None: images.flatten(1) @ directions


def test_scoring_takes_turns_over_both_sets_and_compares_the_distances():
    row, apart, speed, kept = scoring.score(QUICK, featuriser(1), featuriser(1), lambda: None, 1e6, 1e9)
    assert row.parity.holds and row.times.rounds == 2 * math.ceil(QUICK.score_images / QUICK.score_batch)
    assert row.times.ratio == row.times.naive / row.times.lab5 and kept.value > row.times.ratio
    assert row.flops == 2 * QUICK.score_images * 1e6
    assert not scoring.score(QUICK, featuriser(1), featuriser(1.01), lambda: None, 1e6, 1e9)[0].parity.holds


def test_loading_says_which_files_and_finds_their_images(tmp_path):
    row, *_ = loading.run(replace(QUICK, load_rounds=1), None)
    assert row.parity.holds and "generated" in row.what
    files, source = loading.generated(3, tmp_path / "lab" / "train")
    assert source == "generated files" and loading.unpacked(tmp_path / "lab", tmp_path)[0] == files
    assert not loading.check(files, torch.zeros(4, 3, 64, 64, dtype=torch.uint8)).holds
    with pytest.raises(ValueError, match="holds no folder train"):
        loading.unpacked(tmp_path / "lab" / "train", tmp_path)


# --- the cost model -------------------------------------------------------------------------------------------------


def test_the_lab_sized_transformer_costs_what_was_worked_out_by_hand():
    lab = TransformerConfig()
    linears = 2 * 256 * 15 * (4 * 768**2 + 2 * 768 * 1536)
    attention = 15 * 4 * 256**2 * 768
    head = 2 * 256 * (768 * 1025 + 768**2)
    assert cost.transformer_flops(lab) == linears + attention + head
    assert linears / 1e9 == pytest.approx(36.24, abs=0.01) and attention / 1e9 == pytest.approx(3.02, abs=0.01)
    assert cost.transformer_flops(lab) / 1e9 == pytest.approx(39.96, abs=0.01)
    assert cost.training_flops(lab) / 1e9 == pytest.approx(119.9, abs=0.1)
    assert 72.4e6 < cost.parameters(lab) < 72.8e6


@pytest.mark.parametrize("hints", [0, 24])
def test_closed_forms_equal_torchs_own_count(hints):
    config = TransformerConfig(codes=20, width=32, layers=2, heads=4, hidden=48, hints=hints)
    model = BidirectionalTransformer(config, fused=False)
    tokens = torch.zeros(1, 256, dtype=torch.int64)
    given = () if not hints else (torch.zeros(1, 256, hints),)
    assert cost.counted(lambda: model(tokens, None, *given)) == cost.transformer_flops(config)
    where = torch.arange(256)[None] < 100
    assert cost.counted(lambda: model(tokens, where, *given)) == cost.transformer_flops(config, 100)


def test_a_training_step_costs_three_passes():
    from torch.utils.flop_counter import FlopCounterMode

    config = TransformerConfig(codes=20, width=32, layers=2, heads=4, hidden=48)
    model = BidirectionalTransformer(config, fused=False)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 256, dtype=torch.int64)).sum().backward()
    assert counter.get_total_flops() == cost.training_flops(config)


@pytest.mark.parametrize("hints", [0, 24])
def test_parameters_are_counted_without_building_the_network(hints):
    config = TransformerConfig(codes=20, width=32, layers=2, heads=4, hidden=48, hints=hints)
    assert cost.parameters(config) == sum(p.numel() for p in BidirectionalTransformer(config).parameters())


def test_the_vqgan_costs_its_convolutions():
    small = VQGANConfig(
        codes=8, latent=4, stem=4, encoder=((4,), (4,)), middle=(4,), decoder=((4,), (4,), (4,)), groups=0,
        attention=False,
    )  # fmt: skip
    encode, decode = cost.vqgan_flops(small)

    def convolution(side, wide_in, wide_out, kernel=3):
        return 2 * side**2 * wide_in * wide_out * kernel**2

    blocks = {side: 2 * convolution(side, 4, 4) for side in (64, 32, 16)}
    down = convolution(32, 4, 4) + convolution(16, 4, 4)
    up = convolution(32, 4, 4) + convolution(64, 4, 4)
    end = convolution(16, 4, 4) + convolution(16, 4, 4, 1)  # to the latent, and quant_conv
    nearest = 2 * 256 * 8 * 4
    assert encode == convolution(64, 3, 4) + sum(blocks.values()) + down + end + nearest
    assert decode == end + 2 * blocks[16] + blocks[32] + blocks[64] + up + convolution(64, 4, 3)
    lab = cost.vqgan_flops(VQGANConfig())
    assert lab[0] / 1e9 == pytest.approx(57.6, abs=0.3) and lab[1] / 1e9 == pytest.approx(57.0, abs=0.3)


def test_a_floor_is_the_slower_of_arithmetic_and_memory():
    assert cost.Cost(flops=10, bytes=6).seconds(peak=2, bandwidth=2) == 5
    assert cost.Cost(flops=2, bytes=6).seconds(peak=2, bandwidth=2) == 3
    lab = TransformerConfig()
    one, many = (cost.decoding_cost(lab, batch, steps=8) for batch in (1, 8))
    assert one.flops == many.flops == 8 * cost.transformer_flops(lab) and one.bytes == 8 * many.bytes
    assert cost.training_cost(lab, 10).bytes == cost.parameters(lab) * 48 / 10


def test_what_is_kept_for_backward_is_counted_once():
    linear, x = torch.nn.Linear(8, 4), torch.ones(16, 8, requires_grad=True)
    assert cost.kept_for_backward(linear, lambda: linear(x)) == 16 * 8 * 4
    assert cost.kept_for_backward(linear, lambda: linear(x) + linear(x)) == 16 * 8 * 4
    assert cost.kept_for_backward(linear, lambda: linear(x).exp()) == 16 * 8 * 4 + 16 * 4 * 4
    assert cost.largest_batch(memory=100, fixed=30, per_image=10, spare=0.9) == 6
    assert cost.largest_batch(memory=100, fixed=300, per_image=10) == 0


# --- what it says ---------------------------------------------------------------------------------------------------


def a_ratio(ratio=4.0, apart=0.0, goal=3.0):
    times = Compared(ratio, 1.0, ratio, ratio - 1, ratio + 1, 5)
    return compared("filling", "image", times, Parity("logits", apart, 1e-4), goal, flops=50.0, peak=100.0)


def test_a_row_says_whether_the_goal_and_the_parity_hold_and_what_the_machine_allows():
    row = a_ratio()
    assert row.holds and row.share_of_peak == 0.5 and row.ceiling == 8
    assert "4.00x (3.00 to 5.00 in 5 rounds); goal 3x reached" in describe(row) and "parity holds" in describe(row)
    assert not a_ratio(ratio=2.9).holds and "goal 3x not reached" in describe(a_ratio(ratio=2.9))
    assert not a_ratio(apart=1e-3).holds and "parity FAILS" in describe(a_ratio(apart=1e-3))
    assert "not measured (why)" in describe(Figure("speed", None, "x", "why"))


def test_the_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "results" / "cpu.json"
    write_json(file, {"device": "a CPU"}, {"filling": [a_ratio(), Figure("speed", 1 / 3, "images/s")]})
    written = json.loads(file.read_text())
    ratio, figure = written["sections"]["filling"]
    assert written["device"] == "a CPU" and ratio["holds"] and ratio["times"]["ratio"] == 4
    assert figure["value"] == 0.33333
    with pytest.raises(TypeError):
        write_json(file, {"device": object()}, {})
    assert json.loads(file.read_text()) == written and list(file.parent.iterdir()) == [file]


def test_sections_that_are_not_measured_again_stay_if_the_machine_is_the_same(tmp_path):
    file, about = tmp_path / "cpu.json", {"plan": "full", "device": "a CPU", "threads": 2, "torch": "2"}
    write_json(file, about | {"seconds": {"a": 3, "b": 4}}, {"a": [Figure("x", 1.0, "")], "b": [Figure("x", 2.0, "")]})
    write_json(file, about | {"seconds": {"b": 5}}, {"b": [Figure("x", 3.0, "")]})
    written = json.loads(file.read_text())
    assert {name: rows[0]["value"] for name, rows in written["sections"].items()} == {"a": 1.0, "b": 3.0}
    assert written["seconds"] == {"a": 3, "b": 5}
    write_json(file, about | {"threads": 1, "seconds": {"b": 6}}, {"b": [Figure("x", 4.0, "")]})
    assert json.loads(file.read_text())["sections"].keys() == {"b"}


def test_the_command_runs_a_section_and_leaves_its_numbers(tmp_path, capsys):
    out = tmp_path / "quick.json"
    assert command.main(["--quick", "--only", "distance", "--device", "cpu", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["plan"] == "quick" and written["sections"]["distance"][0]["parity"]["holds"]
    assert written["peak_gflops"]["off"] > 0 and platform.node() not in out.read_text()
    assert "Frechet distance, n = 8" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "sentence"), [
    (["--device", "cuda"], "needs a GPU that torch can use"),
    (["--device", "cpu", "--data", "/nowhere"], "/nowhere does not exist"),
])  # fmt: skip
def test_bad_input_is_refused_before_anything_is_measured(words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(command, "peaks_of", None)
    assert command.main(words) == 2
    assert sentence in capsys.readouterr().err


def test_a_parity_that_fails_is_the_exit_code(monkeypatch, tmp_path):
    monkeypatch.setattr(scoring, "distance", lambda plan: [a_ratio(apart=1.0)])
    assert command.main(["--quick", "--only", "distance", "--device", "cpu"]) == 1


def test_bf16_is_measured_where_the_hardware_has_it_and_else_said_not_to_be(monkeypatch):
    asked = []
    monkeypatch.setattr(training, "run", lambda plan, device, amp, peak: asked.append((amp, peak)) or [a_ratio()])
    with_it = list(command._rows("training", QUICK, CPU, {"off": 1.0, "bf16": 4.0}, None))
    assert asked == [("off", 1.0), ("bf16", 4.0)] and len(with_it) == 2
    without = list(command._rows("training", QUICK, CPU, {"off": 1.0}, None))
    assert without[-1].value is None and "no bf16 instructions" in describe(without[-1])


def test_a_gpu_has_goals_of_its_own(monkeypatch):
    monkeypatch.setattr(training, "run", lambda *rest: [a_ratio()])
    monkeypatch.setattr(inpainting, "run", lambda *rest: [a_ratio()])
    gpu, peaks = torch.device("cuda"), {"off": 1.0, "bf16": 4.0}
    share = list(command._rows("training", FULL, gpu, peaks, None))[-1]
    assert share.value == 50 and "40% reached" in share.note
    seconds = list(command._rows("inpainting", FULL, gpu, peaks, None))[-1]
    assert seconds.value == 747 and "not reached" in seconds.note
