"""Command lines for both kinds of shells."""

import pytest

from prod9.system.shell import shown_line, split_line

WORDS = ["prod9", "report", r"C:\my runs\a", "plain"]


@pytest.mark.parametrize("windows", [False, True])
def test_a_line_that_is_shown_means_its_words(windows):
    assert split_line(shown_line(WORDS, windows=windows), windows=windows) == WORDS


def test_backslashes_of_windows_are_kept():
    assert split_line(r"strip.exe -i {in} -o C:\out\{mask}", windows=True)[-1] == r"C:\out\{mask}"


@pytest.mark.parametrize("windows", [False, True])
def test_an_open_quote_is_refused(windows):
    with pytest.raises(ValueError, match="closing quotation"):
        split_line("strip 'x", windows=windows)
