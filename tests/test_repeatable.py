"""The same config and seed give the same tokens, tables and figures; each seed has a stream of its own."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lab5.config import Config, DecodeConfig, TrainConfig
from lab5.data.dataset import get_dataset
from lab5.inpainting.fill import decode_holes
from lab5.inpainting.tokenizer import Tokenizer
from lab5.objectives import MVTMObjective, epoch_batch
from lab5.profiles import configure
from lab5.show.notebook import read_metrics
from lab5.trainer import fit
from lab5.training.networks import train_transformer, train_vqgan, training_holes, validation

ROOT = Path(__file__).parent.parent
TINY = {
    "device": "cpu", "data.train": 24, "data.val": 8, "data.test": 6,
    "stage1.steps": 6, "stage1.batch": 4, "stage1.warmup": 1, "stage2.steps": 5, "stage2.batch": 4, "stage2.warmup": 1,
    "transformer.dropout": 0.1, "transformer.attention_dropout": 0.1,
}  # fmt: skip


def tiny(**changes) -> Config:
    return configure("smoke", **TINY | changes)


# --- twice ------------------------------------------------------------------------------------------------------------

CHAIN = """
    import hashlib, io, json, sys
    sys.path[:0] = {paths!r}
    import torch
    torch.set_num_threads(1)
    from matplotlib import rc_context
    from stubs import Blocks
    from test_repeatable import tiny
    from lab5.config import DecodeConfig
    from lab5.inpainting.fill import decode_holes
    from lab5.data.dataset import get_dataset
    from lab5.training.networks import open_pair, token_cache, train_transformer, train_vqgan
    from lab5.show.figures import decode_grid, fid_curve, loss_curve
    from lab5.scoring.scores import Scorer
    from lab5.study.run import Plan, run_study
    from lab5.study.tables import result_table

    def digest(content):
        return hashlib.sha256(content).hexdigest()[:12]

    def drawn(figure):
        with rc_context({{"svg.hashsalt": "lab5"}}):
            figure.savefig(file := io.BytesIO(), format="svg", metadata={{"Date": None}})
        return digest(file.getvalue())

    config = tiny()
    data, pair = get_dataset(config), open_pair(config := tiny(), get_dataset(config), "trained")
    decode = DecodeConfig(steps=3, fill="telea", hints=True, evidence=1.0)
    scorer = Scorer(data, Blocks())
    plans = [Plan(decode, (1, 2, 3)), Plan(DecodeConfig(steps=2, schedule="linear"))]
    results = list(run_study(pair, scorer, plans, seeds=2))
    rows = [{{k: v for k, v in row.items() if k != "seconds"}} for result in results for row in result.rows]
    states = list(decode_holes(pair, data.masked_test, data.holes, decode, 3))
    history = train_transformer(config, data, pair.tokenizer).run().history
    print(json.dumps({{
        "data": data.fingerprint,
        "weights": pair.weights,
        "tokens": digest(token_cache(config, pair.tokenizer, data).numpy().tobytes()),
        "decoded": [digest(state.filled.numpy().tobytes()) for state in states[1:]],
        "rows": rows,
        "losses": [(step.loss, step.lr, step.metrics) for step in history],
        "figures": [
            drawn(decode_grid({{"filled": pair.tokenizer.decode(states[-1].filled)[:3]}})),
            drawn(fid_curve(result_table(results), "stop_at")),
            drawn(loss_curve(history, "accuracy", label="accuracy")),
        ],
    }}))
