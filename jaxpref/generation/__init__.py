"""Generation: the jitted sampler, and texts made with it.

>>> sampled = generate(model, params, prompts, key=jax.random.key(0), max_tokens=64, stop_ids=template.stop_ids)
"""

from jaxpref.generation.sampler import Generated, bucket, generate
from jaxpref.generation.sampling import Rule

__all__ = ["Generated", "Rule", "bucket", "generate"]
