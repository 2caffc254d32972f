"""The loop is plain AdamW with the learning rate, clipping and averages that it promises, and resumes exactly."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lab5.config import TrainConfig, TransformerConfig
from lab5.runtime.files import load_tensors
from lab5.runtime.states import state_files
from lab5.trainer import TrainStep, compile_parts, fit, learning_rate, learning_rates
from lab5.transformer import BidirectionalTransformer

CONFIG = TrainConfig(steps=8, batch=4, lr=1e-2, warmup=2, amp="off", ema=0.0, clip=0.0)


def mlp(dropout=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 2))


def convolutions(dropout=0.2):
    """With weights laid out as on the way to fast convolutions, not row by row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Dropout(dropout), nn.Conv2d(6, 2, 3), nn.Flatten())
        return layers.to(memory_format=torch.channels_last)


def batch_of(generator, n=4, shape=(5,)):
    inputs = torch.randn(n, *shape, generator=generator)
    return inputs, torch.stack([inputs.flatten(1).sum(1), inputs.flatten(1)[:, 0]], 1)


def regression(model, draw, generator):
    inputs, targets = batch_of(generator)
    return (model(inputs) - targets).square().mean(), {"draw": float(draw)}


def image_regression(model, draw, generator):
    inputs, targets = batch_of(generator, shape=(3, 5, 5))
    return 10 * (model(inputs).float() - targets).square().mean(), {}


def run(model, objective=regression, config=CONFIG, seed=0, **options):
    return list(fit(model, objective, config, seed=seed, **options))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def close(a, b, tolerance=1e-6):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.allclose(x, y, rtol=0, atol=tolerance) for x, y in pairs)


def saved_step(file):
    """The step of the newest state, as its name and its content say."""
    newest = state_files(file)[0]
    step = load_tensors(newest)[1]["step"]
    assert newest.name == f"{file.name}-{step}"
    return step


def draws_of(seed, draw):
    """The generator that an objective is given for a draw: a function of the two."""
    caught = []

    def catch(model, number, generator):
        if number == draw:
            caught.append(generator.clone_state())
        return model[0].weight.sum() * 0, {}

    run(mlp(), catch, replace(CONFIG, steps=draw, accumulate=1), seed)
    return caught[0]


# --- the learning rate ------------------------------------------------------------------------------------------------


SCHEDULES = TrainConfig.__dataclass_fields__["schedule"].metadata["choices"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_learning_rate_rises_in_a_line_and_reaches_its_peak_at_the_end_of_the_warm_up(schedule):
    config = TrainConfig(steps=110, batch=1, lr=2e-3, warmup=10, schedule=schedule, milestones=(50,), decay_every=40)
    rates = [learning_rate(config, step) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([2e-3 * step / 10 for step in range(1, 11)])
    assert max(rates) == rates[9] == pytest.approx(2e-3)


def test_after_the_warm_up_each_schedule_has_its_closed_form():
    def rates(schedule, *steps):
        config = TrainConfig(steps=110, batch=1, lr=2e-3, warmup=10, schedule=schedule)
        return [learning_rate(config, step) / 2e-3 for step in steps]

    assert rates("constant", 11, 60, 110) == pytest.approx([1, 1, 1])
    assert rates("warmup_linear", 35, 60, 110) == pytest.approx([0.75, 0.5, 0.01])  # a floor of 1 %
    assert rates("warmup_cosine", 35, 60, 110) == pytest.approx([0.01 + 0.99 * (2 + math.sqrt(2)) / 4, 0.505, 0.01])
    for schedule in ("warmup_linear", "warmup_cosine"):
        falling = rates(schedule, *range(10, 111))
        assert all(a >= b >= 0.01 - 1e-12 for a, b in zip(falling, falling[1:], strict=False))


def test_without_warm_up_the_first_step_is_at_full_speed_nearly():
    config = TrainConfig(steps=1000, batch=1, lr=1.0, warmup=0)
    assert learning_rate(config, 1) == pytest.approx(1, abs=1e-4)
    assert learning_rate(replace(config, steps=1), 1) == pytest.approx(0.01)


def test_an_unknown_schedule_is_refused_at_the_first_step_and_not_after_the_warm_up():
    with pytest.raises(ValueError, match="^schedule must be one of constant, warmup_cosine, warmup_linear, .*'cosine'"):
        learning_rate(replace(CONFIG, schedule="cosine"), 1)


DECAYS = {"multi_step": {"milestones": (3, 10, 11)}, "step": {"decay_every": 4}}


@pytest.mark.parametrize("name", DECAYS)
def test_decays_come_when_torchs_schedulers_have_them(name):
    config = TrainConfig(steps=20, batch=1, lr=2e-3, warmup=0, schedule=name, decay=0.3, **DECAYS[name])
    optimiser = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=2e-3)
    if name == "multi_step":
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [3, 10, 11], 0.3)
    else:
        scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 4, 0.3)
    expected = []
    for _ in range(20):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    assert learning_rates(config) == pytest.approx(expected)
    assert len(set(learning_rates(config))) > 3


