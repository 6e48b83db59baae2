"""Competence: how good models are, by bits per byte of text, probes on their representations, and scores of benchmarks."""

from __future__ import annotations

from repalign.competence.bits import Bits, BitsProtocol, bits_per_byte
from repalign.competence.corpus import Corpus

__all__ = ["Bits", "BitsProtocol", "Corpus", "bits_per_byte"]
