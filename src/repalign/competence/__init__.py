"""Competence: how good models are, by bits per byte of text, probes on their representations, and scores of benchmarks."""

from __future__ import annotations

from repalign.competence.bits import Bits, BitsProtocol, bits_per_byte
from repalign.competence.corpus import Corpus
from repalign.competence.labels import Split, read_labels
from repalign.competence.probes import FewShotProbe, KNNProbe, LinearProbe, ProbeRecord, best_layer, probe, with_score
from repalign.competence.vtab import Task, solved, vtab_tasks

__all__ = [
    "Bits",
    "BitsProtocol",
    "Corpus",
    "FewShotProbe",
    "KNNProbe",
    "LinearProbe",
    "ProbeRecord",
    "Split",
    "Task",
    "best_layer",
    "bits_per_byte",
    "probe",
    "read_labels",
    "solved",
    "vtab_tasks",
    "with_score",
]
