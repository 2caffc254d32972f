"""What a notebook shows: tables that escape what they hold, and numbers with as many decimals as they need."""

import pytest

from lab5.show import notebook as results


@pytest.fixture
def shown(monkeypatch) -> list[dict[str, str]]:
    bundles = []
    monkeypatch.setattr(results, "display", lambda data, raw: bundles.append(data))
    return bundles


def test_a_table_has_a_column_a_key_and_a_row_a_row(shown):
    results.table([{"method": "telea", "hole_psnr_db": 20.6, "n": 32}, {"method": "none", "n": 8}], caption="of cats")
    html = shown[0]["text/html"]
    assert html.count("<tr>") == 3 and html.count("<th ") == 3 and html.count("<td ") == 6
    assert "<th style='text-align:right'>hole psnr db</th>" in html and ">of cats</caption>" in html
    assert "<td style='text-align:left'>telea</td><td style='text-align:right'>20.600</td>" in html
    assert shown[0]["text/plain"] == "telea  20.600  32\nnone  –  8"


def test_a_column_of_small_numbers_has_a_decimal_more(shown):
    rows = [{"kid": 0.0086, "loss": 1.9, "ratio": 0.05}, {"kid": -0.0491, "loss": 0.01, "ratio": float("nan")}]
    results.table(rows)
    assert shown[0]["text/plain"] == "0.0086  1.900  0.050\n-0.0491  0.010  nan"


def test_what_is_not_ours_is_escaped(shown):
    results.table([{"<b>": "<script>"}], caption="<i>")
    html = shown[0]["text/html"]
    assert all(text not in html for text in ("<b>", "<script>", "<i>")) and "&lt;script&gt;" in html


def test_a_table_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        results.table([])
