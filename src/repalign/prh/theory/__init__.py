"""The paper's theory as experiments: worlds with a known co-occurrence, learners with a known optimum.

Source: Huh, Cheung, Wang, Isola 2024, section 4 and appendix F. A world is a table P(z_a, z_b) over discrete events; a
modality sees it through a view, one to one or lossy; a contrastive learner of that view should arrive at
<f(a), f(b)> = K_PMI(a, b) + constant, so that the kernels of two modalities agree. `experiments` holds this to numbers.

>>> from repalign.prh.theory import BinaryNCE, circle, learn
>>> world = circle(12, kappa=2.0)
>>> learned = learn(world, BinaryNCE(p_pos=1 / 3), d=2)
>>> learned.error(world.pmi, up_to="constant") < 1e-6, round(learned.bias, 4)
(True, -1.5171)
"""

from __future__ import annotations

from repalign.prh.theory.latents import *  # noqa: F403
from repalign.prh.theory.learn import *  # noqa: F403
from repalign.prh.theory.worlds import *  # noqa: F403
