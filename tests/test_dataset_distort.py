"""Distorted stimuli: each kind against closed forms, the same bytes everywhere, fingerprints, what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image, ImageEnhance
from scipy import stats

from processes import FRESH
from repalign.dataset import DISTORTIONS, Dataset, DatasetConfig
from repalign.dataset.columns import stream
from repalign.dataset.texts import Vocabulary
from repalign.errors import RepalignError
from repalign.study import load_study

KINDS = [(m, kind) for m, kinds in DISTORTIONS.items() for kind in kinds]


def open_block(block: dict[str, Any], base: Path) -> Dataset:
    """The dataset of a study file's `dataset:` block."""
    return DatasetConfig.model_validate(block).open(base)


def fails(call: Callable[[], Any], *parts: str) -> None:
    """The call raises a RepalignError whose message has all the parts."""
    with pytest.raises(RepalignError) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert part in message, message


def pictures(tmp_path: Path, *arrays: np.ndarray) -> Dataset:
    """A dataset of images alone, 00.png and so on."""
    for i, a in enumerate(arrays):
        Image.fromarray(a).save(tmp_path / f"{i:02}.png")
    return Dataset.from_folder(tmp_path)


def captions(tmp_path: Path, rows: list[Any]) -> Dataset:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "caption": c}) + "\n" for i, c in enumerate(rows)))
    return Dataset.from_table(path, text="caption")


def pixels(d: Dataset, row: int = 0) -> np.ndarray:
    return np.asarray(d.stimuli("image", [row])[0])


def texts(d: Dataset) -> list[tuple[str, ...]]:
    return d.stimuli("text", range(d.n))


