"""Tables of scores on a screen of 80 columns: nothing is cut, and names stay whole."""

import io

from rich.console import Console

from prod9.cli.judge.score_tables import _table


def test_a_wide_table_breaks_lines_and_cuts_nothing() -> None:
    table = _table("denoised", "metric", "score", "matched", "floor", "D")
    row = ("kid_standardised_denoised ↓ ?", "-9.46e-05 [-0.00579, 0.00465]", "0.000233", "0.000152", "1024")
    table.add_row(*row)
    table.add_row("spectrum_distance_db_denoised ↓ ?", "0.346 [0, 1.35]", "0.624", "0.948", "32")
    written = io.StringIO()
    Console(width=80, file=written).print(table)
    text = written.getvalue()
    assert "…" not in text
    assert row[0] in text
    assert set(" ".join(row[1:]).split()) <= set(text.split())
