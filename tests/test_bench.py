"""The bench: its clockwork, both sides computing the same, the cost model against torch's own counts."""

import json
import math
import mmap
import os
import platform
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.functional import to_pil_image

from bench import __main__ as command
from bench import cost, day, inpainting, loading, naive, scaling, scoring, training, waits, worth
from bench.measure import Compared, bf16_pays, copy_bandwidth, device_name, interleaved, matmul_peak, peak_memory
from bench.plans import FULL, QUICK
from bench.rows import Figure, Parity, compared, describe, write_json
from lab5.config import DecodeConfig, TransformerConfig, VQGANConfig
from lab5.data.dataset import get_dataset, normalise, token_mask
from lab5.data.holes import fill_holes
from lab5.data.toycats import random_holes, render
from lab5.fid import frechet_distance
from lab5.inpainting.fill import decode_holes
from lab5.inpainting.pair import Pair
from lab5.inpainting.tokenizer import Tokenizer
from lab5.profiles import PROFILES, configure
from lab5.runtime.folders import ROOT
from lab5.transformer import BidirectionalTransformer

CPU = torch.device("cpu")


# --- the clockwork --------------------------------------------------------------------------------------------------


class FakeTime:
    """A clock that only work moves, and what was done."""

    def __init__(self, **seconds):
        self.now, self.seconds, self.done = 0.0, seconds, []

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


def test_a_device_is_waited_for_and_calls_of_other_sizes_are_comparable():
    time = FakeTime(naive=[1], lab5=[6], wait=[0, 5, 0, 2])  # what the device has left to do when it is waited for
    works = time.work("naive"), time.work("lab5")
    times = interleaved(*works, 1, units=(1, 4), warm_up=False, clock=time.clock, wait=time.work("wait"))
    assert times == Compared(naive=6, lab5=2, ratio=3, lowest=3, highest=3, rounds=1)


def test_the_machine_is_measured_and_named_without_its_own_name(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "somebodys-laptop")
    assert matmul_peak(CPU, size=64, seconds=0.01) > 0 and copy_bandwidth(CPU, megabytes=1) > 0
    assert isinstance(bf16_pays(CPU, size=32), bool)
    assert "cores" in device_name(CPU) and "laptop" not in device_name(CPU)


def test_peak_memory_sees_what_is_freed_again():
    with peak_memory(CPU) as small:
        pass
    with peak_memory(CPU) as large, mmap.mmap(-1, 64 << 20) as fresh:  # a tensor may take pages that are there already
        for page in range(0, len(fresh), mmap.PAGESIZE):
            fresh[page] = 1
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
    other = BidirectionalTransformer(QUICK.transformer, generator=torch.Generator().manual_seed(1))
    same, different = (training.check(vqgan, slow, model, render(3, 2).images) for model in (fast, other))
    assert same.holds and not different.holds


def test_the_naive_way_fills_a_hole_with_the_same_tokens(networks):
    vqgan, slow, fast = networks
    images, holes = render(4, 2).images, random_holes(4, 2)
    decode = DecodeConfig(steps=4, codes="argmax", choice_temperature=0.0)
    *_, last = decode_holes(Pair(Tokenizer(vqgan), fast.eval(), ""), images, holes, decode, 0)
    for grey, unknown, right in zip(fill_holes(images, holes, "grey"), token_mask(holes), last.filled, strict=True):
        pictures, tokens = naive.inpaint(slow.eval(), vqgan, grey, unknown, 4)
        assert len(pictures) == 4 and pictures[0].shape == (3, 64, 64) and torch.equal(tokens, right)


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
        to_pil_image(image).save(file)
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
    linears, attention = 2 * 256 * 15 * (4 * 768**2 + 2 * 768 * 1536), 15 * 4 * 256**2 * 768
    assert cost.transformer_flops(lab) == linears + attention + 2 * 256 * (768 * 1025 + 768**2)
    assert cost.training_flops(lab) / 1e9 == pytest.approx(119.9, abs=0.1)
    assert 72.4e6 < cost.parameters(lab) < 72.8e6


@pytest.mark.parametrize("hints", [0, 24])
def test_closed_forms_equal_torchs_own_count(hints):
    config = TransformerConfig(codes=20, width=32, layers=2, heads=4, hidden=48, hints=hints)
    model = BidirectionalTransformer(config, fused=False)
    assert cost.parameters(config) == sum(p.numel() for p in model.parameters())
    tokens = torch.zeros(1, 256, dtype=torch.int64)
    given = () if not hints else (torch.zeros(1, 256, hints),)
    assert cost.counted(lambda: model(tokens, None, *given)) == cost.transformer_flops(config)
    where = torch.arange(256)[None] < 100
    assert cost.counted(lambda: model(tokens, where, *given)) == cost.transformer_flops(config, 100)
    if not hints:
        with FlopCounterMode(display=False) as counter:
            model(tokens).sum().backward()
        assert counter.get_total_flops() == cost.training_flops(config), "a training step costs three passes"