def test_a_warm_up_delays_the_intervals_of_step_and_not_the_milestones():
    config = TrainConfig(steps=20, batch=1, lr=1.0, warmup=3, decay=0.5, decay_every=5, milestones=(8, 13))
    rates = [1 / 3, 2 / 3, 1, *[1.0] * 5, *[0.5] * 5, *[0.25] * 5, 0.125, 0.125]
    assert learning_rates(replace(config, schedule="step")) == pytest.approx(rates)
    assert learning_rates(replace(config, schedule="multi_step")) == pytest.approx(rates[:18] + [0.25, 0.25])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rates_of_a_plan_are_those_of_the_run(schedule):
    config = replace(CONFIG, schedule=schedule, milestones=(4,), decay_every=3)
    assert [step.lr for step in run(mlp(), config=config)] == learning_rates(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "multi_step", "milestones": (9,)}, r"rise from 3, .* to 8, the last step; found \(9,\)"),
        ({"schedule": "multi_step", "milestones": (2, 5)}, r"found \(2, 5\)"),  # one within the warm-up
        ({"schedule": "multi_step", "milestones": (6, 5)}, r"found \(6, 5\)"),
        ({"schedule": "multi_step", "milestones": (5, 5)}, r"found \(5, 5\)"),
        ({"schedule": "step", "decay_every": 9}, r"decay_every must lie in 1\.\.8, the number of steps; found 9"),
        ({"schedule": "step", "decay_every": 0}, "decay_every must be at least 1, not 0"),
        ({"schedule": "step", "decay_every": 3, "decay": 1.0}, "decay must be above 0 and below 1, not 1.0"),
        ({"optimiser": "sgd"}, "optimiser must be one of adamw, adam, not 'sgd'"),
    ],
)
def test_a_decay_that_would_never_come_is_refused_before_the_first_step(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(mlp(), config=replace(CONFIG, **changes), save_to=tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_settings_of_other_schedules_are_not_looked_at():
    config = replace(CONFIG, milestones=(99, 1), decay_every=99, decay=0.9)
    assert [step.lr for step in run(mlp(), config=config)] == learning_rates(CONFIG)


def test_the_learning_rate_moves_once_a_step_however_many_batches_are_in_it():
    config = replace(CONFIG, accumulate=3)
    steps = run(mlp(), config=config)
    assert [step.lr for step in steps] == [learning_rate(config, n) for n in range(1, 9)]
    assert [step.metrics["draw"] for step in steps] == [3, 6, 9, 12, 15, 18, 21, 24]


# --- the steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_is_torchs_adamw_step_for_step(clip, accumulate):
    config = replace(CONFIG, clip=clip, accumulate=accumulate, weight_decay=0.1, betas=(0.8, 0.95))
    batches = [batch_of(draws_of(0, draw)) for draw in range(1, 8 * accumulate + 1)]
    ours, plain = mlp(), mlp()
    losses = [step.loss for step in run(ours, config=config)]

    weights, biases = ([p for p in plain.parameters() if (p.dim() > 1) == wide] for wide in (True, False))
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.8, 0.95), foreach=False, fused=False)
    for step in range(8):
        inputs, targets = (torch.cat(part) for part in zip(*batches[step * accumulate :][:accumulate], strict=True))
        loss = (plain(inputs) - targets).square().mean()  # one batch, `accumulate` times as large
        assert losses[step] == pytest.approx(loss.item(), rel=1e-4)
        optimiser.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(plain.parameters(), clip)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, step + 1)
        optimiser.step()
    assert close(ours, plain)
    assert not close(ours, mlp(), 1e-3)
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):  # Adam itself is blind to a wrong scale
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6)


def test_adam_is_torchs_and_has_its_decay_in_the_gradient():
    config = replace(CONFIG, optimiser="adam", weight_decay=0.3, betas=(0.8, 0.95))
    ours, plain, other = mlp(), mlp(), mlp()
    run(ours, config=config)
    run(other, config=replace(config, optimiser="adamw"))
    weights, biases = ([p for p in plain.parameters() if (p.dim() > 1) == wide] for wide in (True, False))
    groups = [{"params": weights, "weight_decay": 0.3}, {"params": biases, "weight_decay": 0.0}]
    optimiser = torch.optim.Adam(groups, betas=(0.8, 0.95), foreach=False, fused=False)
    for step in range(1, 9):
        inputs, targets = batch_of(draws_of(0, step))
        optimiser.zero_grad()
        (plain(inputs) - targets).square().mean().backward()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, step)
        optimiser.step()
    assert close(ours, plain)
    assert not close(ours, other, 1e-3)


