"""Competence: how good models are, by bits per byte of text, probes on their representations, and scores of benchmarks."""

from __future__ import annotations

from repalign.competence.bits import Bits, BitsProtocol, bits_per_byte
from repalign.competence.corpus import Corpus, named_corpus
from repalign.competence.imports import (
    Joined,
    Score,
    add_scores,
    img_size_of,
    join_scores,
    published_scores,
    read_lm_eval,
    read_scores,
    read_timm,
)  # fmt: skip
from repalign.competence.probes import (
    FewShotProbe,
    KNNProbe,
    LinearProbe,
    ProbeRecord,
    Split,
    Task,
    best_layer,
    probe,
    read_labels,
    solved,
    vtab_tasks,
    with_score,
)  # fmt: skip

__all__ = [
    "Bits", "BitsProtocol", "Corpus", "FewShotProbe", "Joined", "KNNProbe", "LinearProbe", "ProbeRecord", "Score", "Split", "Task",
    "add_scores", "best_layer", "bits_per_byte", "img_size_of", "join_scores", "named_corpus", "probe", "published_scores",
    "read_labels", "read_lm_eval", "read_scores", "read_timm", "solved", "vtab_tasks", "with_score",
]  # fmt: skip
