"""Numbers, sizes, times and names as people read them: one voice for terminal, figures, report and errors."""

from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

UNDEFINED = "–"
TIMES = "×"
LEAST_P = 1e-10
NOTHING = 1e-12  # what rounding leaves of a zero
MOCK = "Mock run: tiny stand-ins in place of the models, and generated data. Its numbers mean nothing."
MOCK_STAMP = "MOCK RUN: the numbers mean nothing"  # across a figure


def number(value: float | None) -> str:
    """Three significant digits with a true minus sign; a dash where undefined.

    >>> number(0.051349), number(-12.345), number(1234.5), number(float("nan"))
    ('0.0513', '−12.3', '1,234', '–')
    """
    if value is None or not math.isfinite(value):
        return UNDEFINED
    if abs(value) < NOTHING:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if float(f"{abs(value):.2e}") >= 10 ** (size + 1):  # rounding up gained a digit: 0.9999 is 1.00
        size += 1
    if -5 <= size <= 6:
        text = f"{value:,.{max(0, 2 - size)}f}"
    else:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "−")


def interval(value: float, low: float | None, high: float | None) -> str:
    """A number with its confidence interval, all with as many decimals; the number alone where there is none.

    >>> interval(0.2312, 0.1987, 0.2641), interval(0.2312, None, None)
    ('0.231 [0.199, 0.264]', '0.231')
    """
    text = number(value)
    if low is None or high is None or not all(map(math.isfinite, (value, low, high))) or "e" in text:
        return text
    places = len(text.partition(".")[2])
    ends = (f"{end:,.{places}f}".replace("-", "−") for end in (low, high))
    return f"{text} [{', '.join(ends)}]"


def alike(*values: float, signed: bool = False) -> list[str]:
    """Numbers that are compared with one another: all with the decimals that give the largest three digits.

    >>> alike(0.1287, 0.0417), alike(0.0877, -0.003, 0.1287, signed=True)
    (['0.129', '0.042'], ['+0.088', '−0.003', '+0.129'])
    """
    largest = number(max((abs(v) for v in values if math.isfinite(v)), default=0.0))
    places = f".{len(largest.partition('.')[2])}f" if "e" not in largest else ".2e"
    kind = f"{'+' * signed}z,{places}"  # z: what rounds to nothing has no minus
    return [format(v, kind).replace("-", "−") if math.isfinite(v) else UNDEFINED for v in values]


def between(low: float, high: float) -> str:
    """Two ends of an interval.

    >>> between(-0.051349, 0.2)
    '−0.0513 to 0.200'
    """
    return f"{number(low)} to {number(high)}"


def pvalue(p: float | None, n_draws: int | None = None) -> str:
    """A p-value without its leading zero; at the floor of the draws it says that it is one.

    Without draws (a closed form) there is no floor; but no law is known well enough to tell what lies below 1e-10.

    >>> pvalue(0.0312), pvalue(0.005, 199), pvalue(1.0), pvalue(2.3e-7), pvalue(2.3e-40)
    ('.031', '≤ .005', '1', '2.3e−7', '< 1e−10')
    """
    if p is None or not math.isfinite(p):
        return UNDEFINED
    if p >= 0.9995:
        return "1"
    if p < LEAST_P:
        return "< 1e−10"
    if p < 1e-4:
        mantissa, exponent = f"{p:.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}".replace("-", "−")
    else:
        places = 1 - math.floor(math.log10(float(f"{p:.1e}"))) if p < 0.1 else 3
        text = f"{p:.{places}f}".rstrip("0").removeprefix("0")
    at_floor = n_draws and p * (n_draws + 1) < 1.5  # the smallest that so many draws can give is 1 / (n_draws + 1)
    return f"≤ {text}" if at_floor else text


def p_sentence(p: float, n_draws: int | None = None) -> str:
    """For running text: "p = .031", "p ≤ .005 (floor)".

    >>> p_sentence(0.005, 199)
    'p ≤ .005 (floor)'
    """
    text = pvalue(p, n_draws)
    if text.startswith("≤"):
        return f"p {text} (floor)"
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def plural(noun: str) -> str:
    """ "models", "families"."""
    return noun.removesuffix("y") + "ies" if noun.endswith("y") else noun + "s"