def test_a_profiles_operations_are_those_of_its_steps_times_its_batches_and_of_the_studys_pictures():
    quick = PROFILES["quick"]
    encode, decode = cost.vqgan_flops(quick.vqgan)
    parts = cost.profile_flops(quick)
    assert parts["stage one"] == 380 * 16 * 3 * (encode + decode)
    assert parts["stage two"] == 220 * 32 * cost.training_flops(quick.transformer, 128)
    states = 1 + 3 * (4 + 8)  # one shot, and three schedules with every step of T = 4 and T = 8
    assert parts["study"] == states * 5 * 32 * (cost.transformer_flops(quick.transformer) + 2 * (encode + decode))
    twice = replace(quick, stage2=replace(quick.stage2, accumulate=2))
    assert cost.profile_flops(twice)["stage two"] == 2 * parts["stage two"]


def test_the_profile_of_a_gpu_is_a_quarter_of_ten_minutes_on_a_small_card_and_fits_into_its_memory():
    gpu = PROFILES["gpu"]
    assert 60 < sum(cost.profile_flops(gpu).values()) / 25e12 < 150, "s, if a card did nothing but arithmetic"
    small = replace(QUICK, transformer=replace(gpu.transformer, hints=0))
    kept = scaling.kept_per_image(small, torch.device("cpu"), "bf16")
    assert cost.largest_batch(scaling.SMALL_GPU, cost.fixed_memory(gpu.transformer), kept) > 2 * gpu.stage2.batch


def test_the_lab_sized_vqgan_costs_what_was_worked_out_by_hand():
    encode, decode = cost.vqgan_flops(VQGANConfig())
    assert encode / 1e9 == pytest.approx(57.6, abs=0.04) and decode / 1e9 == pytest.approx(57.0, abs=0.04)


def test_a_floor_is_the_slower_of_arithmetic_and_memory():
    assert cost.Cost(flops=10, bytes=6).seconds(peak=2, bandwidth=2) == 5
    assert cost.Cost(flops=2, bytes=6).seconds(peak=2, bandwidth=2) == 3
    lab = TransformerConfig()
    one, many = (cost.decoding_cost(lab, batch, steps=8) for batch in (1, 8))
    assert one.flops == many.flops == 8 * cost.transformer_flops(lab) and one.bytes == 8 * many.bytes
    assert cost.training_cost(lab, 10).bytes == cost.parameters(lab) * 48 / 10


def test_what_is_kept_for_backward_is_counted_once():
    linear, x = torch.nn.Linear(8, 4), torch.ones(16, 8, requires_grad=True)
    assert cost.kept_for_backward(linear, lambda: linear(x) + linear(x)) == 16 * 8 * 4
    assert cost.kept_for_backward(linear, lambda: linear(x).exp()) == 16 * 8 * 4 + 16 * 4 * 4
    assert cost.largest_batch(memory=100, fixed=30, per_image=10, spare=0.9) == 6
    assert cost.largest_batch(memory=100, fixed=300, per_image=10) == 0


# --- what it says ---------------------------------------------------------------------------------------------------


def a_ratio(ratio=4.0, apart=0.0, goal=3.0):
    times = Compared(ratio, 1.0, ratio, ratio - 1, ratio + 1, 5)
    return compared("filling", "image", times, Parity("logits", apart, 1e-4), goal, flops=50.0, peak=100.0)


@pytest.mark.parametrize(("row", "holds", "says"), [
    (a_ratio(), True, "4.00x (3.00 to 5.00 in 5 rounds); goal 3x reached"),
    (a_ratio(), True, "parity holds"),
    (a_ratio(ratio=2.9), False, "goal 3x not reached"),
    (a_ratio(apart=1e-3), False, "parity FAILS"),
], ids=["reached", "same", "too slow", "not the same"])  # fmt: skip
def test_a_row_says_whether_the_goal_and_the_parity_hold(row, holds, says):
    assert row.holds == holds and says in describe(row)


def test_a_row_says_what_the_machine_allows_or_why_nothing_was_measured():
    assert a_ratio().share_of_peak == 0.5 and a_ratio().ceiling == 8
    assert "not measured (why)" in describe(Figure("speed", None, "x", "why"))


def test_the_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "results" / "cpu.json"
    write_json(file, {"device": "a CPU"}, {"filling": [a_ratio(), Figure("speed", 1 / 3, "images/s")]})
    before = file.read_bytes()
    ratio, figure = json.loads(before)["sections"]["filling"]
    assert ratio["holds"] and ratio["times"]["ratio"] == 4 and figure["value"] == 0.33333
    with pytest.raises(TypeError):
        write_json(file, {"device": object()}, {})
    assert file.read_bytes() == before


