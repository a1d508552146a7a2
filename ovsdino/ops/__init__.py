"""The five ops of the method; each is one file with its formula, its plain-PyTorch reference and its registration.

Works without the native module `ovsdino._C`: the ops then run their references, and one log line says so.
"""

from ovsdino.ops.dispatch import BACKENDS, available, use_backend
from ovsdino.ops.guided_upsample import guided_upsample
from ovsdino.ops.mask_pool import mask_pool
from ovsdino.ops.preprocess import preprocess
from ovsdino.ops.structure_attention import structure_attention
from ovsdino.ops.upsample_argmax import upsample_argmax

__all__ = [
    "BACKENDS",
    "available",
    "guided_upsample",
    "mask_pool",
    "preprocess",
    "structure_attention",
    "upsample_argmax",
    "use_backend",
]
