"""Stitching by task loss: laws, plain oracles, what is refused, and values measured outside on the bed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
from repalign.errors import RepalignError
from repalign.experiments import stitch
from repalign.experiments.models import Answers, answering, read_stimuli
from repalign.experiments.stitch import WARNING, scored, stitched
from repalign.experiments.stitching import (
    Affine,
    Rows,
    Training,
    at_cut,
    divergence,
    half_of,
    least_squares,
    residual,
    shared_cuts,
    states_of,
    untrained,
)

NETS = '''
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.one = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x):
        x = self.two(self.one(x))
        return 4 * self.head(x.mean((2, 3)))

class Around(Net):
    def forward(self, x):
        y = self.one(x)
        return self.head(self.two(y).mean((2, 3))) + y.mean((2, 3))[:, :5]

def seen(image):
    return torch.tensor(list(image.resize((16, 16)).tobytes())).reshape(16, 16, 3).permute(2, 0, 1) / 255.0

def small(): return Net(6, 0), seen
def large(): return Net(8, 1), seen
def around(): return Around(6, 2), seen
def classless():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3)), seen
'''


@pytest.fixture(scope="module")
def nets(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("nets") / "nets.py"
    file.write_text(NETS)
    return file


@pytest.fixture(scope="module")
def pair(nets) -> list[Answers]:
    return [answering(f"torch:{nets}:{name}") for name in ("small", "large")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(48):
        from PIL import Image

        low = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(low).resize((20, 20)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(photos) -> list[Any]:
    return read_stimuli(photos, "image")[0]


# --- laws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [1e-2, 10.0])
def test_a_model_into_itself(pair, pictures, lr):
    """The start is perfect, and no step that is worse by the validation part is kept, even where steps are absurd."""
    found = stitched(pair[1], pair[1], pictures[:32], pictures[32:], training=Training(3, lr, 8, 0.25)).table
    assert found["cut_a"].tolist() == ["one", "two"]
    for what in ("direct", "trained", "self"):
        assert (found[f"{what}_agreement"] == 1).all() and (found[f"{what}_kl"] < 1e-6).all()
    assert (found["residual"] < 1e-10).all()
    if lr > 1:
        assert (found["epoch"] == 0).all()


def test_without_validation_the_last_step_is_kept(pair, pictures):
    found = stitched(pair[1], pair[1], pictures[:32], pictures[32:], training=Training(2, 10.0, 8, 0)).table
    assert (found["epoch"] == 2).all() and (found["trained_kl"] > 0.01).all()


def test_training_helps_and_changes_no_model(pair, pictures):
    a, b = pair
    before = [{k: v.clone() for k, v in m.module.state_dict().items()} for m in pair]
    needs = [[p.requires_grad for p in m.module.parameters()] for m in pair]
    found = stitched(a, b, pictures[:32], pictures[32:], training=Training(20, 1e-2, 8, 0.25))
    assert (found.table["trained_kl"] < found.table["direct_kl"] + 0.05).all() and (found.table["epoch"] > 0).any()
    for m, was, need in zip(pair, before, needs, strict=True):
        assert all(torch.equal(v, was[k]) for k, v in m.module.state_dict().items())
        assert [p.requires_grad for p in m.module.parameters()] == need
        assert not [x for x in m.module.modules() if "forward" in vars(x) or x._forward_hooks]
    again = stitched(a, b, pictures[:32], pictures[32:], training=Training(20, 1e-2, 8, 0.25))
    assert found.table.equals(again.table)
    assert WARNING in found.text and "n = 32 images (8 of them choose the epoch), judged on 16 others" in found.text
    assert found.draw().figure is not None


def test_the_second_half_is_the_model(pair, pictures):
    """On its own states it gives its own logits, and one image in front is as good as another."""
    b = pair[1]
    batch = b.inputs(b.prepare(pictures[:8]))
    ones = [b.inputs(b.prepare(pictures[i : i + 1])) for i in (0, 1)]
    states, logits = states_of(b.module, ["one"], [batch], b.label)
    half = half_of(b, "one", ones, states["one"], logits)
    assert torch.allclose(half(states["one"]), logits, atol=1e-5)
    with torch.no_grad():
        other = b.module.head(b.module.two(2 * states["one"]).mean((2, 3))) * 4
        assert torch.allclose(half(2 * states["one"]), other, atol=1e-5)


def test_vision_transformers_of_two_libraries(tmp_path, pictures):
    a = answering(f"hf:{tiny_models.vit(tmp_path / 'hf')}")
    b = answering(f"timm:{tiny_models.timm_vit(tmp_path / 'timm')}")
    inner = next(name for name, m in a.module.named_modules() if name.endswith(".1") and type(m).__name__ == "ViTLayer")
    found = stitched(a, b, pictures[:32], pictures[32:], [inner], ["blocks.1"], Training(2, 1e-3, 16, 0.25)).table
    assert found["self_agreement"].tolist() == [1] and found["residual"][0] < 1.5
    assert stitched(b, b, pictures[:32], pictures[32:], ["blocks.0"], training=Training(0)).table["direct_agreement"][0] == 1


def test_labels_tell_what_stitching_costs(pair, pictures):
    a, b = pair
    _, logits = states_of(b.module, [], [b.inputs(b.prepare(pictures[32:]))], b.label)
    labels = logits.argmax(-1).tolist()
    found = stitched(a, b, pictures[:32], pictures[32:], ["two"], training=Training(1, batch_size=16), labels=labels)
    (row,) = found.table.to_dict("records")
    assert row["accuracy_b"] == 1 and row["accuracy"] == row["trained_agreement"] == 1 - row["penalty"]
    assert "less accuracy than B's" in found.text
    with pytest.raises(RepalignError, match="labels are no classes of B"):
        scored(logits, logits, [5] * len(logits))


# --- oracles ---------------------------------------------------------------------------------------


def test_least_squares_and_residual():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 3, 4, 5)), rng.standard_normal((7, 6, 4, 5))
    x[:, 2] = 0  # a channel that is dead
    rows = [z.transpose(0, 2, 3, 1).reshape(-1, z.shape[1]) for z in (x, y)]
    design = np.c_[rows[0], np.ones(len(rows[0]))]
    plain = design @ np.linalg.lstsq(design, rows[1], rcond=None)[0]
    s = least_squares(torch.tensor(x), torch.tensor(y), 1)
    mapped = s(torch.tensor(x)).numpy().transpose(0, 2, 3, 1).reshape(-1, 6)
    np.testing.assert_allclose(mapped, plain, atol=1e-10)
    assert torch.all(s.weight[:, 2] == 0)
    expected = ((plain - rows[1]) ** 2).sum() / ((rows[1] - rows[1].mean(0)) ** 2).sum()
    assert residual(s, torch.tensor(x), torch.tensor(y)) == pytest.approx(expected)
    conv = torch.nn.functional.conv2d(torch.tensor(x), s.weight[:, :, None, None], s.bias)
    assert torch.allclose(conv, s(torch.tensor(x)))


def test_divergence():
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    expected = [0.5 * np.log(2) + 0.5 * np.log(2 / 3), 0]
    np.testing.assert_allclose(divergence(p.log() + 3, q.log()), expected, atol=1e-6)


def test_untrained_is_another_and_the_same_by_seed(pair):
    net = pair[0].module
    kept = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.random.get_rng_state()
    one, same, other = untrained(net, 0), untrained(net, 0), untrained(net, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, kept[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight) and not torch.equal(untrained(net, 5).head.weight, net.head.weight)
    own = torch.nn.Module()
    own.token, own.scale = torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(4))
    made = untrained(own)
    assert 0 < float(made.token.detach().abs().max()) < 0.1 and made.scale.tolist() == [1] * 4


def test_cuts_by_default(pair):
    assert shared_cuts(pair[0].module, pair[1].module) == ["one", "two"]
    assert shared_cuts(pair[0].module, pair[1].module.two) == []


# --- what is refused -------------------------------------------------------------------------------


def test_wrong_inputs(nets, photos, tmp_path):
    a, b = (f"torch:{nets}:{name}" for name in ("small", "large"))
    table = tmp_path / "photos.csv"
    table.write_text("image,kind\n" + "".join(f"{p},{'cat' if i else 0}\n" for i, p in enumerate(sorted(photos.glob("*.png")))))
    captions = tmp_path / "captions.csv"
    captions.write_text("text\nA dog\nA cat\n")
    text = f"hf:{tiny_models.llama(tmp_path / 'llama')}"
    for one, two, images, options, match in (
        (a, b, photos, {"cuts": ["tow"]}, r"(?s)no module 'tow'.*two"),
        (a, b, photos, {"cuts": ["one"], "cuts_b": ["three"]}, "no module 'three'"),
        (a, b, photos, {"cuts": ["one"], "cuts_b": ["one", "two"]}, "cuts_b does not fit cuts"),
        (a, b, photos, {"cuts": ["one"], "cuts_b": ["two"]}, r"(?s)do not have the same positions.*\(6, 8, 8\) of A"),
        (a, b, photos, {"cuts": ["one"], "cuts_b": ["head"]}, "do not have the same positions"),
        (a, f"torch:{nets}:around", photos, {"cuts": ["two"]}, "not all that its head reads goes through 'two'"),
        (a, f"torch:{nets}:classless", photos, {"cuts": ["one"], "cuts_b": ["0"]}, "it names no class"),
        (a, text, photos, {}, "reads text"),
        (a, b, captions, {}, "no column 'image'|image"),
        (a, b, tmp_path / "nothing", {}, "there is no"),
        (a, b, photos, {"n": 12}, "too few images"),
        (a, b, photos, {"judge": 1.0}, "judge is out of range"),
        (a, b, photos, {"validation": -0.1}, "validation is out of range"),
        (a, b, photos, {"lr": 0.0}, "lr is out of range"),
        (a, b, photos, {"label": "kind"}, "has no columns"),
        (a, b, table, {"label": "kind"}, r"(?s)row 1 has no class.*cat"),
        (a, b, table, {"label": "kinds"}, "kinds"),
        ("array:x.npy", b, photos, {}, "it predicts no token, and names no class"),
    ):
        with pytest.raises(RepalignError, match=match):
            stitch(one, two, images, **options)


def test_the_command(nets, photos, tmp_path):
    """From specs and a table with labels to a table, as the command calls it."""
    table = tmp_path / "photos.csv"
    table.write_text("image,kind\n" + "".join(f"{p},{i % 5}\n" for i, p in enumerate(sorted(photos.glob("*.png")))))
    found = stitch(f"torch:{nets}:small", f"torch:{nets}:large", table, label="kind", epochs=1, n=40, judge=0.25)
    assert found.facts["fit"] == 30 and found.facts["judge"] == 10 and found.facts["validation"] == 6
    assert found.table["cut_b"].tolist() == ["one", "two"] and found.table["penalty"].between(-1, 1).all()


def test_a_study_and_its_mock(tmp_path):
    from repalign.study import load_study

    study = "name: s\nexperiment: stitch\na: timm:a\nb: timm:b\nimages: photos\ncuts: [blocks.1]\n"
    (tmp_path / "s.yaml").write_text(study)
    mocked = load_study(tmp_path / "s.yaml").mock().run().drawn[0]
    assert mocked.table["cut_a"].tolist() == ["layer1", "layer2"] and (mocked.table["self_agreement"] == 1).all()


# --- measured outside, on the bed ------------------------------------------------------------------

# After each layer: residual; agreement and KL direct, trained; KL of an untrained A, trained. Tolerance .03.
GOLDEN = {
    "layer1": (0.4234, 0.455, 2.3628, None, None, None),
    "layer2": (0.5286, 0.525, 2.2831, 0.555, 1.2819, 1.8958),
    "layer3": (0.6914, 0.510, 1.3766, 0.510, 1.2813, 1.6561),
}


@pytest.mark.slow
def test_bed(shared):
    """ResNet-20 into ResNet-56 on photos: 400 to fit, 200 to judge, Adam 1e-2, 8 epochs, no validation part, as measured."""
    nets = Path(__file__).parent / "studies/cifar_resnet.py"
    a, b = (answering(f"torch:{nets}:{name}") for name in ("resnet20", "resnet56"))
    photos, _ = read_stimuli(shared / "bed/flickr8k_dev/pairs.jsonl", "image", n=600)
    cuts = list(GOLDEN)
    batches = {m.label: [m.inputs(m.prepare(photos[i : i + 100])) for i in range(0, 600, 100)] for m in (a, b)}
    of_a, _ = states_of(a.module, cuts, batches[a.label], a.label)
    of_random, _ = states_of(untrained(a.module), cuts, batches[a.label], a.label)
    b.module.requires_grad_(False)
    of_b, logits = states_of(b.module, cuts, batches[b.label], b.label)
    ones = [b.inputs(b.prepare(photos[i : i + 1])) for i in (0, 1)]
    residuals = []
    for cut, (left, direct, direct_kl, trained, trained_kl, random_kl) in GOLDEN.items():
        half = half_of(b, cut, ones, of_b[cut][:8], logits[:8])
        parts = [Rows(of_a[cut][s], of_random[cut][s], of_b[cut][s], logits[s]) for s in (slice(0, 400), slice(400, 600))]
        found = at_cut(*parts, half, 1, Training(8 if trained else 0, 1e-2, 100, 0), lambda _: None)
        direct_found = [found[name] for name in ("residual", "direct_agreement", "direct_kl")]
        assert direct_found == pytest.approx([left, direct, direct_kl], abs=1e-3)
        assert (found["self_agreement"], found["self_kl"] < 1e-6) == (1, True)
        residuals.append(found["residual"])
        if trained is not None:
            assert found["trained_agreement"] == pytest.approx(trained, abs=0.03)
            assert [found["trained_kl"], found["untrained_kl"]] == pytest.approx([trained_kl, random_kl], abs=0.03)
            assert found["untrained_agreement"] < found["trained_agreement"] - 0.1
    assert residuals == sorted(residuals)  # it rises with depth, while direct agreement does not fall
    assert float(logits[400:].argmax(-1).unique(return_counts=True)[1].max()) / 200 == pytest.approx(0.2)


def test_a_map_of_tokens():
    x = torch.arange(12.0).reshape(1, 4, 3)
    assert torch.equal(Affine(2 * torch.eye(3), torch.ones(3), -1)(x), 2 * x + 1)