def test_sections_that_are_not_measured_again_stay_if_the_machine_is_the_same(tmp_path):
    def write(threads, seconds, **values):
        about = {"plan": "full", "device": "a CPU", "threads": threads, "torch": "2", "seconds": seconds}
        write_json(tmp_path / "cpu.json", about, {name: [Figure("x", value, "")] for name, value in values.items()})
        written = json.loads((tmp_path / "cpu.json").read_text())
        return {name: rows[0]["value"] for name, rows in written["sections"].items()}, written["seconds"]

    write(2, {"a": 3, "b": 4}, a=1.0, b=2.0)
    assert write(2, {"b": 5}, b=3.0) == ({"a": 1.0, "b": 3.0}, {"a": 3, "b": 5})
    assert write(1, {"b": 6}, b=4.0) == ({"b": 4.0}, {"b": 6})


def test_the_command_runs_a_section_and_leaves_its_numbers(tmp_path, capsys):
    out = tmp_path / "quick.json"
    assert command.main(["--quick", "--only", "distance", "--device", "cpu", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["plan"] == "quick" and written["sections"]["distance"][0]["parity"]["holds"]
    assert written["peak_gflops"]["off"] >= 0
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


def test_a_step_of_training_and_one_of_decoding_wait_once_for_a_gpu(tmp_path, capsys):
    out = tmp_path / "waits.json"
    out.write_text(json.dumps({"sections": {"cost": []}, "seconds": {}, "peak_gflops": {"off": 1.0}} | about_this()))
    assert command.main(["--quick", "--only", "waits", "--device", "cpu", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["peak_gflops"] == {"off": 1.0}, "nothing is timed, and what was timed stays"
    rows = written["sections"]["waits"]
    assert len(rows) == 3 + len(waits.DECODINGS) and all(row["value"] == 1 for row in rows)
    assert all("lab5/trainer.py:" in row["note"] for row in rows[:3])
    assert "a training step: 1 waits" in capsys.readouterr().out


def about_this():
    return {"plan": "quick", "device": device_name(CPU), "threads": torch.get_num_threads(), "torch": torch.__version__}


def test_a_gpu_says_itself_where_it_is_waited_for(monkeypatch):
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with pytest.warns(UserWarning, match="something else"):
        with waits.on_a_gpu() as counts:
            for _ in range(2):
                warnings.warn(waits.SYNCHRONISES, stacklevel=1)
            warnings.warn("something else", stacklevel=1)
    assert modes == ["default", "warn", "default"]
    ((line, times),) = counts.waits.items()
    assert times == 2 and line.startswith("tests/test_bench.py:")


def test_a_parity_that_fails_is_the_exit_code(monkeypatch):
    monkeypatch.setattr(command, "peaks_of", lambda *of: {"off": 1.0})
    monkeypatch.setattr(scoring, "distance", lambda plan: [a_ratio(apart=1.0)])
    assert command.main(["--quick", "--only", "distance", "--device", "cpu"]) == 1


def test_bf16_is_measured_where_the_hardware_has_it_and_else_said_not_to_be(monkeypatch):
    monkeypatch.setattr(training, "run", lambda plan, device, amp, peak: [(amp, peak)])
    with_it = list(command._rows("training", QUICK, CPU, {"off": 1.0, "bf16": 4.0}, None))
    assert with_it == [("off", 1.0), ("bf16", 4.0)]
    *_, without = command._rows("training", QUICK, CPU, {"off": 1.0}, None)
    assert without.value is None and "no bf16 instructions" in describe(without)


@pytest.mark.parametrize(("section", "value", "note"), [
    (training, 50, "40% reached"), (inpainting, 747, "not reached"),
])  # fmt: skip
def test_a_gpu_has_goals_of_its_own(section, value, note, monkeypatch):
    monkeypatch.setattr(section, "run", lambda *rest: [a_ratio()])
    name, peaks = section.__name__.rpartition(".")[2], {"off": 1.0, "bf16": 4.0}
    *_, goal = command._rows(name, FULL, torch.device("cuda"), peaks, None)
    assert goal.value == value and note in goal.note


# --- a day with a GPU -----------------------------------------------------------------------------------------------


class Timed:
    """A training whose first five steps take ten seconds each, and every other one two."""

    def __init__(self, config):
        self.config, self.taken, self.forgotten = config, 0, False

    def __iter__(self):
        for self.taken in range(1, 1000):
            yield SimpleNamespace(seconds=10 * min(self.taken, 5) + 2 * max(0, self.taken - 5))

    def forget(self):
        self.forgotten = True


def test_a_training_has_as_many_steps_as_fit_by_the_speed_of_its_first_ones():
    probes = []

    def training(config):
        probes.append(Timed(config))
        return probes[-1]

    config = day.in_seconds(configure("quick", device="cpu", seed=3), "stage2", 120, training)
    assert (config.stage2.steps, config.stage2.warmup, config.seed) == (60, 6, 3)
    assert config.stage1 == PROFILES["quick"].stage1
    assert probes[0].forgotten and probes[0].taken == day.LOOKED_AT


def test_the_day_names_its_parts_and_says_where_there_is_no_gpu(tmp_path):
    script = [shutil.which("bash"), str(ROOT / "bench" / "gpu_day.sh")]
    own = {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    runs = [
        subprocess.run([*script, *words], env=os.environ | own, capture_output=True, text=True, check=False)
        for words in (["everything"], ["pair"])
    ]
    assert [run.returncode for run in runs] == [2, 2]
    assert "there is no part 'everything', but tests, bench, lab, study and pair" in runs[0].stderr
    assert "there is no GPU that torch can use; --rehearse goes without" in runs[1].stderr
    assert not (tmp_path / "out" / "pair.json").exists()


# --- what the parts are worth ---------------------------------------------------------------------------------------


def test_every_training_has_its_time_and_every_row_its_judges(tmp_path, monkeypatch, capsys):
    """With next to no time each still takes TRIED steps; all tables have one row for each way."""
    monkeypatch.setenv("LAB5_DATA", str(tmp_path))
    sizes = {"data.train": 16, "data.val": 6, "data.test": 4}
    few = {f"stage{i}.{name}": 4 for i in (1, 2) for name in ("steps", "batch")}
    config = configure("smoke", device="cpu", **sizes, **few)
    config = replace(config, refiner=replace(config.refiner, batch=4))
    photographs = replace(get_dataset(config), attributes={})
    first = list(worth.stage_one(config, photographs, seconds=0.01, n=4))
    assert [row["steps"] for row in first] == [worth.TRIED] * 3 and all(row["CPU s"] >= 0 for row in first)
    assert first[0]["decoded, imagenet"] > first[0]["known kept, imagenet"] > 0
    assert len({row["decoded, imagenet"] for row in first}) == 3, "three trainings"
    second = list(worth.refiners(config, photographs, seconds=0.01, n=4))
    classical, refined, ours, _ = second
    assert classical["fill"] == "navier_stokes" and classical["steps"] is None and refined["steps"] == worth.TRIED
    truth, holes = photographs.val[:4], random_holes(worth.VAL_HOLES, 6)[:4]
    filled = fill_holes(truth, holes, "navier_stokes")
    assert classical["hole PSNR (dB)"] == worth.hole_psnr_db(filled, truth, holes) != ours["hole PSNR (dB)"]
    whole = replace(config, refiner=replace(config.refiner, steps=2))
    third = {row["fill"]: row for row in worth.on_test(whole, photographs) if row["judge"] == "imagenet"}
    assert set(third) == {*(f"{a}{b}" for a in ("navier_stokes", "telea", "poisson") for b in ("", ", refined")),
                          "one shot, refined"}
    best = min(third["navier_stokes"]["all"], third["telea"]["all"])
    for row in third.values():
        assert next(value for key, value in row.items() if key.startswith("less 0.55")).startswith(
            f"{row['all'] - worth.GOAL * best:+.2f} ("
        )
    alone = {row["fill"]: row["imagenet"] for row in worth.on_more(whole, photographs, 4)}
    for way, other in {"navier_stokes": "navier_stokes", "T = 8, poisson": "poisson",
                       "one shot, refined": "one shot, refined"}.items():  # fmt: skip
        assert alone[way] == pytest.approx(third[other]["all"]), "no validation photograph is among them"
    more = {row["fill"]: row["imagenet"] for row in worth.on_more(whole, photographs, 6)}
    assert list(more) == list(alone) and more["telea"] != alone["telea"]
    with pytest.raises(ValueError, match="--more 11 is more than there are: 4 known and 6 of validation"):
        list(worth.on_more(whole, photographs, 11))
    wide = {row["fill"]: row["hole PSNR (dB)"] for row in worth.on_wide(whole, photographs, 4)}
    square = torch.zeros(4, 64, 64, dtype=torch.bool)
    square[:, 16:48, 16:48] = True
    filled = fill_holes(photographs.val[:4], square, "telea")
    assert list(wide) == list(alone) and wide["telea"] == worth.hole_psnr_db(filled, photographs.val[:4], square)
    assert worth.main(["--data", "toycats"]) == 2 and "must name photographs" in capsys.readouterr().err
