"""What a result answers: the difference of two models over partners, what intervals say, and the words made from them."""

from __future__ import annotations

import html
import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from alignment_table import CKA, KNN
from repalign.comparison.alignment import COLUMNS
from repalign.models import training_of
from repalign.relate import difference_of_models, story, verdict
from repalign.relate.jackknife import said_by
from repalign.report import render, screen

# --- the difference of two models over their partners ------------------------------------------


def met(first: np.ndarray, second: np.ndarray) -> pd.DataFrame:
    """The pairs of models a and b with partners p0, p1, ..."""
    rows = [(m, f"p{j}", s) for m, scores in (("a", first), ("b", second)) for j, s in enumerate(scores)]
    return pd.DataFrame(rows, columns=["model_x", "model_y", "statistic"])


def by_hand(gaps: np.ndarray, groups: list[list[int]]) -> tuple[float, float]:
    """The interval from leaving out every group of partners, written out."""
    g, full = len(groups), gaps.mean()
    left = [np.delete(gaps, group).mean() for group in groups]
    half = stats.t.ppf(0.975, g - 1) * math.sqrt((g - 1) / g * sum((v - full) ** 2 for v in left))
    return full - half, full + half


def test_the_interval_leaves_out_families_of_partners_or_single_partners():
    rng = np.random.default_rng(0)
    a, b = rng.random(7), rng.random(7)
    families = {f"p{j}": "FFGGGHH"[j] for j in range(7)}
    found = difference_of_models(met(a, b), "x", ["a"], ["b"], families)
    assert found.scores == pytest.approx((a.mean(), b.mean())) and found.difference == pytest.approx((a - b).mean())
    assert (found.low, found.high) == pytest.approx(by_hand(a - b, [[0, 1], [2, 3, 4], [5, 6]]))
    assert (found.unit, found.n_units, found.n_partners) == ("family", 3, 7)
    # Two families are too few: partners are left out. A scale-free check: the t interval of the mean.
    two = difference_of_models(met(a, b), "x", ["a"], ["b"], {name: f"{f > 'F'}" for name, f in families.items()})
    assert (two.unit, two.n_units) == ("model", 7)
    assert (two.low, two.high) == pytest.approx(stats.t.interval(0.95, 6, (a - b).mean(), stats.sem(a - b)))
    few = difference_of_models(met(a[:2], b[:2]), "x", ["a"], ["b"])
    assert (few.unit, few.n_units) == ("", 0) and math.isnan(few.low) and few.difference == pytest.approx((a - b)[:2].mean())


def test_only_partners_that_both_met_count():
    a, b = np.array([0.9, 0.5, 0.4, 0.6, math.nan]), np.array([math.nan, 0.1, 0.2, 0.3, 0.7])
    found = difference_of_models(met(a, b), "x", ["a"], ["b"])
    assert found.difference == pytest.approx((0.4 + 0.2 + 0.3) / 3) and found.n_partners == 3
    assert difference_of_models(met(np.array([0.1, math.nan]), np.array([math.nan, 0.1])), "x", ["a"], ["b"]) is None


