"""The same config and seed give the same tokens, tables and figures; each seed has a stream of its own."""

import hashlib
import io
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
import torch
from stubs import Blocks
from torch import nn

from lab5.config import Config, DecodeConfig
from lab5.data.dataset import get_dataset
from lab5.inpainting.fill import decode_holes
from lab5.inpainting.pair import make_pair
from lab5.inpainting.tokenizer import Tokenizer
from lab5.objectives import MVTMObjective, epoch_batch
from lab5.profiles import configure
from lab5.scoring.scores import Scorer
from lab5.show.figures import decode_grid, fid_curve, loss_curve
from lab5.show.notebook import read_metrics
from lab5.study.run import Plan, run_study
from lab5.study.tables import result_table
from lab5.trainer import fit
from lab5.training.networks import open_pair, token_cache, train_transformer, train_vqgan, training_holes, validation

ROOT = Path(__file__).parent.parent
TINY = {
    "device": "cpu", "data.train": 24, "data.val": 8, "data.test": 6,
    "stage1.steps": 6, "stage1.batch": 4, "stage1.warmup": 1, "stage2.steps": 5, "stage2.batch": 4, "stage2.warmup": 1,
    "transformer.dropout": 0.1, "transformer.attention_dropout": 0.1,
}  # fmt: skip


def tiny(**changes) -> Config:
    return configure("smoke", **TINY | changes)


@contextmanager
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def weights(model: nn.Module) -> list:
    return list(model.state_dict().values())


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def train(**changes):
    config = tiny(**changes)
    data = get_dataset(config)
    tokenizer = Tokenizer(train_vqgan(config, data).run().model)
    return data, tokenizer, train_transformer(config, data, tokenizer).run().model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where networks are trained once, for all tests that read them."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def trained(folder, monkeypatch):
    monkeypatch.setenv("LAB5_DATA", str(folder))
    with one_thread():
        return train()


# --- twice ------------------------------------------------------------------------------------------------------------


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def drawn(figure) -> str:
    with matplotlib.rc_context({"svg.hashsalt": "lab5"}):
        figure.savefig(file := io.BytesIO(), format="svg", metadata={"Date": None})
    return digest(file.getvalue())


def chain() -> str:
    """From a data folder with or without networks to tables and figures, as JSON."""
    config = tiny()
    data = get_dataset(config)
    pair = open_pair(config, data, "trained")
    decode = DecodeConfig(steps=3, fill="telea", hints=True, evidence=1.0)
    plans = [Plan(decode, (1, 2, 3)), Plan(DecodeConfig(steps=2, schedule="linear"))]
    results = list(run_study(pair, Scorer(data, Blocks()), plans, seeds=2))
    states = list(decode_holes(pair, data.masked_test, data.holes, decode, 3))
    history = train_transformer(config, data, pair.tokenizer).run().history
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figures = [
            drawn(decode_grid({"filled": pair.tokenizer.decode(states[-1].filled)[:3]})),
            drawn(fid_curve(result_table(results), "stop_at")),
            drawn(loss_curve(history, "accuracy", label="accuracy")),
        ]
    return json.dumps({
        "data": data.fingerprint,
        "weights": pair.weights,
        "tokens": digest(token_cache(config, pair.tokenizer, data).numpy().tobytes()),
        "decoded": [digest(state.filled.numpy().tobytes()) for state in states[1:]],
        "rows": [{k: v for k, v in row.items() if k != "seconds"} for result in results for row in result.rows],
        "losses": [(step.loss, step.lr, step.metrics) for step in history],
        "figures": figures,
    })  # fmt: skip


