"""Attention: one dispatcher over kernels that compute the same function, and its construction for each layout of a row.

Four rules hold for every kernel:

* a token attends to tokens of its own segment only; segment 0, padding, attends to padding, which harms nobody;
* causality goes by index, so that padding on either side and the slots of a cache need no special case;
* windows go by position, because in shared layouts index distance is not position distance;
* what a kernel cannot honour is refused with a :class:`jaxpref.errors.ModelError`, never ignored.

========== ============= ============================ ================================================================
kernel     runs on       dtypes                       refuses
========== ============= ============================ ================================================================
``xla``    everything    every floating-point type    nothing
``splash`` TPU, CPU [1]_ float32, bfloat16            windows in the shared layouts that cut a sequence
``cudnn``  NVIDIA GPUs   bfloat16, float16            soft caps, a ``sequence`` mesh axis, some sizes of a head
========== ============= ============================ ================================================================

``auto`` means ``splash`` on a TPU where it honours the model and the layout, and ``xla`` everywhere else. No kernel
takes a shared layout on a mesh with a ``sequence`` axis, which would cut through the regions of a row.

.. [1] On a CPU the kernel is interpreted, which is for tests only.
"""

from jaxpref.models.attention.dispatch import KERNELS, NAMES, chosen, over_rows

__all__ = ["KERNELS", "NAMES", "chosen", "over_rows"]
