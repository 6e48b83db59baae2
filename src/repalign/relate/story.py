"""A verdict in words: the question, the answer, its sizes, what to read with care. Report and terminal say these very sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from repalign.relate.findings import FEW_MODELS
from repalign.relate.jackknife import said_by
from repalign.relate.sentences import OF
from repalign.text import TIMES, alike, counted, interval, p_sentence

if TYPE_CHECKING:
    from repalign.relate.jackknife import ModelDifference
    from repalign.relate.verdict import SideVerdict, Verdict


# --- the parts of sentences ----------------------------------------------------------------------


def capital(text: str) -> str:
    """With a capital at the start of a sentence."""
    return text[:1].upper() + text[1:]


def models(sides: Sequence[SideVerdict]) -> str:
    """ "vision and language models"; "models of side x" where modalities do not tell the sides apart."""
    kinds = [side.kind for side in sides if side.kind]
    if kinds:
        return f"{' and '.join(kinds)} models"
    named = [side.side for side in sides if side.side != "both"]
    return f"models of side {' and '.join(named)}" if len(named) == 1 else "models"


def short(side: SideVerdict) -> str:
    """ "vision", "side x", "models"."""
    return side.kind or ("models" if side.side == "both" else f"side {side.side}")


def ranked(side: SideVerdict) -> str:
    """ "+0.98 (+0.51 to +1.00)", signs turned; with the rise of the line where that is what the answer rests on."""
    value, low, high = (f"{v:+.2f}".replace("-", "−") for v in side.rank)
    if side.says == said_by(*side.rank[1:]) != "":
        return f"{value} ({low} to {high})"
    if not side.says:
        return value
    rise, low, high = alike(*side.rise, side.points["alignment"].abs().max(), signed=True)[:3]
    return f"{value}, rise {rise} ({low} to {high})"


def difference(found: ModelDifference) -> str:
    """ "+0.088 (+0.062 to +0.113)"."""
    value, low, high = alike(found.difference, found.low, found.high, *found.scores, signed=True)[:3]
    return f"{value} ({low} to {high})" if found.unit else value


def count(found: Verdict, verb: str = "is above chance") -> str:
    """ "all 100 pairs are above chance"; "none of 6 pairs is above chance"; why nothing can be said of it."""
    if found.pairs.blind:
        return f"nothing can be said of chance: {found.pairs.blind}"
    n, tests, many = int(found.pairs.found.sum()), found.pairs.tests, verb.replace("is ", "are ").replace("agrees ", "agree ")
    if n == tests > 1:
        return f"all {n:,} pairs {many}"
    return f"{n or 'none':{',' if n else ''}} of {counted(tests, 'pair')} {many if n > 1 else verb}"


# --- question and answer -------------------------------------------------------------------------


def question(found: Verdict) -> str:
    """What the study asks; without one, what its models allow to ask."""
    if found.question:
        return found.question
    best, sides = found.pairs.best, found.sides
    if best is not None and len(found.pairs.rows) == 1:
        return f"Do {best['model_x']} and {best['model_y']} put the same things close together?"
    if better := sorted({side.better for side in sides if side.trend}):
        return f"Do {' or '.join(better)} models agree more?"
    return "Does training raise agreement?" if any(s.training for s in sides) else "Which models agree, and is it more than chance?"


def headline(found: Verdict) -> str:
    """The answer in one or two sentences, made from intervals."""
    best = found.pairs.best
    if found.is_mock:
        return "A mock run: its numbers answer nothing."
    if best is None:
        return f"{capital(found.pairs.about.label)} is undefined for every pair of models."
    if len(found.pairs.rows) == 1 and not found.pairs.blind:
        return f"{best['model_x']} and {best['model_y']} agree {'' if found.pairs.found.any() else 'no '}more than chance."
    if not found.pairs.found.any():
        return f"{capital(count(found, 'agrees more than chance'))}."
    known, unsure = [claim for says in ("more", "less") for claim in _claims(found, says)], list(_claims(found, "open"))
    if known and known[-1].endswith(" agree more"):
        unsure = [claim.replace(" agree more", " do") for claim in unsure]
    told = [f"{capital(', and '.join(known))}."] if known else []
    told += [f"Whether {' and '.join(unsure)} is open."] if unsure else []
    return " ".join(told) or f"{capital(count(found, 'agrees more than chance'))}."


def _claims(found: Verdict, says: str) -> Iterator[str]:
    """What intervals of this kind say of training and of competence, a clause each."""
    trained = [side for side in found.sides if side.training_says]
    if these := [side for side in trained if side.training_says == says]:
        verb = "lowers" if says == "less" else "raises"
        yield f"training {verb} agreement{'' if these == trained else f' of {models(these)}'}"
    for better in ("better", "larger"):
        if these := [side for side in found.sides if side.says == says and side.better == better]:
            yield f"{better} {models(these)} agree {'less' if says == 'less' else 'more'}"


# --- sizes ---------------------------------------------------------------------------------------


def told(found: Verdict) -> Iterator[str]:
    """The answer, then its sizes."""
    yield headline(found)
    yield from sizes(found)


OF["verdict"] = told


def sizes(found: Verdict) -> list[str]:
    """The sizes behind the answer, with intervals."""
    if found.is_mock or found.pairs.best is None:
        return []
    sides = found.sides if found.pairs.found.any() else ()  # what is chance has no sizes
    training = ", ".join(_training(sides))
    competence = "; ".join(_competence(sides, "" if training else "95 % interval "))
    told = [f"{capital(clauses)}." for clauses in (training, competence) if clauses]
    if not told:
        several = found.pairs.tests > 1 and not found.pairs.blind
        told = [best(found)] + ([f"{capital(count(found))} ({found.pairs.level})."] if several else [])
    return told if found.pairs.about.closer_is_higher else [*told, "This measure is a distance: lower is closer."]


def best(found: Verdict) -> str:
    """The best pair, its score, and its chance level."""
    row = found.pairs.best
    if row is None:
        return found.pairs.text
    score, chance = alike(row["statistic"], row["null_mean"])
    score = interval(row["statistic"], row["low"], row["high"]) if math.isfinite(row.get("low") or math.nan) else score
    if len(found.pairs.rows) == 1:
        p = p_sentence(row["pvalue"], found.pairs.draws).removesuffix(" (floor)")
        return f"{capital(found.pairs.about.label)} {score}, chance {chance}, {p}; n = {found.pairs.n:,}."
    return f"{row['model_x']} and {row['model_y']} agree most: {score}, where chance gives {chance}."


def brief(found: Verdict) -> str:
    """The answer as the page of another measure quotes it: rank correlations, else differences, else how many pairs."""
    told = [f"{short(side)} {ranked(side)}" for side in found.sides if side.says]
    told = told or [f"training {short(s)} {difference(s.training)}" for s in found.sides if s.training and s.training_says]
    return ", ".join(told) or count(found)


def _training(sides: Sequence[SideVerdict]) -> Iterator[str]:
    """What training does on each side; the first clause names what the numbers in brackets are."""
    trained = [(side, side.training) for side in sides if side.training]
    for k, (side, found) in enumerate(trained):
        (after, before), first, second = alike(*found.scores), len(found.first), len(found.second)
        gap = difference(found).replace(" (", ", " if k else ", 95 % interval ").removesuffix(")")
        gap = f"{'' if k else 'difference '}{gap}{'' if found.unit else ', no interval for fewer than three partners'}"
        kind, others = f"{side.kind} " if side.kind else "", [other for other in sides if other is not side] or [side]
        if first == second:
            what = f"one {kind}network" if first == 1 else f"{first} {kind}networks"
            if not k:
                what, after = f"{what} score{'s' * (first == 1)}", f"{after} with the {models(others)}"
            yield f"{what} {after} after {'' if k else 'training '}and {before} before ({gap})"
        else:
            not_ = "the untrained one" if second == 1 else f"the {second} untrained ones"
            yield f"the {first} trained {kind}models score {after} on average, {not_} {before} ({gap})"


def _competence(sides: Sequence[SideVerdict], interval: str) -> Iterator[str]:
    """What competence does on each side, the clear answers first."""
    sized = [(side, side.trend) for side in sides if side.trend and not math.isnan(side.rank[0])]
    sized, do = sorted(sized, key=lambda one: one[0].says not in ("more", "less")), "agree more"
    for k, (side, found) in enumerate(sized):
        size = ranked(side).replace(" (", f", {'' if k else interval}").removesuffix(")")
        start = f"{side.better} {models([side])}"
        said = f"whether {start} {do} is open" if side.says == "open" else f"{start} agree {side.says}"
        do = "do" if side.says == "more" else do
        said = said if side.says else f"{start} are too few for an interval"
        yield f"{said} ({'' if k else 'rank correlation '}{size}, {counted(found.n, 'model')})"


def compared(found: Verdict) -> str:
    """ "10 language × 10 vision models, n = 1,024"."""
    counts = [f"{len(side.points)} {side.kind}".rstrip() for side in found.sides] or ["2"]
    return f"{f' {TIMES} '.join(counts)} models, n = {found.pairs.n:,}"


def lines(found: Verdict, others: Sequence[Verdict] = ()) -> Iterator[str]:
    """The answer on a terminal: a line for each size, aligned, then the pairs and what other measures say."""
    yield headline(found)
    if found.is_mock or found.pairs.best is None or len(found.pairs.rows) == 1:
        yield from sizes(found)
        return
    wide = max(len(short(side)) for side in found.sides)
    for side in found.sides:
        if one := side.training:
            trained, untrained = alike(*one.scores)
            yield f"{short(side):{wide}}  trained {trained}, untrained {untrained}   difference {difference(one)}"
    does = {"more": " agree more", "less": " agree less"}
    claims = {side: f"{side.better} {models([side])}{does.get(side.says, '')}" for side in found.sides}
    wide = max(map(len, claims.values()))
    for side, claim in claims.items():
        if side.trend and not math.isnan(side.rank[0]):
            state = {"open": ": open", "": ": too few for an interval"}.get(side.says, "")
            yield f"{claim:{wide}}  rank correlation {ranked(side)}, {counted(side.trend.n, 'model')}{state}"
    row, hollow = found.pairs.best, any(side.of("untrained") for side in found.sides)
    score, chance = alike(row["statistic"], row["null_mean"])
    too = ", untrained ones too" if hollow and found.pairs.found.all() else ""
    if not found.pairs.blind:
        yield f"above chance: {int(found.pairs.found.sum()):,} of {counted(found.pairs.tests, 'pair')} ({found.pairs.level}){too}"
    yield f"best pair: {row['model_x']} and {row['model_y']}, {score} (chance {chance})"
    if others:
        yield another(found, others)


def another(found: Verdict, others: Sequence[Verdict]) -> str:
    """What the other measures say."""
    if len(others) == 1:
        return f"another measure: {others[0].pairs.about.label} says {brief(others[0])}"
    same = sum(other.states == found.states for other in others)
    return f"{same} of {len(others)} other measures give the same answer"


# --- with care -----------------------------------------------------------------------------------


def care(found: Verdict) -> list[str]:
    """What the picture cannot say, in at most three sentences."""
    if found.is_mock:
        return ["Stand-ins took the place of models and data: only the form of this page is that of the real run."]
    if found.pairs.best is None:
        return ["The remarks beside the models say what is wrong with their layers."]
    if len(found.pairs.rows) == 1:
        return ["Above chance says that the two share something, not what, and not how much."]
    told = list(_yardstick(found))
    few = sorted({side.trend.n for side in found.sides if side.trend and side.trend.n <= FEW_MODELS})
    limits = ([f"with {' or '.join(map(str, few))} models, one more can change a trend"] if few else []) + [*_one_family(found)]
    if not any(side.trend for side in found.sides):
        limits = ["no score or size is known of three models of a side, so nothing is said about better models"]
    return [*told, *([f"{capital('; '.join(limits))}."] if limits else [])]


def _yardstick(found: Verdict) -> Iterator[str]:
    """How far above chance says anything here, and who agrees more than the untrained model and the raw input."""
    words = {"untrained": "untrained networks", "none": "raw input"}
    hollow = [word for kind, word in words.items() if any(side.of(kind) for side in found.sides)]
    if not hollow:
        yield "Above chance says that two models share something, not how much: no untrained model was compared."
        return
    too = f", but so are {' and '.join(hollow)}: judge by the distance to the hollow marks" if found.pairs.found.all() else ""
    yield f"{capital(count(found))}{too}."
    told = []
    for side in found.sides:
        untrained, n = side.of("untrained"), len(side.of("trained"))
        which = [("the untrained one" if len(untrained) == 1 else "all untrained ones", untrained)] if untrained else []
        which += [(name, [name]) for name in side.of("none")]
        said = [f"{side.beat(names)} beat {what}" for what, names in which]
        told += [", ".join(said).replace(" beat", f" of {n} trained {models([side])} beat", 1)] if n and said else []
    if told:
        yield f"{capital('; '.join(told))}."


def _one_family(found: Verdict) -> Iterator[str]:
    """Where a difference leaves out single partners that are mostly of one family, that it does."""
    for side in found.sides:
        if side.training and side.training.unit == "model":
            partners = next((other for other in found.sides if other is not side), side)
            families = partners.points["family"].value_counts().drop("", errors="ignore")
            if len(families) and families.iloc[0] > 1:
                n, whole = int(families.iloc[0]), len(partners.points)
                yield f"{n} of {whole} {models([partners])} are of one family, so the interval over them may be too narrow"
                return