def toned(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


# --- the random numbers --------------------------------------------------------------------------


def test_the_stream_is_pcg64_of_the_key() -> None:
    key = hashlib.sha256('[3, "é", "text", 1]'.encode()).digest()
    oracle = np.random.PCG64(int.from_bytes(key[:16], "little")).random_raw(5)
    draw = stream(3, "é", "text", 1)
    assert draw(5).tolist() == oracle.tolist()
    assert draw(2).tolist() == oracle[:2].tolist()  # each call starts at the beginning
    others = [stream(4, "é", "text", 1), stream(3, "e", "text", 1), stream(3, "é", "text", 2), stream(3, "é", "text")]
    assert len({draw(1)[0], *(o(1)[0] for o in others)}) == 5


# --- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0.25, 0.5, 1.0])
def test_noise_has_the_mean_and_variance_of_a_mixture(tmp_path: Path, amount: float) -> None:
    flat = np.empty((240, 320, 3), np.uint8)
    flat[:] = (40, 120, 230)
    got = pixels(pictures(tmp_path, flat).distort("image", "noise", amount)).astype(float)
    assert got.shape == flat.shape
    n = flat[:, :, 0].size
    variance = amount**2 * (256**2 - 1) / 12  # u uniform on the integers 0 to 255
    rounding = 0 if amount == 1 else 1 / 12
    fourth = amount**4 * (256**2 - 1) * (3 * 256**2 - 7) / 240  # of the discrete uniform
    for channel, level in enumerate((40, 120, 230)):
        x = got[:, :, channel]
        assert abs(x.mean() - ((1 - amount) * level + amount * 127.5)) < 5 * np.sqrt(variance / n) + 0.02
        assert abs(x.var() - variance - rounding) < 5 * np.sqrt((fourth - variance**2) / n) + 0.2
    assert abs(np.corrcoef(got[:, :, 0].ravel(), got[:, :, 1].ravel())[0, 1]) < 5 / np.sqrt(n)  # channels apart


def test_full_noise_is_uniform_and_has_no_scene(tmp_path: Path) -> None:
    d = pictures(tmp_path, np.zeros((160, 160, 3), np.uint8), toned(160, 160))
    black, scene = (pixels(d.distort("image", "noise", 1), row) for row in (0, 1))
    assert stats.chisquare(np.bincount(black.ravel(), minlength=256)).pvalue > 1e-4
    assert abs(np.corrcoef(scene.ravel(), pixels(d, 1).ravel())[0, 1]) < 5 / np.sqrt(scene.size)
    assert abs(np.corrcoef(scene.ravel(), black.ravel())[0, 1]) < 5 / np.sqrt(scene.size)  # ids have their own
    neighbours = np.corrcoef(black[:, :-1].ravel(), black[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 5 / np.sqrt(black.size)


def test_the_noise_is_the_same_at_every_amount(tmp_path: Path) -> None:
    d = pictures(tmp_path, toned(40, 30))
    x, u = pixels(d).astype(float), pixels(d.distort("image", "noise", 1)).astype(float)
    for amount in (0.1, 0.5, 0.9):
        mixed = pixels(d.distort("image", "noise", amount))
        assert np.abs(mixed - ((1 - amount) * x + amount * u)).max() <= 0.5 + 1e-9
    assert not np.array_equal(u, pixels(d.distort("image", "noise", 1, seed=1)))


@pytest.mark.parametrize("amount", [0.1, 0.3, 1.0])
def test_blur_makes_of_a_step_the_normal_distribution_function(tmp_path: Path, amount: float) -> None:
    step = np.zeros((48, 480, 3), np.uint8)  # the shorter side is 48: sd 12 a
    step[:, 240:] = 255
    got = pixels(pictures(tmp_path, step).distort("image", "blur", amount)).astype(float)
    at = np.arange(480) - 239.5
    assert np.abs(got - 255 * stats.norm.cdf(at / (12 * amount))[:, None]).max() < 4  # of three box filters in 8 bits
    assert np.abs(got - 255 * stats.norm.cdf(at / (10 * amount))[:, None]).max() > 8


def test_grey_takes_a_share_of_the_colour(tmp_path: Path) -> None:
    x = toned(20, 30)
    d = pictures(tmp_path, x)
    whole = pixels(d.distort("image", "grey", 1))
    assert (whole == whole[:, :, :1]).all()
    assert np.array_equal(whole, np.asarray(Image.fromarray(x).convert("L").convert("RGB")))
    half = pixels(d.distort("image", "grey", 0.3)).astype(int)
    assert np.abs(half - np.asarray(ImageEnhance.Color(Image.fromarray(x)).enhance(0.7)).astype(int)).max() <= 1


def tiles(x: np.ndarray, edge: int) -> list[bytes]:
    rows, columns = x.shape[0] // edge, x.shape[1] // edge
    return [
        x[r * edge : (r + 1) * edge, c * edge : (c + 1) * edge].tobytes() for r in range(rows) for c in range(columns)
    ]


def test_patches_change_places_and_nothing_else(tmp_path: Path) -> None:
    d = pictures(tmp_path, toned(16 * 10 + 5, 16 * 8 + 3))  # 80 whole patches and a border
    before = pixels(d)
    moved_before: set[int] = set()
    for amount in (0.1, 0.33, 0.5, 1.0):
        after = pixels(d.distort("image", "patches", amount))
        a, b = tiles(before, 16), tiles(after, 16)
        assert Counter(a) == Counter(b)
        moved = {i for i in range(80) if a[i] != b[i]}
        assert len(moved) == int(amount * 80 + 0.5)
        assert moved_before < moved  # nested
        moved_before = moved
        assert np.array_equal(before[160:], after[160:]) and np.array_equal(before[:, 128:], after[:, 128:])


def test_occluded_patches_are_grey_and_the_others_untouched(tmp_path: Path) -> None:
    d = pictures(tmp_path, toned(16 * 5 + 4, 16 * 4))  # 6 x 4 patches, the last row cut
    before = pixels(d)
    hidden_before = np.zeros(before.shape[:2], bool)
    for amount, count in ((0.02, 0), (0.25, 6), (0.5, 12), (1.0, 24)):
        after = pixels(d.distort("image", "occlude", amount))
        hidden = (after == 128).all(axis=2)
        grid = [hidden[r : r + 16, c : c + 16] for r in range(0, 84, 16) for c in range(0, 64, 16)]
        assert sum(bool(g.all()) for g in grid) == count
        assert np.array_equal(before[~hidden], after[~hidden])
        assert not (hidden_before & ~hidden).any()
        hidden_before = hidden
    assert hidden_before.all()


def test_which_patches_are_hidden_is_uniform(tmp_path: Path) -> None:
    """400 images of 4 patches, half of them hidden: each patch in half of the images, each pair of patches equally often."""
    d = pictures(tmp_path, *[np.zeros((32, 32, 3), np.uint8)] * 400).distort("image", "occlude", 0.5)
    hidden = np.array([[x[r, c, 0] for r in (0, 16) for c in (0, 16)] for x in map(np.asarray, d.stimuli("image", range(400)))])
    assert ((hidden == 128).sum(axis=1) == 2).all()
    pairs = Counter(map(tuple, (hidden == 128).tolist()))
    assert len(pairs) == 6 and stats.chisquare(list(pairs.values())).pvalue > 1e-3


@pytest.mark.parametrize("kind", DISTORTIONS["image"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 3), (15, 40), (33, 17)])
def test_tiny_images_keep_their_size(tmp_path: Path, kind: str, shape: tuple[int, int]) -> None:
    d = pictures(tmp_path, toned(*shape))
    for amount in (0.01, 0.5, 1):
        image = d.distort("image", kind, amount).stimuli("image", [0])[0]
        assert (image.mode, image.size) == ("RGB", shape[::-1])


@pytest.mark.parametrize("kind", DISTORTIONS["image"])
def test_greyscale_and_transparent_images(tmp_path: Path, kind: str) -> None:
    Image.fromarray(toned(20, 24)[:, :, 0]).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([toned(20, 24), toned(20, 24)[:, :, :1]])).save(tmp_path / "b.png")
    Image.fromarray(toned(20, 24)[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "c.png")
    clean = Dataset.from_folder(tmp_path)
    # what is distorted is the picture over white in RGB: the same as of a file that holds just that
    (tmp_path / "rgb").mkdir()
    for name, image in zip("abc", clean.stimuli("image", range(3)), strict=True):
        image.save(tmp_path / "rgb" / f"{name}.png")
    plain = Dataset.from_folder(tmp_path / "rgb")
    for row in range(3):
        a, b = (pixels(d.distort("image", kind, 0.6), row) for d in (clean, plain))
        assert np.array_equal(a, b)


# --- captions ------------------------------------------------------------------------------------


def test_vocabulary_counts_words_and_draws_them_by_their_use() -> None:
    v = Vocabulary.of(["b a  b", "c\tb", ""])
    assert (v.words, v.counts) == (("a", "b", "c"), (1, 3, 1))
    assert [v.pick(u) for u in (0, 0.199, 0.2, 0.79, 0.8, 1 - 2**-53)] == ["a", "a", "b", "b", "c", "c"]
    assert v.digest == hashlib.sha256(b'[["a", "b", "c"], [1, 3, 1]]').hexdigest()


@pytest.mark.parametrize("amount", [0.2, 0.7])
def test_replaced_words_are_binomial_and_come_from_all_captions(tmp_path: Path, amount: float) -> None:
    # 600 captions of 20 words of their own kind: a word from elsewhere is seen as such
    rows = [" ".join(f"w{i}.{j}" for j in range(20)) for i in range(600)]
    d = captions(tmp_path, rows).distort("text", "words", amount)
    changed = []
    for (before,), (after,) in zip([(r,) for r in rows], texts(d), strict=True):
        assert len(after.split()) == 20
        changed.append(sum(a != b for a, b in zip(before.split(), after.split(), strict=True)))
    p = amount * (1 - 1 / 12000)  # a drawn word is the same one in 1 of 12,000
    low, high = stats.binom.interval(1 - 1e-6, 12000, p)
    assert low <= sum(changed) <= high
    expected = stats.binom.pmf(range(21), 20, p) * 600
    kept = expected >= 5
    observed = np.bincount(changed, minlength=21)
    pooled = [*observed[kept], observed[~kept].sum()], [*expected[kept], expected[~kept].sum()]
    assert stats.chisquare(*pooled).pvalue > 1e-4
    drawn = [w for (t,), r in zip(texts(d), rows, strict=True) for w, o in zip(t.split(), r.split(), strict=True) if w != o]
    assert set(drawn) <= {w for r in rows for w in r.split()}
    source = np.bincount([int(w[1:].split(".")[0]) // 60 for w in drawn], minlength=10)
    assert stats.chisquare(source).pvalue > 1e-4  # captions give words alike


def test_all_words_replaced_keep_no_trace_but_their_number(tmp_path: Path) -> None:
    rows = ["x " * 8 if i % 2 else "y " * 8 for i in range(500)]
    d = captions(tmp_path, [r.strip() for r in rows]).distort("text", "words", 1)
    counts = [[t[0].count("x") for i, t in enumerate(texts(d)) if i % 2 == odd] for odd in (0, 1)]
    for side in counts:
        assert abs(np.mean(side) - 4) < 5 * np.sqrt(2 / 250)  # Binomial(8, 1/2) for both


@pytest.mark.parametrize("kind", DISTORTIONS["text"])
def test_what_changes_at_one_amount_changes_at_every_larger_one(tmp_path: Path, kind: str) -> None:
    rows = [" ".join(f"w{i}.{j}" for j in range(30)) for i in range(20)]
    d = captions(tmp_path, rows)
    before: list[set[str]] = [set()] * 20
    for amount in (0.1, 0.4, 0.8, 1):
        out = texts(d.distort("text", kind, amount))
        for i, (t,) in enumerate(out):
            words = t.split()
            stays = set(words) if kind == "drop" else {w for w, o in zip(words, rows[i].split(), strict=True) if w == o}
            gone = set(rows[i].split()) - stays
            assert before[i] <= gone
            before[i] = gone
    assert all(len(b) >= 29 for b in before)


def test_a_replaced_word_is_the_same_at_every_amount(tmp_path: Path) -> None:
    rows = [" ".join(f"w{i}.{j}" for j in range(30)) for i in range(20)]
    d = captions(tmp_path, rows)
    some, all_ = (texts(d.distort("text", "words", a)) for a in (0.4, 1))
    for original, (s,), (a,) in zip(rows, some, all_, strict=True):
        for o, x, y in zip(original.split(), s.split(), a.split(), strict=True):
            assert x in (o, y)


@pytest.mark.parametrize("amount", [0.1, 0.5, 1.0])
def test_order_moves_a_share_of_the_words(tmp_path: Path, amount: float) -> None:
    rows = [" ".join(f"w{j}" for j in range(n)) for n in range(1, 25)]
    for original, (t,) in zip(rows, texts(captions(tmp_path, rows).distort("text", "order", amount)), strict=True):
        a, b = original.split(), t.split()
        assert Counter(a) == Counter(b)
        m = int(amount * len(a) + 0.5)
        expected = 0 if len(a) == 1 else max(m, 2) if m else 0  # one word alone cannot change places
        assert sum(x != y for x, y in zip(a, b, strict=True)) == expected


def test_a_full_change_of_order_is_uniform_over_the_other_places(tmp_path: Path) -> None:
    d = captions(tmp_path, ["p q r s t"] * 2000).distort("text", "order", 1)
    places = Counter(t[0].split().index("p") for t in texts(d))
    assert places[0] == 0 and stats.chisquare([places[k] for k in (1, 2, 3, 4)]).pvalue > 1e-3


@pytest.mark.parametrize("amount", [0.3, 0.9, 1.0])
def test_left_out_words_are_binomial_and_one_stays(tmp_path: Path, amount: float) -> None:
    n, m = 1500, 6
    rows = [" ".join("abcdef")] * n
    left = [t[0].split() for t in texts(captions(tmp_path, rows).distort("text", "drop", amount))]
    sizes = np.bincount([len(w) for w in left], minlength=m + 1)
    law = stats.binom.pmf(range(m + 1), m, 1 - amount)
    law = np.array([0, law[0] + law[1], *law[2:]])  # where none would stay, one does
    assert sizes[0] == 0
    seen = law * n >= 5
    pooled = np.array([*sizes[seen], sizes[~seen].sum()]), np.array([*(law[seen] * n), law[~seen].sum() * n])
    positive = pooled[1] > 0
    assert pooled[0][~positive].sum() == 0
    if positive.sum() > 1:
        assert stats.chisquare(pooled[0][positive], pooled[1][positive]).pvalue > 1e-4
    assert all(w == sorted(w) for w in left)  # what stays keeps its order
    single = Counter(w[0] for w in left if len(w) == 1)
    if amount == 1:
        assert stats.chisquare([single[c] for c in "abcdef"]).pvalue > 1e-3  # the one that stays is any


def test_white_space_and_blank_captions_stay(tmp_path: Path) -> None:
    row = ["  two  words\tand\nmore ", None, "single", "third one"]
    d = captions(tmp_path, [row, "plain text"])
    assert texts(d)[0][1] == ""
    for kind in DISTORTIONS["text"]:
        first, blank, single, _ = texts(d.distort("text", kind, 1, seed=4))[0]
        assert blank == "" and first.startswith("  ") and first.endswith(" ") and single.split()
        if kind != "drop":
            assert [c for c in first if c.isspace()] == [c for c in row[0] if c.isspace()]
        else:
            assert first.split()[0] in row[0].split() and len(first.split()) == 1
    small = texts(d.distort("text", "words", 1e-9))  # nothing is drawn so low: not a byte moves
    assert small == texts(d)


def test_captions_of_one_row_have_random_numbers_of_their_own(tmp_path: Path) -> None:
    caption = " ".join(f"w{j}" for j in range(40))
    (row,) = texts(captions(tmp_path, [[caption] * 3]).distort("text", "words", 0.5))
    assert len(set(row)) == 3
    (one,) = texts(captions(tmp_path, [caption]).distort("text", "drop", 0.5))
    (three,) = texts(captions(tmp_path, [[caption] * 3]).distort("text", "drop", 0.5))
    assert three[0] == one[0]  # and they do not depend on how many captions follow


# --- the same bytes everywhere -------------------------------------------------------------------


def read_all(d: Dataset, modality: str, rows: list[int]) -> list[Any]:
    found = d.stimuli(modality, rows)
    return [x.tobytes() if modality == "image" else x for x in found]


@pytest.mark.parametrize(("modality", "kind"), KINDS)
def test_order_batch_and_process_do_not_matter(modality: str, kind: str) -> None:
    d = Dataset.toy(12, seed=1).distort(modality, kind, 0.6, seed=2)
    whole = read_all(d, modality, list(range(12)))
    assert read_all(d, modality, list(range(11, -1, -1))) == whole[::-1]
    assert [read_all(d, modality, [r])[0] for r in range(12)] == whole
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda r: read_all(d, modality, [r])[0], range(12))) == whole


def test_another_process_reads_the_same() -> None:
    d = Dataset.toy(12, seed=1)
    sent = [d.distort(m, kind, 0.6, seed=2) for m, kind in KINDS]
    with ProcessPoolExecutor(1, mp_context=FRESH) as pool:
        for (modality, _), e in zip(KINDS, sent, strict=True):
            rows = list(range(12))
            assert pool.submit(read_all, e, modality, rows).result() == read_all(e, modality, rows)
            assert pickle.loads(pickle.dumps(e)).fingerprint == e.fingerprint


@pytest.mark.parametrize(("modality", "kind"), KINDS)
def test_subsets_and_distortions_may_be_made_in_any_order(modality: str, kind: str) -> None:
    d = Dataset.toy(60, seed=1)
    ids = ["scene-00040", "scene-00003", "scene-00017"]

    def distort(x: Dataset) -> Dataset:
        return x.distort(modality, kind, 0.6, seed=2)

    for take in (lambda x: x.subset(ids), lambda x: x.sample(7, seed=3), lambda x: x.sample(30).sample(7)):
        a, b, c = take(distort(d)), distort(take(d)), distort(pickle.loads(pickle.dumps(take(d))))
        rows = list(range(a.n))
        assert a.fingerprint == b.fingerprint == c.fingerprint != take(d).fingerprint
        assert read_all(a, modality, rows) == read_all(b, modality, rows) == read_all(c, modality, rows)
        assert a.ids == b.ids == take(d).ids
    row = d.ids.index(ids[0])
    assert read_all(distort(d).subset(ids), modality, [0]) == read_all(distort(d), modality, [row])


def test_a_part_in_another_process_does_not_bring_the_whole() -> None:
    d = Dataset.toy(400, seed=1)
    part = pickle.dumps(d.subset(d.ids[:2]).columns["text"])
    assert len(part) < len(pickle.dumps(d.columns["text"])) / 5
    again = pickle.loads(part)
    assert again.vocabulary == d.columns["text"].vocabulary
    assert pickle.loads(pickle.dumps(again.take([1]))).vocabulary == again.vocabulary
    # and a dataset of these rows alone has another vocabulary, and so other replacements and another fingerprint
    alone = Dataset.toy(400, seed=1).columns["text"].captions[:2]
    own = type(again)(alone)
    assert own.digests == again.digests and own.vocabulary != again.vocabulary


def test_modalities_are_distorted_apart_and_in_any_order() -> None:
    d = Dataset.toy(5)
    a = d.distort("image", "noise", 0.5).distort("text", "words", 0.5)
    b = d.distort("text", "words", 0.5).distort("image", "noise", 0.5)
    assert a.fingerprint == b.fingerprint
    assert read_all(a, "image", [0]) == read_all(d.distort("image", "noise", 0.5), "image", [0])
    assert texts(d.distort("image", "noise", 0.5)) == texts(d)
    assert np.array_equal(a.stimuli("latent", [3])[0], d.stimuli("latent", [3])[0])


# --- fingerprint and description -----------------------------------------------------------------


@pytest.mark.parametrize(("modality", "kind"), KINDS)
def test_amount_zero_is_the_dataset_itself(modality: str, kind: str) -> None:
    d = Dataset.toy(5)
    assert d.distort(modality, kind, 0, seed=9) is d
    assert d.distort(modality, kind, 0.0).fingerprint == d.fingerprint == Dataset.toy(5).fingerprint


def test_everything_that_is_said_enters_the_fingerprint() -> None:
    d = Dataset.toy(5)
    prints = [d.fingerprint]
    for modality, kind in KINDS:
        prints += [d.distort(modality, kind, a).fingerprint for a in (1e-9, 0.3, 0.5, 1)]
        prints.append(d.distort(modality, kind, 0.5, seed=1).fingerprint)
    assert len(set(prints)) == len(prints)
    assert d.distort("image", "noise", 1).fingerprint == d.distort("image", "noise", 1.0).fingerprint
    assert d.distort("image", "noise", np.float64(0.5)).fingerprint == d.distort("image", "noise", 0.5).fingerprint


def test_fingerprint_follows_its_written_definition(tmp_path: Path) -> None:
    def sha(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    d = captions(tmp_path, ["b a", "a c"]).distort("text", "words", 0.5, seed=7)
    pool = sha('[["a", "b", "c"], [2, 1, 1]]')
    lines = ['["repalign-dataset-1",null,[["text","text"]]]']
    for id_, text in (("0", '["b a"]'), ("1", '["a c"]')):
        digest = sha(f'["repalign-distort-1","{sha(text)}","words",0.5,7,"{pool}"]')
        lines.append(f'["{id_}","{digest}"]')
    assert d.fingerprint == sha("\n".join(lines) + "\n")
    dropped = captions(tmp_path, ["b a", "a c"]).distort("text", "drop", 1)
    clean = sha('["b a"]')
    assert dropped.columns["text"].digests[0] == sha(f'["repalign-distort-1","{clean}","drop",1.0,0]')


def test_what_was_done_is_told() -> None:
    d = Dataset.toy(5).distort("image", "noise", 0.5).distort("text", "drop", 1, seed=3).sample(3)
    assert "image (noise 0.5), text (drop 1), latent" in repr(d)
    assert "image distorted: noise 0.5, seed 0; text distorted: drop 1, seed 3; sample of 3" in d.source
    about = d.describe()
    assert json.loads(json.dumps(about)) == about
    assert about["distort"] == {
        "image": {"kind": "noise", "amount": 0.5, "seed": 0},
        "text": {"kind": "drop", "amount": 1.0, "seed": 3},
    }
    assert about["captions_per_image"] == {"min": 1, "max": 1}
    assert about["kinds"] == {"image": "image", "text": "text", "latent": "array"}
    assert Dataset.toy(5).describe()["distort"] == {}
    assert [d.kind(m) for m in d.modalities] == ["image", "text", "array"]


# --- every source --------------------------------------------------------------------------------


def test_every_source_gives_the_same_stimuli(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for i in range(4):
        Image.fromarray(toned(40, 36, seed=i)).save(folder / f"p{i}.png")
        (folder / f"p{i}.txt").write_text(f"first words of {i}\nother words {i} here\n")
        rows.append({"id": f"p{i}", "image": f"photos/p{i}.png", "text": [f"first words of {i}", f"other words {i} here"]})
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for suffix, gap in (("csv", ","), ("tsv", "\t")):
        lines = [gap.join(("id", "image", "text")), *(gap.join((r["id"], r["image"], c)) for r in rows for c in r["text"])]
        (tmp_path / f"t.{suffix}").write_text("\n".join(lines) + "\n")
    hub = datasets.Dataset.from_list(
        [{**r, "image": {"bytes": (tmp_path / r["image"]).read_bytes(), "path": None}} for r in rows],
        features=datasets.Features(
            id=datasets.Value("string"), image=datasets.Image(), text=datasets.Sequence(datasets.Value("string"))
        ),
    )
    hub.save_to_disk(tmp_path / "hub")
    distort = {"image": {"kind": "patches", "amount": 0.5}, "text": {"kind": "words", "amount": 0.5}, "seed": 1}
    columns = {"id": "id", "image": "image", "text": "text"}
    blocks: list[dict[str, Any]] = [{"table": f"t.{s}", **columns} for s in ("jsonl", "parquet", "csv", "tsv")]
    blocks += [{"folder": "photos"}, {"hub": "hub", **columns}]
    opened = [open_block({**b, "distort": distort}, tmp_path) for b in blocks]
    first = opened[0]
    for d in opened:
        assert d.fingerprint == first.fingerprint
        assert texts(d) == texts(first)
        assert read_all(d, "image", [0, 1, 2, 3]) == read_all(first, "image", [0, 1, 2, 3])
    assert texts(first) != texts(open_block(blocks[0], tmp_path))


# --- the block of a study file -------------------------------------------------------------------


def test_the_block_is_applied_to_what_was_selected() -> None:
    block = {"toy": {"n": 40}, "ids": [f"scene-{i:05}" for i in range(20)], "sample": {"n": 8, "seed": 2}}
    how = {"image": {"kind": "blur", "amount": 0.4}, "text": {"kind": "order", "amount": 1}, "seed": 5}
    got = open_block({**block, "distort": how}, Path())
    whole = Dataset.toy(40).distort("image", "blur", 0.4, seed=5).distort("text", "order", 1, seed=5)
    assert got.fingerprint == whole.subset(block["ids"]).sample(8, 2).fingerprint
    nothing = {"image": {"kind": "noise", "amount": 0}}
    assert open_block({**block, "distort": nothing}, Path()).fingerprint == open_block(block, Path()).fingerprint
    assert open_block({**block, "distort": None}, Path()).fingerprint == open_block(block, Path()).fingerprint


NOISE = {"kind": "noise", "amount": 0.5}


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ({"imgae": NOISE}, ["dataset.distort.imgae: there is no field 'imgae'", "did you mean 'image'"]),
        ({"image": {"kind": "nois", "amount": 0.5}}, ["dataset.distort.image.kind: 'nois' is no", "did you mean 'noise'"]),
        ({"image": {"kind": "words", "amount": 0.5}}, ["'words' is no distortion of images but of captions"]),
        ({"text": {"kind": "blur", "amount": 0.5}}, ["distort.text.kind: 'blur' is no distortion of captions but of images"]),
        ({"image": {"kind": "noise", "amuont": 0.5}}, ["dataset.distort.image.amuont", "did you mean 'amount'"]),
        ({"image": {"kind": "noise"}}, ["dataset.distort.image.amount", "the field 'amount' is missing"]),
        ({"image": {"kind": "noise", "amount": 1.5}}, ["dataset.distort.image.amount", "or equal to 1", "got: 1.5"]),
        ({"image": {"kind": "noise", "amount": -0.1}}, ["dataset.distort.image.amount", "or equal to 0"]),
        ({"image": {"kind": "noise", "amount": float("nan")}}, ["dataset.distort.image.amount", "got: nan"]),
        ({"image": {"kind": "noise", "amount": True}}, ["dataset.distort.image.amount", "expected: a number", "got: true"]),
        ({"image": NOISE, "seed": -1}, ["dataset.distort.seed", "got: -1"]),
        ({"image": NOISE, "sed": 1}, ["dataset.distort.sed", "did you mean 'seed'"]),
        ({"seed": 1}, ["dataset.distort: say what is distorted"]),
    ],
)
def test_errors_of_the_block_name_the_field(tmp_path: Path, block: dict[str, Any], parts: list[str]) -> None:
    path = tmp_path / "s.yaml"
    study = {"name": "s", "dataset": {"toy": {"n": 3}, "distort": block}, "models": ["toy:vision-pixels", "toy:language-bag"]}
    path.write_text(yaml.safe_dump(study))
    fails(lambda: load_study(path), *parts)


def test_a_study_file_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    text = "name: s\ndataset:\n  toy: {n: 30}\n  distort:\n    image: {kind: %s, amount: 0.5}\n"
    text += "models: ['toy:vision-pixels', 'toy:language-bag']\n"
    path.write_text(text % "noise")
    assert load_study(path).open_dataset().distortions["image"].kind == "noise"
    path.write_text(text % "nose")
    fails(lambda: load_study(path), "s.yaml, line 5, dataset.distort.image.kind", "did you mean 'noise'")


def test_the_page_tells_kinds_and_captions_as_they_are() -> None:
    page = (Path(__file__).parents[1] / "docs/distort.md").read_text("utf-8")
    found = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, flags=re.M)
    assert sorted(name for name, _ in found) == sorted(kind for _, kind in KINDS)
    rows = dict(found)
    d = Dataset.toy(12)
    assert f"Of `{texts(d)[3][0]}`" in page
    for kind in DISTORTIONS["text"]:
        assert rows[kind].endswith(f"| 0.5: `{texts(d.distort('text', kind, 0.5))[3][0]}`")


# --- what is refused -----------------------------------------------------------------------------


def test_refusals() -> None:
    d = Dataset.toy(3)
    fails(lambda: d.distort("imgae", "noise", 0.5), "no modality 'imgae'", "did you mean 'image'")
    fails(lambda: d.distort("image", "noize", 0.5), "modality 'image': 'noize' is no distortion", "did you mean 'noise'")
    fails(lambda: d.distort("image", "drop", 0.5), "'drop' is no distortion of images but of captions")
    fails(lambda: d.distort("latent", "noise", 0.5), "modality 'latent' cannot be distorted", "got: kind array")
    for amount in (-0.01, 1.01, float("nan"), True, "0.5", None):
        fails(lambda a=amount: d.distort("image", "noise", a), "the amount of noise is out of range", repr(amount))
    for seed in (-1, 0.5, True):
        fails(lambda s=seed: d.distort("image", "noise", 0.5, seed=s), "the seed is none")
    fails(lambda: d.distort("image", "noize", 0), "did you mean 'noise'")  # also where nothing would be done
    once = d.distort("text", "drop", 0.5)
    fails(lambda: once.distort("text", "words", 0.5), "modality 'text' is distorted already", "got: drop 0.5")
    assert once.distort("text", "words", 0) is once


def test_an_array_is_no_image_for_its_name() -> None:
    d = Dataset.from_arrays({"image": np.zeros((2, 4, 4, 3))}, ["a", "b"])
    fails(lambda: d.distort("image", "noise", 0.5), "cannot be distorted", "before the dataset is made")
