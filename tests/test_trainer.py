"""The loop is plain AdamW with the learning rate, clipping and averages that it promises, and resumes exactly."""

import copy
import math
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from lab5.config import TrainConfig, TransformerConfig
from lab5.runtime.files import load_tensors
from lab5.runtime.machine import compile_parts
from lab5.runtime.states import state_files
from lab5.trainer import fit, learning_rate, learning_rates
from lab5.transformer import BidirectionalTransformer

CONFIG = TrainConfig(steps=8, batch=4, lr=1e-2, warmup=2, amp="off", ema=0.0, clip=0.0)
AT_EVERY_STEP = -1.0  # as `save_every`: also where the clock has not moved


def mlp(dropout=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 2))


def convolutions(dropout=0.0):
    """With weights laid out as on the way to fast convolutions, not row by row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Dropout(dropout), nn.Conv2d(6, 2, 3), nn.Flatten())
        return layers.to(memory_format=torch.channels_last)


def batch_of(generator, shape=(5,), n=4):
    inputs = torch.randn(n, *shape, generator=generator)
    return inputs, torch.stack([inputs.flatten(1).sum(1), inputs.flatten(1)[:, 0]], 1)


def regression(model, draw, generator):
    inputs, targets = batch_of(generator)
    return (model(inputs) - targets).square().mean(), {"draw": torch.tensor(float(draw))}


def image_regression(model, draw, generator):
    inputs, targets = batch_of(generator, shape=(3, 5, 5))
    return 10 * (model(inputs).float() - targets).square().mean(), {}


def run(model, objective=regression, config=CONFIG, seed=0, **options):
    return list(fit(model, objective, config, seed=seed, **options))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def saved_step(file):
    """The step of the newest state, as its name and its content say."""
    newest = state_files(file)[0]
    step = load_tensors(newest)[1]["step"]
    assert newest.name == f"{file.name}-{step}"
    return step


# --- the learning rate ------------------------------------------------------------------------------------------------


SCHEDULES = TrainConfig.__dataclass_fields__["schedule"].metadata["choices"]
DECAYS = {"multi_step": {"milestones": (3, 10, 11)}, "step": {"decay_every": 4}}
NOBODYS = {"milestones": (99, 1), "decay_every": 99, "decay": 0.9}  # where no schedule looks at them


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1]),
        ("warmup_linear", [0.75, 0.5, 0.01]),  # a floor of 1 %
        ("warmup_cosine", [0.01 + 0.99 * (2 + math.sqrt(2)) / 4, 0.505, 0.01]),
    ],
)
def test_the_rate_rises_in_a_line_to_the_end_of_the_warm_up_and_then_has_its_closed_form(schedule, expected):
    rates = learning_rates(TrainConfig(steps=110, batch=1, lr=2e-3, warmup=10, schedule=schedule, **NOBODYS))
    assert rates[:10] == pytest.approx([2e-3 * step / 10 for step in range(1, 11)])
    assert [rates[step - 1] / 2e-3 for step in (35, 60, 110)] == pytest.approx(expected)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_without_warm_up_the_first_step_is_at_full_speed_nearly():
    config = TrainConfig(steps=1000, batch=1, lr=1.0, warmup=0)
    assert learning_rate(config, 1) == pytest.approx(1, abs=1e-4)
    assert learning_rate(replace(config, steps=1), 1) == pytest.approx(0.01)


def test_decays_come_after_milestones_and_after_intervals_behind_the_warm_up():
    config = TrainConfig(steps=20, batch=1, lr=1.0, warmup=3, decay=0.5, decay_every=5, milestones=(8, 13))
    rates = [1 / 3, 2 / 3, 1, *[1.0] * 5, *[0.5] * 5, *[0.25] * 5, 0.125, 0.125]
    assert learning_rates(replace(config, schedule="step")) == pytest.approx(rates)
    assert learning_rates(replace(config, schedule="multi_step")) == pytest.approx(rates[:18] + [0.25, 0.25])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rates_of_a_plan_are_those_of_the_run_however_many_batches_are_in_a_step(schedule):
    config = replace(CONFIG, steps=12, schedule=schedule, accumulate=2, **DECAYS.get(schedule, NOBODYS))
    assert [step.lr for step in run(mlp(), config=config)] == learning_rates(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosine"}, "^schedule must be one of constant, warmup_cosine, warmup_linear, .*'cosine'"),
        ({"schedule": "multi_step", "milestones": (9,)}, r"rise from 3, .* to 8, the last step; found \(9,\)"),
        ({"schedule": "multi_step", "milestones": (2, 5)}, r"found \(2, 5\)"),  # one within the warm-up
        ({"schedule": "multi_step", "milestones": (6, 5)}, r"found \(6, 5\)"),
        ({"schedule": "multi_step", "milestones": (5, 5)}, r"found \(5, 5\)"),
        ({"schedule": "step", "decay_every": 9}, r"decay_every must lie in 1\.\.8, the number of steps; found 9"),
        ({"schedule": "step", "decay_every": 0}, "decay_every must be at least 1, not 0"),
        ({"schedule": "step", "decay_every": 3, "decay": 1.0}, "decay must be above 0 and below 1, not 1.0"),
        ({"optimiser": "sgd"}, "optimiser must be one of adamw, adam, not 'sgd'"),
        ({"amp": "bf8"}, "^amp must be one of bf16, fp16, off, not 'bf8'"),
    ],
    ids=lambda value: "-".join(f"{item}" for item in value.values()) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_are_refused_before_the_first_step_and_nothing_is_written(changes, message, tmp_path):
    config = replace(CONFIG, **changes)
    with pytest.raises(ValueError, match=message):
        learning_rate(config, 1)
    with pytest.raises(ValueError, match=message):
        run(mlp(), config=config, save_to=tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


# --- the steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimiser", "clip", "accumulate"),
    [("adamw", 0.0, 1), ("adamw", 0.05, 1), ("adamw", 0.0, 3), ("adamw", 0.05, 3), ("adam", 0.0, 1)],
)
def test_it_is_torchs_adamw_or_adam_step_for_step(optimiser, clip, accumulate):
    """One batch of all that the step has seen, however unequal its parts, where an objective says how large they are.

    AdamW shrinks the weights themselves, Adam has the decay in its gradients.
    """
    config = replace(
        CONFIG, optimiser=optimiser, clip=clip, accumulate=accumulate, weight_decay=0.3, betas=(0.8, 0.95)
    )
    batches, ours, plain = [], mlp(), mlp()

    def remembered(model, draw, generator):
        images = 3 + 5 * (draw % 2)
        batches.append(batch_of(generator, n=images))
        return (model(batches[-1][0]) - batches[-1][1]).square().mean(), {"weight": images}

    losses = [step.loss for step in run(ours, remembered, config)]
    weights, biases = ([p for p in plain.parameters() if (p.dim() > 1) == wide] for wide in (True, False))
    groups = [{"params": weights, "weight_decay": 0.3}, {"params": biases, "weight_decay": 0.0}]
    build = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[optimiser]
    theirs = build(groups, betas=(0.8, 0.95), foreach=False, fused=False)
    for step in range(8):
        inputs, targets = (torch.cat(part) for part in zip(*batches[step * accumulate :][:accumulate], strict=True))
        loss = (plain(inputs) - targets).square().mean()
        assert losses[step] == pytest.approx(loss.item(), rel=1e-4)
        theirs.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(plain.parameters(), clip)
        for group in theirs.param_groups:
            group["lr"] = learning_rate(config, step + 1)
        theirs.step()
    for p, q, start in zip(ours.parameters(), plain.parameters(), mlp().parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
        assert not torch.allclose(p, start, rtol=0, atol=1e-3)
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6)  # Adam itself is blind to a wrong scale


def test_a_step_says_what_happened():
    losses = []

    def remembered(model, draw, generator):
        loss, metrics = regression(model, draw, generator)
        losses.append(loss.item())
        return loss, metrics

    steps = run(mlp(), remembered, replace(CONFIG, accumulate=2), seed=4)
    assert [(step.step, step.steps) for step in steps] == [(n, 8) for n in range(1, 9)]
    assert [step.loss for step in steps] == pytest.approx([sum(losses[n : n + 2]) / 2 for n in range(0, 16, 2)])
    seconds = [step.seconds for step in steps]
    assert seconds == sorted(seconds) and seconds[0] >= 0
    # Metrics are those of the last batch, and numbers: they may come as tensors, so that no GPU has to be waited for.
    assert [step.metrics for step in steps] == [{"draw": 2 * n} for n in range(1, 9)]
    assert type(steps[0].metrics["draw"]) is float


def test_weight_decay_spares_biases_norms_and_embeddings_of_tokens_and_positions():
    config = TransformerConfig(codes=7, positions=6, width=8, layers=1, heads=2, hidden=12)
    model = BidirectionalTransformer(config, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)  # else those that begin at zero could not shrink
    before = copy.deepcopy(model.state_dict())

    def at_rest(model, draw, generator):  # a gradient of zero: what moves, moves by decay alone
        return sum(p.sum() for p in model.parameters()) * 0, {}

    run(model, at_rest, replace(CONFIG, steps=1, warmup=0, schedule="constant", lr=0.1, weight_decay=0.5))
    shrunk = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert shrunk == linear and {"pos_emb", "bias", "tok_emb.weight"} < before.keys()
    for name in linear:
        torch.testing.assert_close(model.state_dict()[name], before[name] * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_mixed_precision_is_in_force_within_the_objective_and_not_outside(amp, dtype):
    seen, model = [], mlp()

    def objective(model, draw, generator):
        seen.append(model(torch.ones(2, 5)).dtype)
        return regression(model, draw, generator)

    for _ in fit(model, objective, replace(CONFIG, amp=amp, steps=2), seed=0):
        assert not torch.is_autocast_enabled("cpu")
    assert seen == [dtype] * 2
    assert all(p.dtype == torch.float32 for p in model.parameters())


# --- averaged weights -------------------------------------------------------------------------------------------------


def average_by_hand(weights, decay):
    """Of the weights after each step; the first few follow closely."""
    average = weights[0]
    for n, current in enumerate(weights[1:], start=1):
        keep = min(decay, (1 + n) / (10 + n))
        average = [keep * a + (1 - keep) * c for a, c in zip(average, current, strict=True)]
    return average


@pytest.mark.parametrize(("decay", "left_after"), [(0.3, 5), (0.999, 8)])
def test_when_the_loop_ends_or_is_left_the_averaged_weights_are_in_the_model_ready_to_use(decay, left_after):
    model, seen = mlp(dropout=0.3), []
    for step in fit(model, regression, replace(CONFIG, ema=decay, schedule="constant"), seed=0):
        assert model.training
        seen.append([p.detach().clone() for p in model.parameters()])
        if step.step == left_after:
            break
    assert not model.training
    torch.testing.assert_close(list(model.parameters()), average_by_hand(seen, decay), rtol=1e-5, atol=1e-6)
    assert (model[0].weight - seen[-1][0]).abs().max() > 1e-3


def test_without_averaging_the_last_weights_stay_in_the_model():
    model = mlp()
    for _ in fit(model, regression, CONFIG, seed=0):
        last = copy.deepcopy(model)
    assert same(model, last) and not model.training


# --- random numbers ---------------------------------------------------------------------------------------------------


def test_a_run_is_a_function_of_its_seed_and_neither_reads_nor_moves_the_global_random_state():
    models = []
    for seed, outer in ((1, 1), (1, 2), (2, 1)):
        torch.manual_seed(outer)
        state = torch.get_rng_state()
        models.append(mlp(dropout=0.5))
        for _ in fit(models[-1], regression, CONFIG, seed=seed):
            assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(torch.get_rng_state(), state)
    assert same(models[0], models[1]) and not same(models[0], models[2])


def test_every_draw_has_random_numbers_of_its_own_from_the_generator_and_for_dropout():
    def numbers(seed):
        rows = []

        def objective(model, draw, generator):
            rows.extend([torch.rand(64, generator=generator), torch.rand(64)])
            return regression(model, draw, generator)

        run(mlp(), objective, replace(CONFIG, accumulate=2, steps=4), seed)
        return torch.stack(rows)

    first, other = numbers(0), numbers(1)
    assert torch.equal(numbers(0), first)
    assert torch.corrcoef(torch.cat([first, other])).fill_diagonal_(0).abs().max() < 0.6


# --- stopping and going on --------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """An objective with a state of its own: it stands in for the moving averages of the codes."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, model, draw, generator):
        self.calls += 1
        loss, metrics = self.objective(model, draw, generator)
        return loss * (1 + self.calls / 10), metrics


