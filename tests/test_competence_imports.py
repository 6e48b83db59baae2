"""Scores of others: files in the form that lm-evaluation-harness and timm write, joined by name, and as a trend."""

from __future__ import annotations

import json

import numpy as np
import pytest

from repalign.competence import img_size_of, join_scores, published_scores, read_lm_eval, read_scores, read_timm
from repalign.competence.imports import shipped
from repalign.errors import RepalignError
from repalign.models import ModelRecord, find_model
from repalign.relate import trend


def lm_eval(model_args, **more):
    """The form of version 0.4: metrics with their filter, what is no metric among them, errors that are not there."""
    return {
        "results": {
            "hellaswag": {
                "alias": "hellaswag",
                "name": "hellaswag",
                "sample_len": 10042,
                "acc,none": 0.45,
                "acc_stderr,none": 0.005,
                "acc_norm,none": 0.6,
                "acc_norm_stderr,none": "N/A",
            },
            "gsm8k": {
                "alias": "gsm8k",
                "exact_match,strict-match": 0.1,
                "exact_match_stderr,strict-match": 0.01,
                "exact_match,flexible-extract": 0.12,
            },
            "wikitext": {"word_perplexity,none": 20.0, "bits_per_byte,none": 0.8, "empty,none": True},
        },
        "n-shot": {"hellaswag": 0, "gsm8k": 5},
        "config": {"model": "hf", "model_args": model_args, "limit": None},
        "model_name": "ignored where the arguments say it",
        **more,
    }


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def test_a_file_of_lm_evaluation_harness(tmp_path):
    path = write(tmp_path / "results_1.json", lm_eval("pretrained=bigscience/bloomz-560m,dtype=float16"))
    found = read_lm_eval(path)
    assert {s.name: s.value for s in found} == {
        "hellaswag/acc": 0.45,
        "hellaswag": 0.45,
        "hellaswag/acc_norm": 0.6,
        "gsm8k/exact_match,strict-match": 0.1,
        "gsm8k": 0.1,
        "gsm8k/exact_match,flexible-extract": 0.12,
        "wikitext/word_perplexity": 20.0,
        "wikitext/bits_per_byte": 0.8,
    }
    assert {s.model for s in found} == {"bigscience/bloomz-560m"}
    details = {s.name: s.details for s in found}
    assert details["hellaswag"]["standard_error"] == 0.005 and details["hellaswag/acc_norm"]["standard_error"] is None
    assert details["gsm8k"]["n_shot"] == 5
    again = {s.name: s.value for s in read_lm_eval(path, {"hellaswag": "acc_norm,none"})}
    assert again["hellaswag"] == 0.6
    with pytest.raises(RepalignError, match="did you mean 'acc_norm,none'"):
        read_lm_eval(path, {"hellaswag": "acc_norms"})


def test_other_versions_and_a_folder(tmp_path):
    old = {
        "results": {"hellaswag": {"acc": 0.3, "acc_stderr": 0.01, "acc_norm": 0.4}},
        "versions": {"hellaswag": 0},
        "config": {"model": "hf-causal", "model_args": "pretrained=EleutherAI/pythia-70m,revision=step1000", "limit": None},
    }
    write(tmp_path / "a" / "results_2020.json", old)
    write(tmp_path / "b" / "results_2025.json", lm_eval({"pretrained": "x/y", "peft": "me/adapter"}))
    write(tmp_path / "c" / "results_2024.json", lm_eval("", model_name="EleutherAI/pythia-160m"))
    found = {(s.model, s.name): s.value for s in read_lm_eval(tmp_path)}
    assert found["EleutherAI/pythia-70m@step1000", "hellaswag"] == 0.3
    assert found["x/y+me/adapter", "hellaswag"] == 0.45 and found["EleutherAI/pythia-160m", "gsm8k"] == 0.1
    records = [
        ModelRecord(f"hf:EleutherAI/pythia-70m{at}", f"p{at}", "text") for at in ("@step1000", "@step2000", "", "@main")
    ]
    joined = join_scores(records[:2], read_lm_eval(tmp_path), missing="skip")
    assert joined.records[0].scores["hellaswag"] == 0.3 and joined.without == ("p@step2000",)
    assert joined.unused == ("x/y+me/adapter", "EleutherAI/pythia-160m")
    assert not join_scores(records[2:], read_lm_eval(tmp_path), missing="skip").records[0].scores