def test_the_interval_of_a_difference_covers_it(monkeypatch):
    """300 draws of four families of 5, 3, 2 and 2 partners: .95 -+ 4 standard errors; forgetting families covers far less."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import difference_coverage as bench

    design = next(d for d in bench.DESIGNS if d.name == "4 families of 2 to 5")
    ours, plain, _ = (np.mean(v) for v in zip(*(bench.one_run(design, seed) for seed in range(300)), strict=True))
    assert 0.90 <= ours <= 0.99 and plain < 0.87


@pytest.mark.parametrize("ends, says", [((0.1, 0.3), "more"), ((-0.3, -0.1), "less"), ((-0.1, 0.1), "open"), ((math.nan,) * 2, "")])
def test_what_an_interval_says(ends, says):
    assert said_by(*ends) == says


# --- studies of every kind ---------------------------------------------------------------------

LANGUAGE = ("gpt-s", "gpt-m", "gpt-l", "rnn-s", "rnn-l", "bert-s", "bert-l", "gpt-l-untrained", "bag")
VISION = ("vit-s", "vit-m", "vit-l", "cnn-s", "cnn-l", "mlp-s", "vit-l-untrained", "pixels")
BITS = dict(zip(LANGUAGE, (1.0, 0.9, 0.6, 0.95, 0.8, 0.85, 0.7, 2.0), strict=False))  # the bag has none
ACCURACY = dict(zip(VISION, (0.5, 0.6, 0.9, 0.55, 0.8, 0.4, 0.3, 0.35), strict=True))


def record(name: str, modality: str, scores: dict[str, float]) -> dict:
    objective = "untrained" if "untrained" in name else "none" if name in ("bag", "pixels") else "task"
    family = name.split("-")[0]
    known = {"modality": modality, "family": family, "objective": objective, "scores": scores, "n_parameters": len(name[:5])}
    return {"name": name, **known}


def study(score, x=LANGUAGE, y=VISION, *, measure=KNN, keep=("bits_per_byte", "probe_accuracy"), **run):
    """A result whose pairs have `score(x, y)`; chance is .01, and what is above .02 is above chance."""
    pairs = itertools.combinations(x, 2) if x == y else itertools.product(x, y)
    rows = []
    for i, (a, b) in enumerate(pairs):
        s = score(a, b) + 0.001 * math.sin(7 * i)
        p = 0.001 if s > 0.02 else 0.4
        where = {"model_x": a, "model_y": b, "layer_x": "l", "layer_y": "l", "index_x": 0, "index_y": 0, "scope": "max"}
        chance = {"null_mean": 0.01, "null_std": 0.003, "threshold": 0.02, "n_draws": 999, "measure": measure, "dataset": "d"}
        chance |= {"null": "cyclic", "seed": 0}
        ps = dict.fromkeys(("pvalue", "p_maxt", "p_holm", "p_bh", "p_by"), p)
        rows.append(where | chance | ps | {"n": 500, "statistic": s, "z": s, "calibrated": max(s - 0.02, 0)})
    models = [record(m, "text", {"bits_per_byte": BITS[m]} if m in BITS and keep[:1] else {}) for m in LANGUAGE]
    models += [record(m, "image", {"probe_accuracy": ACCURACY[m]} if keep[1:] else {}) for m in VISION]
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS)), {"models": models, "sides": {"x": list(x), "y": list(y)}} | run


def quality(x: str, y: str) -> float:
    """Rises with how good the vision model is; of language, with training alone."""
    trained = 0.1 if BITS.get(x, 2.0) < 1.5 else 0.0
    return 0.05 + (0.3 + trained) * ACCURACY[y] + 0.02 * math.cos(5 * len(x) + ord(x[0]))


def told(score, *given, **options) -> tuple[str, str, list[str], list[str]]:
    found = verdict(*study(score, *given, **options))
    return story.question(found), story.headline(found), story.sizes(found), story.care(found)


def test_the_answer_is_made_from_intervals():
    question, headline, sizes, care = told(quality)
    assert question == "Do better models agree more?"
    assert headline == "Training raises agreement, and better vision models agree more. Whether better language models do is open."
    found = verdict(*study(quality))
    language, vision = found.sides
    assert vision.training.first == ("vit-l",) and vision.training.second == ("vit-l-untrained",)  # family, size, then competence
    assert (language.training.unit, vision.training.unit) == ("family", "family") and language.trend.against == "bits_per_byte"
    one, two = language.training, vision.training
    assert sizes[0] == (
        f"One language network scores {one.scores[0]:.3f} with the vision models after training and {one.scores[1]:.3f} before "
        f"(difference {one.difference:+.3f}, 95 % interval {one.low:+.3f} to {one.high:+.3f}), one vision network "
        f"{two.scores[0]:.3f} after and {two.scores[1]:.3f} before ({two.difference:+.3f}, {two.low:+.3f} to {two.high:+.3f})."
    )
    assert sizes[1].startswith("Better vision models agree more (rank correlation +1.00, rise +0.") and len(sizes) == 2
    assert "; whether better language models do is open (+0.24, −" in sizes[1] and sizes[1].endswith(", 8 models).")
    assert found.text == " ".join([headline, *sizes])
    too = ", but so are untrained networks and raw input: judge by the distance to the hollow marks."
    assert care[0] == f"All 72 pairs are above chance{too}"
    assert care[1].startswith("7 of 7 trained language models beat the untrained one, ") and len(care) == 3
    assert care[2] == "With 8 models, one more can change a trend."


def test_the_terminal_says_the_same_in_ten_lines():
    found, other = verdict(*study(quality)), verdict(*study(lambda x, y: 1 - quality(x, y)))
    lines = list(story.lines(found, [other]))
    assert story.compared(found) == "9 language × 8 vision models, n = 500"
    assert lines[0] == story.headline(found) and len(lines) <= 9
    language, vision = (side.training for side in found.sides)
    scores = f"vision    trained {vision.scores[0]:.3f}, untrained {vision.scores[1]:.3f}"
    assert lines[2].startswith(f"{scores}   difference +{vision.difference:.3f} (+")
    assert lines[1].endswith(f"({language.low:+.3f} to {language.high:+.3f})")
    assert lines[3].startswith("better language models           rank correlation ") and lines[3].endswith(", 8 models: open")
    assert lines[4].startswith("better vision models agree more  rank correlation +")
    assert lines[5] == "above chance: 72 of 72 pairs (5 % level, corrected for 72 tests), untrained ones too"
    assert lines[-1] == f"another measure: {other.pairs.about.label} says {story.brief(other)}" and "−" in lines[-1]
    assert story.another(found, [found, other]) == "1 of 2 other measures give the same answer"


def test_a_fall_is_said_as_a_fall_and_a_distance_is_turned():
    fall = told(lambda x, y: 0.7 - quality(x, y))
    assert fall[1].startswith("Training lowers agreement, and better vision models agree less.")
    measure = "RSADistance()"
    about = {measure: {"name": "D", "parameters": {}, "label": "D", "family": "rdm", "meaning": "", "closer_is_higher": False}}
    turned = told(lambda x, y: 0.7 - quality(x, y), measure=measure, about=about)
    assert turned[1] == told(quality)[1] and turned[2][-1] == "This measure is a distance: lower is closer."


def test_without_untrained_models_nothing_is_said_of_training():
    some = [tuple(m for m in side if m.split("-")[-1] not in ("untrained", "bag", "pixels")) for side in (LANGUAGE, VISION)]
    question, headline, sizes, care = told(quality, *some)
    assert "raining" not in " ".join([question, headline, *sizes]) and headline.startswith("Better vision models agree more.")
    assert care[0] == "Above chance says that two models share something, not how much: no untrained model was compared."


def test_without_scores_sizes_are_asked_about_and_without_these_pairs_are_counted():
    some = ("gpt-s", "gpt-m", "gpt-l"), ("vit-s", "vit-m")
    found = verdict(*study(quality, *some, keep=()))
    assert found.sides[0].better == "larger" and story.question(found) == "Do larger models agree more?"
    table, run = study(lambda x, y: 0.2 if y == "vit-m" else 0.0, *some, keep=())
    bare = verdict(table, {"sides": run["sides"]})
    assert story.question(bare) == "Which models agree, and is it more than chance?"
    assert story.headline(bare) == "3 of 6 pairs agree more than chance."
    best = bare.pairs.best
    assert story.sizes(bare) == [
        f"{best['model_x']} and vit-m agree most: {best['statistic']:.3f}, where chance gives 0.010.",
        "3 of 6 pairs are above chance (5 % level, corrected for 6 tests).",
    ]
    assert story.care(bare)[1] == "No score or size is known of three models of a side, so nothing is said about better models."
    nothing = verdict(study(lambda *_: 0.0, *some)[0], {"sides": run["sides"]})
    assert story.headline(nothing) == "None of 6 pairs agrees more than chance."


def test_one_side_has_all_models_together():
    found = verdict(*study(lambda x, y: 0.1 + 0.2 * (ACCURACY[x] + ACCURACY[y]), VISION, VISION))
    (side,) = found.sides
    assert (side.side, side.kind) == ("both", "vision")
    assert story.headline(found) == "Training raises agreement, and better vision models agree more."
    assert side.training.first == ("vit-l",) and side.training.n_partners == 6  # neither of the two is a partner


def test_two_models_are_answered_with_score_chance_and_p():
    question, headline, sizes, care = told(lambda *_: 0.41, ("gpt-l",), ("vit-l",), measure=CKA)
    assert question == "Do gpt-l and vit-l put the same things close together?"
    assert headline == "gpt-l and vit-l agree more than chance." and len(care) == 1
    assert sizes == ["CKA 0.410, chance 0.010, p ≤ .001; n = 500."]
    assert told(lambda *_: 0.0, ("gpt-l",), ("vit-l",))[1] == "gpt-l and vit-l agree no more than chance."


def test_a_mock_run_answers_nothing():
    table, run = study(quality)
    found = verdict(table.assign(dataset="mock of d"), run)
    assert story.headline(found) == "A mock run: its numbers answer nothing." and story.sizes(found) == []


def test_undefined_scores_answer_nothing_either():
    table, run = study(quality)
    gone = table.assign(statistic=np.nan, pvalue=np.nan, p_maxt=np.nan, z=np.nan, calibrated=np.nan)
    found = verdict(gone, run)
    assert "is undefined for every pair of models." in story.headline(found) and story.sizes(found) == [] and found.sides == ()


def test_twenty_by_twenty_models_without_any_record():
    names = [f"a{i}" for i in range(20)], [f"b{i}" for i in range(20)]
    found = verdict(study(lambda x, y: 0.1, *map(tuple, names))[0], {"sides": {"x": names[0], "y": names[1]}})
    assert story.headline(found) == "All 400 pairs agree more than chance." and [len(s.points) for s in found.sides] == [20, 20]


@pytest.mark.parametrize(
    "given, training",
    [({"objective": "untrained"}, "untrained"), ({"objective": "Random"}, "untrained"), ({"objective": "none"}, "none"),
     ({}, "trained"), ({"objective": "next", "factors": {"training_steps": 0}}, "untrained"),
     ({"objective": "random crops"}, "trained")],
)  # fmt: skip
def test_what_a_record_says_of_training(given, training):
    assert training_of(given) == training


def test_a_line_or_an_order_decides_and_contradiction_is_open():
    """A nearly perfect order has a wide interval, a model far away spoils the line: the other one speaks."""
    from repalign.relate import infer
    from repalign.relate.scores import Crossed

    def inferred(x, y):
        scores = np.array(y)[:, None] + 0.001 * np.arange(4)
        return infer(Crossed(tuple("abcdefghij"[: len(x)]), tuple("pqrs"), scores, np.ones(scores.shape)), x)

    x = np.arange(10.0)
    perfect = inferred(x, x + 0.1 * np.sin(x))
    assert math.isnan(perfect.spearman_interval[0]) and perfect.says == "more"
    far = inferred(np.append(x[:-1], -60.0), np.append(x[:-1] + 2 * np.sin(2 * x[:-1]), 4.0))
    assert far.slope_interval[0] < 0 < far.slope_interval[1] and (far.says == "more") == (far.spearman_interval[0] > 0)
    assert inferred(x, -x + 0.1 * np.sin(x)).says == "less" and inferred(x, np.sin(3 * x)).says == "open"
    assert inferred(x[:3], x[:3]).says == ""


# --- the first screen ----------------------------------------------------------------------------


def drawn(size: str = "wide", **options) -> list[dict]:
    found = verdict(*study(options.pop("score", quality), **options))
    return [panel.drawing(size) for panel in screen.panels(found)]


def test_one_axis_of_scores_and_slots_for_what_is_far_or_unknown():
    language, vision = drawn()
    assert language["y_ticks"] == vision["y_ticks"] and vision["y_ticks"][0] == (vision["floor"], "0.0")
    texts = [text for _, text in language["x_ticks"]]
    assert texts[-2:] == ["2.00", "unknown"] and "2.00" not in texts[:-2]
    at = {mark["about"].split(":")[0]: (mark["x"], mark["y"]) for mark in language["marks"]}
    assert at["gpt-l-untrained"][0] < at["bag"][0] < language["start"] < min(at[name][0] for name in LANGUAGE[:7])
    assert at["gpt-s"][0] < at["rnn-l"][0] < at["gpt-l"][0]  # fewer bits are farther right
    assert not language["line"] and len(vision["line"]) == 2 and vision["interval"]  # open, and more
    assert vision["line"][0][1] > vision["line"][1][1]  # it rises


def test_chance_follows_each_model():
    """A model below its chance lies in the band, though its neighbours' chance is lower than its score."""
    table, run = study(lambda x, y: 0.05 if y == "cnn-s" else quality(x, y))
    table["threshold"] = np.where(table["model_y"] == "cnn-s", 0.1, 0.02)
    (_, vision) = (panel.drawing("wide") for panel in screen.panels(verdict(table, run)))
    (low,) = (mark for mark in vision["marks"] if mark["about"].startswith("cnn-s:"))
    ((outline,),) = ([band for band in vision["bands"] if band],)
    tops = [y for x, y in outline if abs(x - low["x"]) < 1e-6]
    others = [y for x, y in outline[1:-1] if abs(x - low["x"]) > 1e-6]
    assert tops and max(tops) < low["y"] < min(others)  # y runs downwards