@pytest.mark.parametrize(
    "changes",
    [{"amp": "off"}, {"amp": "bf16"}, {"amp": "fp16"}, {"schedule": "step", "decay_every": 2}, {"optimiser": "adam"}],
    ids=["off", "bf16", "fp16", "decays", "adam"],
)
@pytest.mark.parametrize(
    ("build", "objective"), [(mlp, regression), (convolutions, image_regression)], ids=["mlp", "convs"]
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, build, objective, changes):
    config = replace(CONFIG, ema=0.9, clip=1.0, weight_decay=0.05, accumulate=2, steps=12, **changes)
    whole, file, found = build(0.5), tmp_path / "state.safetensors", []
    straight = run(whole, Counting(objective), config)
    for stop in (1, 5, 12):
        parts, counting = build(0.5), Counting(objective)  # as in a new process
        for step in fit(parts, counting, config, seed=0, save_to=file):
            found.append((step.step, step.loss, step.lr))
            if step.step == stop:
                break
        assert saved_step(file) == stop
    assert found == [(s.step, s.loss, s.lr) for s in straight]
    assert same(parts, whole) and not same(parts, build(0.5))
    assert counting.calls == 24


def test_a_finished_run_is_not_trained_again_and_gives_its_averaged_weights(tmp_path):
    config, file = replace(CONFIG, ema=0.9), tmp_path / "state.safetensors"
    first, second = mlp(), mlp()
    run(first, config=config, save_to=file)
    (state,) = state_files(file)
    written = state.stat().st_mtime_ns, state.read_bytes()
    assert run(second, config=config, save_to=file) == []
    assert same(first, second) and not second.training
    assert (state.stat().st_mtime_ns, state.read_bytes()) == written and state_files(file) == [state]


