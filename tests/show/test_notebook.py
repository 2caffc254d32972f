"""What a notebook shows and keeps: tables that escape what they hold, numbers, a training that is watched."""

import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from stubs import Blocks, cats, untrained_pair

from lab5.config import DecodeConfig
from lab5.scoring.scores import Scorer
from lab5.show import notebook
from lab5.show.faces import read_faces
from lab5.show.notebook import read_metrics, record, record_fills, record_sections, watch
from lab5.trainer import TrainStep

# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def displayed(monkeypatch) -> list[dict[str, str]]:
    bundles = []
    monkeypatch.setattr(notebook, "display", lambda data, raw: bundles.append(data))
    return bundles


def test_a_table_has_a_column_a_key_and_a_row_a_row(displayed):
    notebook.table([{"method": "telea", "hole_psnr_db": 20.6, "n": 32}, {"method": "none", "n": 8}], caption="of cats")
    html = displayed[0]["text/html"]
    assert html.count("<tr>") == 3 and html.count("<th ") == 3 and html.count("<td ") == 6
    assert "<th style='text-align:right'>hole psnr db</th>" in html and ">of cats</caption>" in html
    assert "<td style='text-align:left'>telea</td><td style='text-align:right'>20.600</td>" in html
    assert displayed[0]["text/plain"] == "telea  20.600  32\nnone  –  8"


def test_a_column_of_small_numbers_has_a_decimal_more(displayed):
    rows = [{"kid": 0.0086, "loss": 1.9, "ratio": 0.05}, {"kid": -0.0491, "loss": 0.01, "ratio": float("nan")}]
    notebook.table(rows)
    assert displayed[0]["text/plain"] == "0.0086  1.900  0.050\n-0.0491  0.010  –"


def test_a_column_that_no_row_knows_anything_of_is_left_out(displayed):
    notebook.table([{"fill": "telea", "read": None, "n": 8}, {"fill": "ours", "read": float("nan")}])
    assert displayed[0]["text/plain"] == "telea  8\nours  –" and "read" not in displayed[0]["text/html"]


def test_what_is_not_ours_is_escaped(displayed):
    notebook.table([{"<b>": "<script>"}], caption="<i>")
    html = displayed[0]["text/html"]
    assert all(text not in html for text in ("<b>", "<script>", "<i>")) and "&lt;script&gt;" in html


def test_a_table_of_nothing_and_a_figure_without_a_text_alternative_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        notebook.table([])
    with pytest.raises(ValueError, match="text alternative"):
        notebook.show(Figure(), " ", "01_a-line")


def test_a_frame_is_shown_and_recorded_as_its_rows_with_a_dash_or_null_for_what_is_missing(displayed, own_folders):
    rows = [{"claim": "a", "n": 3, "kid": 0.25}, {"claim": "b"}]
    frame = pd.DataFrame(rows).astype({"n": "Int64"})
    notebook.table(rows, caption="of two")
    notebook.table(frame, caption="of two")
    assert displayed[1] == displayed[0]
    assert displayed[0]["text/plain"] == "a  3  0.250\nb  –  –"
    record("claims", frame)
    assert notebook.read_metrics(own_folders / "report")["claims"] == [rows[0], {"claim": "b", "n": None, "kid": None}]


# --- a training that is watched -------------------------------------------------------------------------------------


class Steps:
    """A training of four steps, of which each may do something."""

    name, reused = "vqgan", False

    def __init__(self, during=lambda step: None):
        self.during, self.closed, self.history = during, False, []

    def __len__(self):
        return 4

    def __iter__(self):
        try:
            for step in range(1, 5):
                self.during(step)
                self.history.append(TrainStep(step, 4, 1 / step, 0.1, 0.0, {}))
                yield self.history[-1]
        finally:
            self.closed = True


def test_all_steps_come_back_with_those_that_were_trained_before(capsys):
    assert [step.step for step in watch(Steps())] == [1, 2, 3, 4]
    begun = Steps()
    begun.history, begun.reused = [TrainStep(0, 4, 0.0, 0.0, 0.0, {})], True
    assert [step.step for step in watch(begun)] == [0, 1, 2, 3, 4]
    assert capsys.readouterr().out == "vqgan: training for 4 steps\nvqgan: found on disk\n"