def counted(n: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "pair"), counted(1200, "model"), counted(2, "family")
    ('1 pair', '1,200 models', '2 families')
    """
    return f"{n:,} {noun if n == 1 else plural(noun)}"


def span(values: Sequence[float]) -> str:
    """The ends of some whole numbers.

    >>> span([1024, 1024]), span([512, 1024, 256])
    ('1,024', '256 to 1,024')
    """
    return " to ".join(f"{int(end):,}" for end in dict.fromkeys((min(values), max(values))))


WIDE = 32  # characters of a name in a figure
_WORDS = re.compile(r"[^_\-./: ]+[_\-./: ]*|[_\-./: ]+")


def readable(*sides: Iterable[str], length: int = WIDE) -> dict[str, str]:
    """Names as they fit into a figure, no two alike. Sides stand apart, such as rows and columns.

    Where a name of a side is longer than `length`, its names lose where they come from, then the words that all of them begin
    or end with; what is still too long, words of its middle, first those that most names have.

    >>> list(readable(["timm/vit_base_patch14_dinov2.lvd142m", "timm/vit_base_patch16_clip_224.laion2b"]).values())
    ['patch14_dinov2.lvd142m', 'patch16_clip_224.laion2b']
    """
    apart = [list(dict.fromkeys(side)) for side in sides]
    if len({name for side in apart for name in side}) < sum(map(len, apart)):  # they share names, which must stay the same
        apart = [list(dict.fromkeys(name for side in apart for name in side))]
    out: dict[str, str] = {}
    for names in apart:
        short = names
        for step in (_bare, _unlike, partial(_elided, length=length)):
            if max(map(len, short), default=0) > length:
                tried = step(short)
                short = tried if len(set(tried)) == len(names) and all(tried) else short
        out |= dict(zip(names, short, strict=True))
    while twice := {name for name, short in out.items() if short != name and list(out.values()).count(short) > 1}:
        out |= {name: name for name in twice}
    return out


def _bare(names: Sequence[str]) -> list[str]:
    """Names without their source, organisation or folder: `hf:org/name`."""
    return [re.sub(r"^\w+:|.*/(?=.)", "", name) for name in names]


def _unlike(names: Sequence[str], ends: bool = True) -> list[str]:
    """Names without the words that all of them begin with, and those that all of them end with."""
    words = [_WORDS.findall(name) for name in names]
    most = min(map(len, words)) - 1 if len(words) > 1 else 0

    def alike(turn: int) -> int:
        columns = zip(*(some[::turn][:most] for some in words), strict=True)
        return next((k for k, column in enumerate(columns) if len(set(column)) > 1), most)

    start = alike(1)
    end = min(alike(-1), most - start) if ends else 0
    found = ("".join(some[start : len(some) - end]) for some in words)
    return [name.rstrip("_-./: ") if end else name for name in found]


def _elided(names: Sequence[str], length: int) -> list[str]:
    """Names without as many words of their middle as make them short, as far as they have some."""
    words, out = [_WORDS.findall(name) for name in names], []
    counts = Counter(word for some in words for word in set(some))
    for some in words:
        left = sorted(range(1, len(some) - 1), key=lambda k: (counts[some[k]], len(some[k])))
        while left and len(re.sub("…+", "…", "".join(some))) > length:
            some[left.pop()] = "…"
        out.append(re.sub("…+", "…", "".join(some)))
    return out


def without_common_start(names: Sequence[str]) -> list[str]:
    """Names without the words that all begin with, where these say nothing: each keeps at least its last word.

    >>> without_common_start(["vision-cnn3-next", "vision-cnn16-next"]), without_common_start(["vit", "vit-b"])
    (['cnn3-next', 'cnn16-next'], ['vit', 'vit-b'])
    """
    return _unlike(names, ends=False)


def parameters(value: float | None) -> str:
    """A number of parameters: 560 M, 1.10 B.

    >>> parameters(560_000_000), parameters(1.1e9), parameters(8200), parameters(None)
    ('560 M', '1.10 B', '8.20 k', '–')
    """
    if value is None or not math.isfinite(value):
        return UNDEFINED
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{number(value / size)}{unit}"
    return number(value)


# --- sizes, times, lists ---


def size(count: float) -> str:
    """Bytes in the unit that reads best, of three digits.

    >>> size(2e12), size(1_500_000)
    ('2 TB', '1.5 MB')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, of two digits.

    >>> duration(0.2), duration(95), duration(6_060), duration(200_000)
    ('under a second', '95 s', '101 min', '2.3 days')
    """
    if seconds < 1:
        return "under a second"
    units = (("days", 86_400), ("hours", 3_600), ("min", 60))
    unit, scale = next(((unit, scale) for unit, scale in units if seconds >= 2 * scale), ("s", 1))
    count = seconds / scale
    return f"{count:.2g} {unit}" if count < 10 else f"{count:.0f} {unit}"


def named(names: Sequence[str], most: int = 5) -> str:
    """Some names, and how many more there are.

    >>> named(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --- notebooks ---

# A result as HTML. `repalign` sets this as it is imported, and loads the room that makes HTML when a notebook shows a result.
html_of: Callable[[Any], str]


# --- progress ---


class Progress(Protocol):
    """Called as work goes on: `task` is a short name, `done` of `total` units are finished, parts of one among them.

    A callback is called with done=0 when a task starts and with done=total when it ends.
    `note` carries a sentence that a person should see (a halved batch, a skipped file).
    """

    def __call__(self, task: str, done: float, total: int, note: str | None = None) -> None: ...


def telling(items: Sequence[T], task: str, progress: Progress) -> Iterator[T]:
    """The items one by one; before each, and at the end, how many are done."""
    for done, item in enumerate(items):
        progress(task, done, len(items))
        yield item
    if items:
        progress(task, len(items), len(items))


def pace(done: float, total: int, more: float, seconds: float) -> str:
    """How far a task is, `more` of which was done in these seconds: how fast that is, and the time left.

    >>> pace(30, 120, 30, 60), pace(0, 4, 0, 45), pace(2.5, 4, 0.5, 1800)
    ('30 of 120, 30 a minute, about 3 min left', '0 of 4 in 45 s', '2.5 of 4, 1.0 an hour, about 90 min left')
    """
    told = f"{f'{done:,.1f}'.removesuffix('.0')} of {total:,}"
    if more <= 0 or seconds <= 0:
        return f"{told} in {duration(seconds)}"
    per, unit = next(((n, u) for n, u in ((1, "a second"), (60, "a minute")) if more * n >= seconds), (3600, "an hour"))
    speed = more * per / seconds
    told = f"{told}, {speed:,.{int(speed < 10)}f} {unit}"
    return told if done >= total else f"{told}, about {duration((total - done) * seconds / more)} left"


def silent(task: str, done: float, total: int, note: str | None = None) -> None:
    """The default: report nothing."""


def told_of(described: Any) -> tuple[str, dict[str, str]]:
    """The text of a docstring, and what its section "Parameters" says of each name: commands and study files have both from there.

    >>> def ask(): '''Ask.
    ...
    ...     Parameters
    ...     ----------
    ...     loud : Whether to shout. '''
    >>> told_of(ask)
    ('Ask.', {'loud': 'Whether to shout.'})
    """
    text, _, section = (inspect.getdoc(described) or "").partition("\n\nParameters\n----------\n")
    section = re.split(r"\n\n\w+\n-{3,}\n|\n\n>>> ", section)[0]  # other sections follow, or examples
    _, *told = re.split(r"^(\w+) : ", section, flags=re.M)
    return text, {name: " ".join(said.split()) for name, said in zip(told[::2], told[1::2], strict=True)}
