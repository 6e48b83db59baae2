"""The colour experiment: do pixels in photos and words in text lay colours out as perception does?

Pixels that stand near each other in photos give pointwise mutual information between colours; a text model gives
distances between colour words. Both are laid out by multidimensional scaling beside CIELAB, and both are held against
it, and against each other, by measures with a null.

Source: Huh et al. 2024 (arXiv 2405.07987), figure 8 and appendix D, which print no number.
"""

from __future__ import annotations

from repalign.prh.colour.colours import (
    BASIC,
    WORDS,
    ColourOptions,
    Palette,
    cielab,
    count_pairs,
    dissimilarity,
    frequent,
    grid_palette,
    named_colours,
    negative_share,
    pmi_kernel,
    read_photos,
    shuffled,
    single_words,
    word_palette,
)  # fmt: skip
from repalign.prh.colour.run import CONTROLS, ColourResult, run_colour
from repalign.prh.colour.spaces import (
    ColourSpace,
    Layout,
    align,
    mds,
    neighbor_state,
    perceptual_space,
    pixel_space,
    rsa_state,
    score,
    score_layout,
    spelling_space,
    vector_space,
    word_space,
)  # fmt: skip

__all__ = [
    "BASIC", "CONTROLS", "WORDS", "ColourOptions", "ColourResult", "ColourSpace", "Layout", "Palette", "align", "cielab",
    "count_pairs", "dissimilarity", "frequent", "grid_palette", "mds", "named_colours", "negative_share",
    "neighbor_state", "perceptual_space", "pixel_space", "pmi_kernel", "read_photos", "rsa_state", "run_colour", "score",
    "score_layout", "shuffled", "single_words", "spelling_space", "vector_space", "word_palette", "word_space",
]  # fmt: skip
