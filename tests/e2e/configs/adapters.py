"""A base model, an adapter on it, and an adapter on the two merged, over the files of ``tiny.write_data``.

The argument says how the middle one stores its base: as it is, ``int8`` or ``nf4``.
"""

from jaxpref import configuration, objectives


def stage(kind, objective, *, steps):
    config = configuration.default()
    config.length.prompt, config.length.response = 24, 16
    config.batch.examples = 4
    config.train.steps = steps
    config.optimizer.learning_rate = 1e-2
    config.log.progress = False
    config.data[kind] = dict(kind=kind, path=f"$TINY/{kind}.jsonl")
    config.objectives[objective] = objectives.config(objective)
    return config


def get_config(base=""):
    config = configuration.default()
    config.stages.base = stage("demonstrations", "sft", steps=1)
    config.stages.base.model.name = "nano"
    config.stages.base.model.overrides = dict(layers=2, width=32, heads=4, key_value_heads=2, head_dim=8, mlp_width=48)

    lora = config.stages.lora = stage("pairs", "dpo", steps=5)
    lora.init_from = "stage:base"
    lora.adapter.kind, lora.adapter.rank, lora.adapter.alpha = "lora", 4, 12.0
    lora.adapter.base = base
    lora.reference.kind = "adapter_off"
    lora.ema.decay = 0.5
    lora.checkpoint.every = 3
    lora.data.heldout = dict(kind="pairs", path="$TINY/heldout.jsonl")
    lora.evals.heldout = dict(data="heldout", samples=1)

    again = config.stages.again = stage("pairs", "dpo", steps=3)
    again.init_from = "stage:lora"
    again.adapter.kind, again.adapter.scaling, again.adapter.targets = "lora", "rslora", ("query", "value")
    again.adapter.rank = 8
    again.reference.kind = "cached"
    return config
