"""The table of a run: what its percentages say."""

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from chanprune.show.table import Row, as_csv, as_markdown

COUNTS = st.integers(1, 10**9)


@given(COUNTS, COUNTS)
def test_percentages_are_what_is_gone_since_the_first_row(whole, left):
    rows = [Row("trained", 0.9, 0.8, 1, 1, whole, 1.0), Row("pruned", 0.9, 0.8, 1, 1, left, 1.0)]
    cell = as_markdown(rows, []).splitlines()[3].split("|")[-3].strip()
    number, _, percentage = cell.partition(" (")
    assert number == f"{left:,}"
    if left == whole:
        assert not percentage
        return
    assert percentage[0] == ("-" if left < whole else "+")
    told = float(percentage.removesuffix(" %)"))
    assert abs(told - 100 * (left - whole) / whole) <= 0.0500001


def test_the_same_figures_are_in_the_csv():
    rows = [Row("trained", 0.95, 0.9, 12, 345, 6789, 1.5), Row("pruned", 0.5, 0.25, 6, 45, 678, 2)]
    first, second = csv.DictReader(io.StringIO(as_csv(rows)))
    assert (first["macs"], second["params"], second["test_accuracy"]) == ("6789", "45", "0.25")