def test_two_runs_of_the_chain_are_the_same_to_the_last_digit(trained, tmp_path):
    """The other in a process of its own, with another order of sets, another wall clock and another folder."""
    own = {"LAB5_DATA": str(tmp_path), "PYTHONHASHSEED": "2", "TZ": "UTC+2"}
    code = "import sys; sys.path[:0] = sys.argv[1:]; import test_repeatable as t\nwith t.one_thread(): print(t.chain())"
    done = subprocess.run([sys.executable, "-c", code, str(ROOT), str(ROOT / "tests")],
                          env=os.environ | own, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    with one_thread():
        ours, theirs = json.loads(chain()), json.loads(done.stdout.splitlines()[-1])
    assert ours == theirs
    assert len(ours["rows"]) == 8 and len(ours["losses"]) == 5


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
        {path.name: digest(path.read_bytes()) for path in folder.glob("*.svg")}
        for folder in (smoke_report.parent / "figures", tmp_path / "figures")
    ]
    assert figures[0] == figures[1]


# --- streams; that each draw of a training has numbers of its own is in test_trainer.py -------------------------------


def masks_of(seed: int, order: int = 0, masking: str = "cosine") -> tuple[list, list, list]:
    """The masks that `fit` shows to a model with these seeds, the batches, and what dropout leaves of ones."""
    shown, dropped = [], []

    class Model(nn.Embedding):
        mask_id = 99

        def forward(self, tokens, where):
            shown.append((tokens.clone(), tokens == 99))
            dropped.append(nn.functional.dropout(torch.ones(64), 0.5))
            return super().forward(tokens)[where]

    tokens = torch.arange(20 * 16).view(20, 16) % 99
    config = replace(tiny().stage2, steps=3, batch=4, masking=masking)
    list(fit(Model(100, 100), MVTMObjective(tokens, config, order), config, seed=seed))
    batches = [epoch_batch(20, 4, draw, order) for draw in (1, 2, 3)]
    for (seen, masked), batch in zip(shown, batches, strict=True):
        assert torch.equal(seen, tokens[batch].masked_fill(masked, 99)), "the order is the objective's own"
    return [masked for _, masked in shown], batches, dropped


def test_masks_the_order_of_images_and_dropout_have_streams_of_their_own():
    masks, batches, dropped = masks_of(0)
    other_masks, same_batches, _ = masks_of(1)
    assert equal(batches, same_batches) and not equal(masks, other_masks)
    same_masks, other_batches, same_dropped = masks_of(0, order=1)
    assert equal(masks, same_masks) and equal(dropped, same_dropped) and not equal(batches, other_batches)
    other_masks, same_batches, same_dropped = masks_of(0, masking="uniform")
    assert equal(batches, same_batches) and equal(dropped, same_dropped) and not equal(masks, other_masks)


def test_the_seed_of_the_data_changes_images_and_test_holes_alone(trained):
    data, tokenizer, _ = trained
    changed = tiny(**{"data.seed": 6})
    other = get_dataset(changed)
    assert not torch.equal(data.train, other.train) and not torch.equal(data.holes, other.holes)
    assert torch.equal(training_holes(tiny()), training_holes(changed))
    assert torch.equal(validation(tokenizer, data, False)[1], validation(tokenizer, other, False)[1])


def test_the_seed_of_the_training_changes_weights_and_leaves_the_data(trained):
    (data, tokenizer, model), (same, other_tokenizer, other) = trained, train(seed=1)
    assert data.fingerprint == same.fingerprint
    assert not equal(weights(tokenizer.vqgan), weights(other_tokenizer.vqgan))
    assert not equal(weights(model), weights(other))


def test_the_seed_of_the_decoding_changes_what_is_drawn_and_nothing_else(trained):
    data, tokenizer, model = trained
    pair, decode = make_pair(tokenizer, model, "trained"), DecodeConfig(steps=2)
    before, state = [w.clone() for w in weights(model)], torch.get_rng_state()
    first, again, other = (
        [state.filled for state in decode_holes(pair, data.masked_test, data.holes, decode, seed)][1:]
        for seed in (0, 0, 1)
    )
    assert equal(first, again) and not equal(first, other) and equal(before, weights(model))
    assert torch.equal(torch.get_rng_state(), state), "nor torch's stream"