def test_the_state_is_written_on_the_way_and_at_the_end(tmp_path):
    often, once = tmp_path / "often", tmp_path / "once"
    for step in fit(mlp(), regression, CONFIG, seed=0, save_to=often, save_every=AT_EVERY_STEP):
        if step.step > 1:  # when the next one is asked for, so that what its caller has added to it is there too
            assert saved_step(often) == step.step - 1
            assert len(state_files(often)) == min(step.step - 1, 2), "the last two are kept"
    assert [path.name for path in state_files(often)] == ["often-8", "often-7"]
    for _ in fit(mlp(), regression, CONFIG, seed=0, save_to=once, save_every=1e6):
        assert not state_files(once)
    assert saved_step(once) == 8


def fails_at(draw, failure):
    """The regression, until a draw at which `failure` makes something else of the loss, or raises."""

    def objective(model, number, generator):
        loss, metrics = regression(model, number, generator)
        return (failure(loss) if number == draw else loss), metrics

    return objective


FAILURES = {
    "a loss that is no number": (lambda loss: loss * math.nan, FloatingPointError, "loss is nan at step 5 .* of 0.005"),
    "an infinite loss": (lambda loss: loss * math.inf, FloatingPointError, "loss is inf at step 5"),
    # d sqrt(x) / dx is infinite at 0, where sqrt itself is fine
    "a gradient that is no number": (
        lambda loss: loss + (loss * 0).sqrt(), FloatingPointError, "gradient is nan at step 5 .* of 0.005"),
    "an error": (lambda loss: 1 / 0, ZeroDivisionError, "division by zero"),
    "an end": (lambda loss: sys.exit("interrupted"), SystemExit, "interrupted"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_a_step_that_fails_says_so_and_leaves_the_last_good_state(name, tmp_path):
    failure, error, message = FAILURES[name]
    config, file = replace(CONFIG, ema=0.9), tmp_path / "state.safetensors"
    model, good = mlp(), []
    with pytest.raises(error, match=message):
        for _ in fit(model, fails_at(5, failure), config, seed=0, save_to=file, save_every=AT_EVERY_STEP):
            good.append([p.detach().clone() for p in model.parameters()])
    assert len(good) == 4
    assert saved_step(file) == 4
    # The model holds the average of the good steps, and the file leads to where the run would have come.
    torch.testing.assert_close(list(model.parameters()), average_by_hand(good, 0.9), rtol=1e-5, atol=1e-6)
    resumed, straight = mlp(), mlp()
    run(resumed, config=config, save_to=file)
    run(straight, config=config)
    assert same(resumed, straight)


def test_a_failure_at_the_first_step_writes_nothing(tmp_path):
    model = mlp()
    with pytest.raises(FloatingPointError, match="at step 1 with a learning rate of 0.005"):
        run(model, fails_at(1, lambda loss: loss * math.nan), replace(CONFIG, ema=0.9), save_to=tmp_path / "state")
    assert list(tmp_path.iterdir()) == []
    assert same(model, mlp())


# --- speed ------------------------------------------------------------------------------------------------------------


def test_the_way_of_matmul_is_put_back_between_steps(monkeypatch):
    monkeypatch.setattr("lab5.runtime.machine._onednn_is_faster", lambda: True)
    matmul = torch.backends.mkldnn.matmul
    seen, before = [], matmul.fp32_precision

    def objective(model, step, generator):
        seen.append(matmul.fp32_precision)
        return model(torch.ones(2, 5)).square().mean(), {}

    next(fit(mlp(), objective, CONFIG, seed=0))
    assert seen == ["bf16"] and matmul.fp32_precision == before


class Part(nn.Linear):
    """Not one of torch's own, which torch.compile leaves to themselves."""

    def forward(self, x):
        return super().forward(x).tanh()


class Blocks(nn.Module):
    """As a transformer has them; the checks of shapes in these tests and torch.compile do not get along."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Part(5, 5) for _ in range(2))

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x))


@pytest.mark.parametrize("build", [Blocks, lambda: Part(5, 5)], ids=["blocks", "whole"])
def test_compiled_parts_are_the_same_network_under_the_same_names(build):
    model, x, graphs = build(), torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), []
    names, expected = list(model.state_dict()), model(x)
    compile_parts(model, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    torch.testing.assert_close(model(x), expected)
    assert graphs and list(model.state_dict()) == names


def test_without_a_gpu_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr("lab5.trainer.compile_parts", lambda model: pytest.fail("compiled"))
    assert len(run(mlp(), config=replace(CONFIG, compile=True))) == CONFIG.steps
