"""Competence: how good models are, by bits per byte of text, probes on their representations, and scores of benchmarks."""

from __future__ import annotations

from repalign.competence.bits import Bits, BitsProtocol, bits_per_byte
from repalign.competence.corpus import Corpus
from repalign.competence.imports import (
    Joined,
    Score,
    add_scores,
    img_size_of,
    join_scores,
    read_lm_eval,
    read_scores,
    read_timm,
)
from repalign.competence.labels import Split, read_labels
from repalign.competence.probes import FewShotProbe, KNNProbe, LinearProbe, ProbeRecord, best_layer, probe, with_score
from repalign.competence.vtab import Task, solved, vtab_tasks

__all__ = [
    "Bits",
    "BitsProtocol",
    "Corpus",
    "FewShotProbe",
    "Joined",
    "KNNProbe",
    "LinearProbe",
    "ProbeRecord",
    "Score",
    "Split",
    "Task",
    "add_scores",
    "best_layer",
    "bits_per_byte",
    "img_size_of",
    "join_scores",
    "probe",
    "read_labels",
    "read_lm_eval",
    "read_scores",
    "read_timm",
    "solved",
    "vtab_tasks",
    "with_score",
]
