"""The colour experiment: do pixels in photos and words in text lay colours out as perception does?

Pixels that stand near each other in photos give pointwise mutual information between colours; a text model gives
distances between colour words. Both are laid out by multidimensional scaling beside CIELAB, and both are held against
it, and against each other, by measures with a null.

Source: Huh et al. 2024 (arXiv 2405.07987), figure 8 and appendix D, which print no number.
"""

from __future__ import annotations

from repalign.prh.colour.colours import *  # noqa: F403
from repalign.prh.colour.run import *  # noqa: F403
from repalign.prh.colour.spaces import *  # noqa: F403