def test_files_that_are_refused(tmp_path):
    part = lm_eval("pretrained=x/y")
    part["config"]["limit"] = 100
    path = write(tmp_path / "results_p.json", part)
    with pytest.raises(RepalignError, match="on a part of the stimuli(.|\n)*limit: 100"):
        read_lm_eval(path)
    assert read_lm_eval(path, partial=True)[0].details["limit"] == 100
    with pytest.raises(RepalignError, match="no result file of lm-evaluation-harness"):
        read_lm_eval(write(tmp_path / "o.json", {"metrics": {}}))
    nameless = lm_eval("dtype=float16", model_name=None)
    with pytest.raises(RepalignError, match="does not say which model"):
        read_lm_eval(write(tmp_path / "n.json", nameless))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(RepalignError, match="cannot be read"):
        read_lm_eval(tmp_path / "broken.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RepalignError, match="no results"):
        read_lm_eval(tmp_path / "empty")


def test_the_table_of_timm(tmp_path):
    """Its header and lines of its form; parameters in millions with a comma stand in a column that is not read."""
    path = tmp_path / "results-imagenet.csv"
    path.write_text(
        "model,top1,top1_err,top5,top5_err,param_count,img_size,crop_pct,interpolation\n"
        'eva_giant_patch14_560.m30m_ft_in22k_in1k,89.786,10.214,98.992,1.008,"1,014.45",560,1.000,bicubic\n'
        "vit_base_patch16_clip_224.laion2b_ft_in12k_in1k,86.174,13.826,97.756,2.244,86.57,224,0.950,bicubic\n"
    )
    found = read_timm(path)
    assert [(s.model, s.name, s.value) for s in found] == [
        ("eva_giant_patch14_560.m30m_ft_in22k_in1k", "imagenet_top1", 89.786),
        ("vit_base_patch16_clip_224.laion2b_ft_in12k_in1k", "imagenet_top1", 86.174),
    ]
    record = ModelRecord("timm:vit_base_patch16_clip_224.laion2b_ft_in12k_in1k", "clip-b", "image", scores={"a": 1.0})
    assert join_scores([record], found).records[0].scores == {"a": 1.0, "imagenet_top1": 86.174}
    frozen = find_model("vit_base_patch16_clip_224.laion2b_ft_in12k").record()
    with pytest.raises(RepalignError, match="did you mean 'vit_base_patch16_clip_224.laion2b_ft_in12k_in1k'"):
        join_scores([frozen], found)
    with pytest.raises(RepalignError, match="did you mean 'top1'"):
        read_timm(path, column="top_1")



TIMM = """model,img_size,top1,crop_pct
convnext.in1k,224,87.3,0.875
convnext.in1k,288,87.5,1.000
convnext.in1k,288,87.4,0.950
vit.in1k,224,84.5,0.900
other.in1k,64,10.0,1.000
other.in1k,96,11.0,1.000
"""


@pytest.mark.parametrize(
    ("img_sizes", "top1", "said"),
    [
        ({}, 87.5, "convnext.in1k: imagenet_top1 at 288 px, the largest, of 224, 288"),
        ({"convnext.in1k": 224}, 87.3, "convnext.in1k: imagenet_top1 at 224 px, its own size, of 224, 288"),
        ({"convnext.in1k": 999, "vit.in1k": 1}, 87.5, "convnext.in1k: imagenet_top1 at 288 px, the largest, of 224, 288"),
    ],
)
def test_a_model_at_several_image_sizes(tmp_path, img_sizes, top1, said):
    """timm's own table has a model once per size; the model's own size is taken, or the largest, and which is said."""
    (path := tmp_path / "results-imagenet.csv").write_text(TIMM)
    records = [ModelRecord(f"timm:{name}", name, "image") for name in ("convnext.in1k", "vit.in1k")]
    joined = join_scores(records, read_timm(path), img_sizes=img_sizes)
    assert [r.scores["imagenet_top1"] for r in joined.records] == [top1, 84.5]
    assert joined.sizes == (said,) and joined.unused == ("other.in1k",)
    path.write_text(TIMM + "vit.in1k,224,84.6,0.900\n")
    with pytest.raises(RepalignError, match="line 8: model 'vit.in1k' again(.|\n)*one row per model and img_size"):
        read_timm(path)


def test_the_facts_of_an_extraction_say_the_size():
    assert img_size_of({"preprocessing": {"input_size": [3, 224, 256]}}) == 256
    assert img_size_of({"preprocessing": "as the processor does"}) is None and img_size_of(None) is None


def test_any_table(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("model,bits_per_byte,note\nbloomz-560m,0.97,first\nhf:bigscience/bloomz-1b1,,second\n")
    with pytest.raises(RepalignError, match="line 2: note is no number(.|\n)*got: 'first'"):
        read_scores(path)
    found = read_scores(path, {"bits_per_byte": "bits_per_byte"})
    assert [(s.model, s.value) for s in found] == [("bloomz-560m", 0.97)]
    records = [find_model(n).record() for n in ("bloomz-560m", "bloomz-1b1")]
    with pytest.raises(RepalignError, match="no score of 1 of 2 models, the first is 'bloomz-1b1'"):
        join_scores(records, found)
    path.write_text("model,s\na,1\na,2\n")
    with pytest.raises(RepalignError, match="line 3: model 'a' again"):
        read_scores(path)
    path.write_text("name,s\na,inf\n")
    with pytest.raises(RepalignError, match="no column 'model'"):
        read_scores(path)
    with pytest.raises(RepalignError, match="s is no number"):
        read_scores(path, model="name")


def test_what_cannot_be_joined(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("model,s\ny/z,1\n")
    both = [ModelRecord("hf:y/z", "one", "text"), ModelRecord("st:y/z", "two", "text")]
    with pytest.raises(RepalignError, match=r"'y/z' is more than one model(.|\n)*one \(hf:y/z\), two \(st:y/z\)"):
        join_scores(both, read_scores(path))
    held = [ModelRecord("hf:y/z", "one", "text", scores={"s": 2.0})]
    with pytest.raises(RepalignError, match="model one has s already"):
        join_scores(held, read_scores(path))
    assert join_scores(held, read_scores(path), overwrite=True).records[0].scores == {"s": 1.0}
    path.write_text("model,s\ny/z,1\nhf:y/z,3\n")
    with pytest.raises(RepalignError, match="two values of s for 'hf:y/z'"):
        join_scores(both[:1], read_scores(path))


def test_scores_become_a_trend(tmp_path):
    """The line over joined scores is numpy's."""
    import alignment_table as made

    table = made.make_table()
    names = list(dict.fromkeys(table["model_x"]))
    values = np.linspace(0.2, 0.7, len(names)) ** 2
    path = tmp_path / "s.csv"
    path.write_text("model,hellaswag\n" + "".join(f"{n},{v}\n" for n, v in zip(names, values, strict=True)))
    records = [ModelRecord(f"toy:{n}", n, "text") for n in names]
    found = trend(table, join_scores(records, read_scores(path)).records, "hellaswag", side="x")
    y = found.points.set_index("model").loc[names, "alignment"]
    assert found.slope == pytest.approx(np.polyfit(values, y, 1)[0]) and found.label == "HellaSwag accuracy"


def test_a_known_model_is_found_under_its_name_without_the_revision_of_its_safetensors():
    from repalign.competence import Score, join_scores
    from repalign.models import find_model

    record = find_model("open_llama_7b").record()
    assert "@refs/pr/" in record.spec
    for name in ("openlm-research/open_llama_7b", "hf:openlm-research/open_llama_7b", "open_llama_7b", record.spec):
        joined = join_scores([record], [Score(name, "hellaswag", 0.5, "file")])
        assert joined.records[0].scores == {"hellaswag": 0.5}


# --- scores that ship --------------------------------------------------------------------------------

HEAD = "model,score,value,how,source\n"


def test_every_shipped_score_has_a_source_and_is_of_a_model_that_there_is():
    import timm

    scores, there = published_scores(), set(timm.list_pretrained())
    assert len(scores) == len({(s.model, s.name) for s in scores}) == 81
    for s in scores:
        assert s.source.startswith(("EleutherAI/lm-evaluation-harness ", "openlm-research/open_llama ", "huggingface/pytorch-"))
        assert s.details["how"] and (0 < s.value < 1 if s.name != "imagenet_top1" else 20 < s.value < 90), s
        assert s.model in there if s.name == "imagenet_top1" else find_model(s.model).modality == "text", s.model
    values = {(s.model, s.name): s.value for s in scores}
    assert values[("resnet50.a1_in1k", "imagenet_top1")] == 80.382  # at the 224 px that it is fed, not 81.240 at 288
    assert values[("llama-30b", "gsm8k")] == pytest.approx(0.3048, abs=1e-4)
    assert join_scores([find_model("llama-7b").record()], scores).records[0].scores["hellaswag"] == pytest.approx(0.5639, abs=1e-4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,hellaswag,0.5,acc,\n", "line 2 lacks its source"), ("a,hellaswag,0.5,,somewhere\n", "lacks its how"),
        (",hellaswag,0.5,acc,x\n", "lacks its model"), ("a,hellaswag,high,acc,x\n", "is no number"),
        ("a,b,nan,acc,x\n", "is no number"),
        ("a,b,1,acc,x\na,b,2,acc,x\n", "line 3: b of 'a' again"), ("a,b,1,acc\n", "lacks its source"),
    ],
)  # fmt: skip
def test_a_score_without_a_source_is_refused(rows, message):
    with pytest.raises(RepalignError, match=message):
        shipped(HEAD + rows)


def test_truthfulqa_is_one_score_in_old_and_new_result_files(tmp_path):
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    new.write_text(json.dumps(lm_eval("pretrained=a/b") | {"results": {"truthfulqa_mc2": {"alias": "x", "acc,none": 0.4}}}))
    old.write_text(json.dumps({"results": {"truthfulqa_mc": {"mc1": 0.2, "mc1_stderr": 0.01, "mc2": 0.35}},
                               "config": {"model_args": "pretrained=a/b"}}))  # fmt: skip
    assert {s.name: s.value for s in read_lm_eval(new)} == {"truthfulqa_mc2/acc": 0.4, "truthfulqa_mc2": 0.4}
    assert {s.name: s.value for s in read_lm_eval(old)} == {
        "truthfulqa_mc/mc1": 0.2, "truthfulqa_mc/mc2": 0.35, "truthfulqa_mc2": 0.35}  # fmt: skip