def test_curves_are_drawn_on_the_way_where_somebody_watches(monkeypatch):
    updates = []
    monkeypatch.setattr(notebook, "is_live", lambda: True)
    monkeypatch.setattr(notebook, "display", lambda *_, **__: SimpleNamespace(update=updates.append))
    watch(Steps(), lambda steps: Figure(figsize=(len(steps), 1)), every=-1.0)
    assert [figure.get_figwidth() for figure in updates[:-1]] == [1, 2, 3, 4]
    assert not isinstance(updates[-1], Figure), "the notebook shows the final one"
    monkeypatch.setattr(notebook, "is_live", lambda: False)
    watch(Steps(), lambda steps: pytest.fail("nobody watches"), every=-1.0)


def test_an_interrupt_ends_the_loop_and_not_the_cell(capsys):
    steps = Steps(lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 3 else None)
    assert [step.step for step in watch(steps)] == [1, 2]
    assert steps.closed and "vqgan is kept" in capsys.readouterr().out


# --- numbers and figures that are kept -----------------------------------------------------------------------------


def test_record_takes_numbers_of_numpy_and_torch_and_writes_strict_json(own_folders):
    record("a", {"x": np.float64(1.5), "y": torch.tensor(2), "z": [float("nan"), np.array([1, 2])], 3: float("inf")})
    record("a", {"x": 1.25})
    text = (own_folders / "report" / "metrics.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": {"x": 1.25, "y": 2, "z": [None, [1, 2]], "3": None},
    }  # fmt: skip


def test_record_leaves_the_reports_own_keys_alone_and_names_a_damaged_file(own_folders):
    with pytest.raises(ValueError, match="seconds"):
        record("seconds", {"01": 3})
    (own_folders / "report").mkdir()
    (own_folders / "report" / "metrics.json").write_text('{"a": ')
    with pytest.raises(ValueError, match="metrics.json is not JSON"):
        record("b", {})


def test_sections_are_recorded_each_under_its_name(own_folders):
    record_sections(a={"x": 1}, b=pd.DataFrame({"y": [2, 3]}))
    assert read_metrics(own_folders / "report") == {"a": {"x": 1}, "b": [{"y": 2}, {"y": 3}]}


def test_fills_are_recorded_with_the_better_classical_one_and_whether_they_keep_known_pixels(tmp_path, own_folders):
    data, pair, decoding = cats(8, tmp_path), untrained_pair(), DecodeConfig(steps=1)
    scorer = Scorer(data, Blocks())
    holes = scorer.holes[:, None]
    darker = {name: scorer.truth - scorer.truth // d for name, d in (("reconstruction", 64), ("navier_stokes", 4))}
    pictures = darker | {"telea": torch.where(holes, scorer.truth // 8, scorer.truth)}
    groups = {name: scorer.by_group(images) for name, images in pictures.items()}
    record_fills(scorer, pictures, groups, pair=pair, data=data, decoding=decoding, seed=3)
    metrics = read_metrics(own_folders / "report")
    rows = metrics["inpainting"]
    assert {name: rows[name]["keeps_known_pixels"] for name in pictures} == {
        "reconstruction": False, "navier_stokes": False, "telea": True,
    }  # fmt: skip
    assert rows["navier_stokes"]["score"] == groups["navier_stokes"]["all"].score
    better = min(("telea", "navier_stokes"), key=lambda name: groups[name]["all"].score)
    assert rows["classical"]["method"] == better and rows["classical"]["score"] == groups[better]["all"].score
    assert rows["truth"]["score"] == pytest.approx(0, abs=1e-6)
    assert (rows["weights"], rows["seed"], rows["score_name"]) == ("stub 1", 3, Blocks.score_name)
    assert metrics["tokenizer"]["n"] == 8 and 30 < metrics["tokenizer"]["psnr_db"] < 60
    assert read_faces(own_folders / "report") == {}, "drawn cats are no photographs"
    pictures |= {"pretrained": scorer.truth, "trained_from_scratch": scorer.truth // 2}
    groups |= {name: scorer.by_group(pictures[name]) for name in ("pretrained", "trained_from_scratch")}
    data = replace(data, attributes={})
    record_fills(scorer, pictures, groups, pair=pair, data=data, decoding=decoding, seed=3)
    faces = read_faces(own_folders / "report")
    assert (faces["ours"], faces["classical"], len(faces["faces"])) == ("pretrained", better, 8)


def test_only_figures_of_this_run_go_beside_the_pages(own_folders):
    kept, pages = own_folders / "figures", own_folders / "pages"
    for folder, name in ((kept, "01_a-old"), (kept, "01_a-new"), (kept, "02_b-new"), (pages, "01_a-gone")):
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.png").write_bytes(name.encode())
    os.utime(kept / "01_a-old.png", (1000, 1000))
    notebook.copy_figures("01_a", pages, since=2000.0)
    assert [path.name for path in pages.iterdir()] == ["01_a-new.png"]