def test_gradients_longer_than_the_clip_are_shortened_to_it():
    def norm(model):
        return torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()

    for clip in (0.0, 0.01, 1e3):
        model = mlp()
        for _ in fit(model, regression, replace(CONFIG, clip=clip), seed=0):
            if clip == 0.01:
                assert norm(model) == pytest.approx(0.01, rel=1e-3)
            else:
                assert 0.1 < norm(model) < 1e3


def test_a_step_says_what_happened():
    steps = run(mlp(), config=replace(CONFIG, accumulate=2), seed=4)
    assert all(isinstance(step, TrainStep) for step in steps)
    assert [(step.step, step.steps) for step in steps] == [(n, 8) for n in range(1, 9)]
    seconds = [step.seconds for step in steps]
    assert seconds == sorted(seconds) and seconds[0] > 0
    # The loss is the mean over the step's batches.
    losses = [regression(mlp(), draw, draws_of(4, draw))[0].item() for draw in (1, 2)]
    assert steps[0].loss == pytest.approx(sum(losses) / 2, rel=1e-6)


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


def test_an_unknown_mixed_precision_is_refused_and_nothing_is_written(tmp_path):
    for change, message in (
        ({"amp": "bf8"}, "amp must be one of bf16, fp16, off, not 'bf8'"),
        ({"schedule": "cosine"}, "schedule must be one of constant, .*, not 'cosine'"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            run(mlp(), config=replace(CONFIG, **change), save_to=tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


# --- averaged weights -------------------------------------------------------------------------------------------------


def average_by_hand(weights, decay):
    """Of the weights after each step; the first few follow closely."""
    average = weights[0]
    for n, current in enumerate(weights[1:], start=1):
        keep = min(decay, (1 + n) / (10 + n))
        average = [keep * a + (1 - keep) * c for a, c in zip(average, current, strict=True)]
    return average


@pytest.mark.parametrize("decay", [0.3, 0.999])
@pytest.mark.parametrize("left_after", [8, 5])
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


def test_a_run_is_a_function_of_its_seed_and_not_of_the_global_random_state():
    models = []
    for seed, outer in ((1, 1), (1, 2), (2, 1)):
        torch.manual_seed(outer)
        models.append(mlp(dropout=0.5))
        run(models[-1], seed=seed)
    assert same(models[0], models[1]) and not same(models[0], models[2])


def test_the_global_random_state_is_as_it_was_at_every_step_and_after():
    torch.manual_seed(11)
    state = torch.get_rng_state()
    for _ in fit(mlp(dropout=0.5), regression, CONFIG, seed=0):
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_draw_has_random_numbers_of_its_own_from_the_generator_and_for_dropout():
    numbers = [torch.rand(4, generator=draws_of(seed, draw)) for seed, draw in ((0, 1), (0, 2), (1, 1))]
    assert len({tuple(row.tolist()) for row in numbers}) == 3
    assert torch.equal(numbers[0], torch.rand(4, generator=draws_of(0, 1)))

    dropped = []

    def objective(model, draw, generator):
        dropped.append(tuple(nn.functional.dropout(torch.ones(64)).tolist()))
        return regression(model, draw, generator)

    for seed in (0, 1, 0):
        run(mlp(), objective, replace(CONFIG, accumulate=2, steps=4), seed)
    assert len(set(dropped)) == 16 and dropped[:8] == dropped[16:]


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


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("stop", [1, 5])
@pytest.mark.parametrize(
    ("build", "objective"), [(lambda: mlp(0.5), regression), (convolutions, image_regression)], ids=["mlp", "convs"]
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, build, objective, stop, amp):
    config = replace(CONFIG, ema=0.9, clip=1.0, weight_decay=0.05, accumulate=2, amp=amp, steps=12)
    whole, parts, file = build(), build(), tmp_path / "state.safetensors"
    straight = run(whole, Counting(objective), config)

    for step in fit(parts, Counting(objective), config, seed=0, save_to=file):
        if step.step == stop:
            break
    assert saved_step(file) == stop
    parts, counting = build(), Counting(objective)  # as in a new process
    rest = run(parts, counting, config, save_to=file)
    assert [(s.step, s.loss, s.lr) for s in rest] == [(s.step, s.loss, s.lr) for s in straight[stop:]]
    assert same(parts, whole) and not same(parts, build())
    assert counting.calls == 24


@pytest.mark.parametrize("stop", [3, 4, 9])
@pytest.mark.parametrize("changes", [{"schedule": "step", "decay_every": 2, "decay": 0.5}, {"optimiser": "adam"}],
                         ids=["step", "adam"])  # fmt: skip
def test_decays_and_adam_go_on_bit_for_bit_too(tmp_path, changes, stop):
    config, file = replace(CONFIG, ema=0.9, steps=12, **changes), tmp_path / "state.safetensors"
    whole, parts = mlp(0.5), mlp(0.5)
    straight = run(whole, config=config)
    for step in fit(parts, regression, config, seed=0, save_to=file):
        if step.step == stop:
            break
    parts = mlp(0.5)
    rest = run(parts, config=config, save_to=file)
    assert [(s.step, s.loss, s.lr) for s in rest] == [(s.step, s.loss, s.lr) for s in straight[stop:]]
    assert same(parts, whole)
    if "schedule" in changes:  # and there was something to go on with
        assert len({step.lr for step in straight[2:]}) > 2


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
    file = tmp_path / "state.safetensors"
    for step in fit(mlp(), regression, CONFIG, seed=0, save_to=file, save_every=0.0):
        if step.step > 1:  # when the next one is asked for, so that what its caller has added to it is there too
            assert saved_step(file) == step.step - 1
            assert len(state_files(file)) == min(step.step - 1, 2), "the last two are kept"
    assert [path.name for path in state_files(file)] == ["state.safetensors-8", "state.safetensors-7"]
    for path in state_files(file):
        path.unlink()
    for _ in fit(mlp(), regression, CONFIG, seed=0, save_to=file, save_every=1e6):
        assert not state_files(file)
    assert saved_step(file) == 8


def fails_at(draw, failure):
    """The regression, until a draw at which `failure` makes something else of the loss, or raises."""

    def objective(model, number, generator):
        loss, metrics = regression(model, number, generator)
        return (failure(loss) if number == draw else loss), metrics

    return objective


def raises(error):
    def failure(loss):
        raise error

    return failure


FAILURES = {
    "a loss that is no number": (lambda loss: loss * math.nan, FloatingPointError, "loss is nan at step 5 .* of 0.005"),
    "an infinite loss": (lambda loss: loss * math.inf, FloatingPointError, "loss is inf at step 5"),
    # d sqrt(x) / dx is infinite at 0, where sqrt itself is fine
    "a gradient that is no number": (
        lambda loss: loss + (loss * 0).sqrt(), FloatingPointError, "gradient is nan at step 5 .* of 0.005"),
    "an interrupt": (raises(KeyboardInterrupt()), KeyboardInterrupt, None),
    "an error": (raises(RuntimeError("out of memory")), RuntimeError, "out of memory"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_a_step_that_fails_says_so_and_leaves_the_last_good_state(name, tmp_path):
    failure, error, message = FAILURES[name]
    config, file = replace(CONFIG, ema=0.9), tmp_path / "state.safetensors"
    model, good = mlp(), []
    with pytest.raises(error, match=message):
        for _ in fit(model, fails_at(5, failure), config, seed=0, save_to=file, save_every=0.0):
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


def test_metrics_may_come_as_tensors_and_leave_as_numbers():
    """So that an objective need not wait for a GPU."""
    def objective(model, step, generator):
        return model(torch.ones(2, 5)).square().mean(), {"accuracy": torch.tensor(0.25)}

    step = next(fit(mlp(), objective, CONFIG, seed=0))
    assert step.metrics == {"accuracy": 0.25} and type(step.metrics["accuracy"]) is float


def test_the_way_of_matmul_is_put_back_between_steps(monkeypatch):
    monkeypatch.setattr("lab5.runtime.machine._onednn_is_faster", lambda: True)
    seen = []

    def objective(model, step, generator):
        seen.append(torch.get_float32_matmul_precision())
        return model(torch.ones(2, 5)).square().mean(), {}

    next(fit(mlp(), objective, CONFIG, seed=0))
    assert seen[0] == "medium" and torch.get_float32_matmul_precision() == "highest"


class Part(nn.Module):
    """Not one of torch's own, which torch.compile leaves to themselves."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x):
        return self.linear(x).tanh()


class Blocks(nn.Module):
    """As a transformer has them; the checks of shapes in these tests and torch.compile do not get along."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Part() for _ in range(2))

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x))


@pytest.mark.parametrize("build", [Blocks, Part])
def test_compiled_parts_are_the_same_network_under_the_same_names(build):
    model, x, graphs = build(), torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), []
    names, expected = list(model.state_dict()), model(x)
    compile_parts(model, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    torch.testing.assert_close(model(x), expected)
    assert graphs and list(model.state_dict()) == names


def test_without_a_gpu_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr("lab5.trainer.compile_parts", lambda model: pytest.fail("compiled"))
    assert len(run(mlp(), config=replace(CONFIG, compile=True))) == CONFIG.steps