@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_every_model_is_named_and_no_name_covers_another(size):
    for side, panel in zip((LANGUAGE, VISION), drawn(size), strict=True):
        names = {name for _, name in panel["key"]} | {mark["name"] for mark in panel["marks"]}
        assert set(side) <= names and all(mark["spot"] for mark in panel["marks"])
        boxes = []
        for mark in panel["marks"]:
            x, y, anchor = mark["spot"]
            wide = screen.CHARACTER * len(mark["name"])
            left = x - wide * {"start": 0, "middle": 0.5, "end": 1}[anchor]
            boxes.append((left, y - 10, left + wide, y + 2))
        for a, b in itertools.combinations(boxes, 2):
            assert a[2] <= b[0] + 0.1 or b[2] <= a[0] + 0.1 or a[3] <= b[1] + 0.1 or b[3] <= a[1] + 0.1


def test_a_distance_has_its_small_scores_on_top():
    measure = "RSADistance()"
    about = {measure: {"name": "D", "parameters": {}, "label": "D", "family": "rdm", "meaning": "", "closer_is_higher": False}}
    (_, vision) = drawn(score=lambda x, y: 0.9 - quality(x, y), measure=measure, about=about)
    marks = {mark["about"].split(":")[0]: mark["y"] for mark in vision["marks"]}
    ticks = [float(text) for _, text in sorted(vision["y_ticks"])]  # from the top
    assert marks["vit-l"] < marks["mlp-s"] and ticks == sorted(ticks)


