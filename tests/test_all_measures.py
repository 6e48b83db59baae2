"""All measures of the list on one pair of models: one call, one table, one readable report."""

from __future__ import annotations

import numpy as np
import pytest

from alignment_table import CKA, LANGUAGE, VISION, make_table
from repalign.comparison import pair
from repalign.comparison.alignment import Alignment
from repalign.measures import MEASURES, parse_measure
from repalign.report import write_report


@pytest.fixture(scope="module")
def everything() -> Alignment:
    rng = np.random.default_rng(0)
    x = {"a": rng.standard_normal((90, 12)), "b": rng.standard_normal((90, 14))}
    y = {"c": x["a"] @ rng.standard_normal((12, 16)) + rng.standard_normal((90, 16)), "d": rng.standard_normal((90, 12))}
    return pair(x, y, ["all"], limit=2.0)


def test_every_measure_is_computed_or_left_out_with_a_reason(everything: Alignment):
    computed = {type(parse_measure(m)).__name__ for m in everything.measures}
    left_out = {type(parse_measure(e["measure"])).__name__: e["reason"] for e in everything.run["left_out"]}
    assert computed | set(left_out) == {cls.__name__ for cls in MEASURES}
    assert not computed & set(left_out) and all(left_out.values())
    assert len(computed) >= len(MEASURES) - 15


def test_paired_measures_find_the_related_layers_and_unpaired_have_no_p(everything: Alignment):
    for row in everything.best().to_dict("records"):
        measure = parse_measure(row["measure"])
        if not measure.paired:
            assert np.isnan(row["pvalue"]) and row["null"] == "none"
        elif not measure.equal_widths:  # there the related layers cannot meet
            assert row["pvalue"] <= 0.05, measure
            assert (row["layer_x"], row["layer_y"]) == ("a", "c"), measure
            closer = (row["statistic"] - row["null_mean"]) * (1 if measure.closer_is_higher else -1)
            assert closer > 0 and row["z"] > 0, measure


def test_layers_of_other_widths_are_undefined_for_measures_of_one_space(everything: Alignment):
    cells = everything.cells()
    for measure in everything.measures:
        if parse_measure(measure).equal_widths:
            defined = cells[(cells["measure"] == measure) & cells["statistic"].notna()]
            assert list(zip(defined["layer_x"], defined["layer_y"], strict=True)) == [("a", "d")], measure


def test_the_report_has_one_table_of_many_measures(everything: Alignment, tmp_path):
    everything.save(tmp_path)
    page = write_report(tmp_path, tmp_path / "report.html").read_text("utf-8")
    table = page[page.index('class="measures"') :]
    table = table[: table.index("</table>")]
    for family in ("Neighbors", "Kernel", "RDM", "Shape", "Mapping", "Topology"):
        assert f">{family}</th>" in table
    assert table.count("<tr>") - table.count("<th colspan") - 1 == len(everything.measures)
    assert "distance</span>" in table
    assert "no chance level, because no relabelling changes them" in page
    if everything.run["left_out"]:
        assert "Measures that were left out:" in page


def test_the_report_says_how_many_cells_the_draws_judged():
    """Also where the draws judged most of them: the law comes first, then where it was not used."""
    from repalign.comparison.conventions import PLAIN, Pairs
    from repalign.report.page import chance

    def told(by: list[str]) -> str:
        table = make_table(LANGUAGE[:1], VISION[:1], (1, 3))
        cells = table[(table["measure"] == CKA) & (table["scope"] == "cell")]
        return chance([Pairs.of(table, CKA)], cells.assign(null=by), {}, PLAIN)[0]

    assert told(["cyclic"] * 3).startswith("1,023 draws") and "pairs of layers" not in told(["cyclic"] * 3)
    assert told(["moments", "cyclic", "cyclic"]).endswith("law (2 of 3 by draws, where that law is poor)")
    assert told(["moments"] * 3).endswith("Pearson type III law")
