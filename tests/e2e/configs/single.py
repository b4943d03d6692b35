"""One tiny run over ``$TINY/pairs.jsonl``: ``dpo``, or ``reward``."""

from jaxpref import configuration, objectives


def get_config(objective="dpo"):
    config = configuration.default()
    config.model.name = "nano"
    config.model.overrides = dict(layers=1, width=32, heads=2, head_dim=16, mlp_width=32)
    config.length.prompt, config.length.response = 24, 16
    config.data.pairs = dict(kind="pairs", path="$TINY/pairs.jsonl")
    config.batch.examples = 4
    config.train.steps = 4
    config.log.progress = False
    if objective == "dpo":
        config.objectives.dpo = objectives.config("dpo", data="pairs")
        config.reference.kind = "frozen"
    else:
        config.objectives.reward = objectives.config("bradley_terry", data="pairs")
    return config