"""


def test_two_runs_of_the_chain_are_the_same_to_the_last_digit(tmp_path):
    """In processes of their own, with other orders of sets, another wall clock and another folder."""
    script = tmp_path / "chain.py"
    script.write_text(textwrap.dedent(CHAIN).format(paths=[str(ROOT), str(ROOT / "tests")]))
    found = []
    for i in ("1", "2"):
        own = os.environ | {"LAB5_DATA": str(tmp_path / i), "PYTHONHASHSEED": i, "TZ": f"UTC+{i}"}
        done = subprocess.run([sys.executable, script], env=own, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0] == found[1]
    assert len(found[0]["rows"]) == 8 and len(found[0]["figures"]) == 3


def without_times(value):
    """Numbers of a report, but for those of its clock."""
    if isinstance(value, dict):
        clock = ("second", "minute", "_per_s", "speed")
        return {k: without_times(v) for k, v in value.items() if not any(word in k for word in clock)}
    return [without_times(item) for item in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_two_smoke_reports_have_the_same_numbers_and_figures(smoke_report, tmp_path, monkeypatch):
    from lab5.report.run import run_report

    monkeypatch.setenv("LAB5_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LAB5_FIGURES_DIR", str(tmp_path / "figures"))
    again = run_report("smoke", out=tmp_path / "report").parent
    first, second = (without_times(read_metrics(folder)) for folder in (smoke_report, again))
    assert first == second
    figures = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.svg")}
        for folder in (smoke_report.parent / "figures", tmp_path / "figures")
    ]
    assert figures[0] == figures[1]


# --- streams ----------------------------------------------------------------------------------------------------------


def masks_of(seed: int, steps: int = 3, dropout: float = 0.0, order: int = 0, masking: str = "cosine") -> tuple:
    """The tokens and masks that `fit` shows to a model with these seeds, and what dropout leaves of ones."""
    shown, dropped = [], []

    class Model(nn.Module):
        mask_id = 99

        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(16, 100))

        def forward(self, tokens, masked):
            shown.append((tokens.clone(), masked.clone()))
            dropped.append(nn.functional.dropout(torch.ones(64), 0.5))
            return self.table.expand(len(tokens), -1, -1)[masked]

    tokens = torch.arange(20 * 16).view(20, 16) % 99
    config = replace(tiny().stage2, steps=steps, batch=4, masking=masking)
    list(fit(Model(), MVTMObjective(tokens, config, order), config, seed=seed))
    batches = [epoch_batch(20, 4, draw, order) for draw in range(1, steps + 1)]
    for (seen, masked), batch in zip(shown, batches, strict=True):
        assert torch.equal(seen, tokens[batch].masked_fill(masked, 99)), "the order is the objective's own"
    return [masked for _, masked in shown], batches, dropped


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_masks_the_order_of_images_and_dropout_have_streams_of_their_own():
    masks, batches, dropped = masks_of(0)
    other_masks, same_batches, _ = masks_of(1)
    assert equal(batches, same_batches) and not equal(masks, other_masks)
    same_masks, other_batches, same_dropped = masks_of(0, order=1)
    assert equal(masks, same_masks) and equal(dropped, same_dropped) and not equal(batches, other_batches)
    other_masks, same_batches, same_dropped = masks_of(0, masking="uniform")
    assert equal(batches, same_batches) and equal(dropped, same_dropped) and not equal(masks, other_masks)


def test_dropout_does_not_repeat_the_numbers_that_the_masks_are_made_of():
    numbers = []

    def objective(model, draw, generator):
        numbers.append((torch.rand(64, generator=generator), torch.rand(64)))
        return model.weight.sum(), {}

    config = TrainConfig(steps=5, batch=1, lr=1e-3, warmup=0, amp="off")
    list(fit(nn.Linear(1, 1), objective, config, seed=0))
    drawn = [row for pair in numbers for row in pair]
    assert len({tuple(row.tolist()) for row in drawn}) == 10
    assert torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0).abs().max() < 0.6


def weights(model: nn.Module) -> list:
    return list(model.state_dict().values())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The networks and images of some seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB5_DATA", str(tmp_path_factory.mktemp("data")))

        def train(**changes):
            config = tiny(**changes)
            data = get_dataset(config)
            tokenizer = Tokenizer(train_vqgan(config, data).run().model)
            return config, data, tokenizer, train_transformer(config, data, tokenizer).run().model

        yield {name: train(**change) for name, change in {
            "one": {}, "other data": {"data.seed": 6}, "other training": {"seed": 1},
            "other decoding": {"decode.temperature": 0.3, "study.seeds": 9},
        }.items()}  # fmt: skip


def test_the_seed_of_the_data_changes_images_and_test_holes_alone(trained, monkeypatch, tmp_path):
    (config, data, *_), (changed, other, *_) = trained["one"], trained["other data"]
    assert not torch.equal(data.train, other.train) and not torch.equal(data.holes, other.holes)
    assert torch.equal(training_holes(config), training_holes(changed))
    monkeypatch.setenv("LAB5_DATA", str(tmp_path))
    tokenizer = trained["one"][2]
    assert torch.equal(validation(tokenizer, data, False)[1], validation(tokenizer, other, False)[1])


def test_the_seed_of_the_training_changes_weights_and_leaves_the_data(trained):
    (_, data, tokenizer, model), (_, same, other_tokenizer, other) = trained["one"], trained["other training"]
    assert data.fingerprint == same.fingerprint
    assert not equal(weights(tokenizer.vqgan), weights(other_tokenizer.vqgan))
    assert not equal(weights(model), weights(other))


def test_settings_of_the_decoding_leave_data_and_training_alone(trained):
    (_, data, tokenizer, model), (_, same, same_tokenizer, same_model) = trained["one"], trained["other decoding"]
    assert data.fingerprint == same.fingerprint
    assert equal(weights(tokenizer.vqgan), weights(same_tokenizer.vqgan)) and equal(weights(model), weights(same_model))


def test_the_seed_of_the_decoding_changes_what_is_drawn_and_nothing_else(trained):
    from lab5.inpainting.pair import make_pair

    _, data, tokenizer, model = trained["one"]
    pair, decode = make_pair(tokenizer, model, "trained"), DecodeConfig(steps=2)
    before = [w.clone() for w in weights(model)]
    torch.manual_seed(1)
    first, again, other = (
        [state.filled for state in decode_holes(pair, data.masked_test, data.holes, decode, seed)][1:]
        for seed in (0, 0, 1)
    )
    assert equal(first, again) and not equal(first, other) and equal(before, weights(model))
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(1))), "nor torch's stream"
