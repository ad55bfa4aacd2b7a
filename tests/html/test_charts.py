"""Charts are whole with one value, and nothing in them is read as HTML."""

from markupsafe import Markup

from prod9.html.charts import curve_chart, histogram, interval_bar, strip_chart


def test_charts_cope_with_one_point_and_escape_names():
    assert "&lt;b&gt;" in curve_chart("<b>", {"<b>": [(1.0, 2.0)]})
    chart = strip_chart({"a": [0.1, 0.9]}, threshold=0.5, title="t")
    assert chart.count("#b3261e") == 1
    assert "suspect below 0.50" in chart
    assert interval_bar(1.0, None, None, 1.0, 1.0, None).count("<circle") == 1


def test_a_histogram_has_one_bar_per_share_and_the_tallest_fills_it():
    bars = histogram([0.25, 0.5, 0.0])
    assert isinstance(bars, Markup)
    assert bars.count("<rect") == 3
    assert 'height="40.0"' in bars
    assert histogram([0.0, 0.0]).count('height="0.0"') == 2