TWENTY = tuple(f"some-long-name-{i}" for i in range(20)), tuple(f"another-long-name-{i}" for i in range(20))
BARE = {"models": [], "study": {}}


@pytest.mark.parametrize(
    "given, options, picture_of",
    [
        ((), {}, "seen"), (([LANGUAGE[:7], VISION[:6]]), {}, "seen"), ((LANGUAGE, VISION), {"keep": ()}, "seen"),
        ((VISION, VISION), {}, "seen"), ((("gpt-l",), ("vit-l",)), {}, "score"), (TWENTY, BARE, "matrix"),
        ((("a", "b", "c"), ("a", "b", "c")), BARE, "matrix"),
    ],
    ids=["both", "nothing untrained", "no scores", "one side", "two models", "20 x 20", "no records"],
)  # fmt: skip
def test_every_kind_of_study_has_a_first_screen(given, options, picture_of):
    """In its page stand the words of its verdict, and one picture: of competence, of the matrix, or of the only score."""
    table, run = study(lambda x, y: quality(x, y) if y in ACCURACY else 0.1, *given, **{**options})
    page, found = html.unescape(render(table, run)), verdict(table, run)
    first = page[page.index('id="answer"') : page.index('id="layers"')]
    assert f"<h1>{story.headline(found)}</h1>" in first and f'<p class="question">{story.question(found)}</p>' in first
    shown = {"seen": 'class="panel', "matrix": 'id="first-matrix"', "score": 'data-figure-of="score"'}
    assert {kind for kind, mark in shown.items() if mark in first} == {picture_of}
    mock = render(table.assign(dataset="mock of d"), run)
    assert "<h1>A mock run: its numbers answer nothing.</h1>" in mock
