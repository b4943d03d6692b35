"""Two tiny stages over files that a test writes: SFT, then KTO (batch-coupled, with partners) and DPO together.

The folder of the files is ``$TINY``. Both stages end in a ragged batch; the second passes its first stream 2.5 times,
in micro-batches, with a cached reference, a moving average, evaluations and a checkpoint after every step.
"""

from jaxpref import configuration, objectives


def get_config(stages="sft+align"):
    config = configuration.default()
    config.stages = {name: {"sft": sft, "align": align}[name]() for name in stages.split("+")}
    return config


def stage():
    config = configuration.default()
    config.length.prompt, config.length.response = 24, 16
    config.optimizer.warmup_steps = 2
    config.optimizer.schedule = "linear"
    config.checkpoint.every = 1
    config.checkpoint.keep = 100
    return config


def sft():
    config = stage()
    config.model.name = "nano"
    config.model.overrides = dict(layers=1, width=32, heads=2, head_dim=16, mlp_width=32)
    config.data.demonstrations = dict(kind="demonstrations", path="$TINY/demonstrations.jsonl")
    config.objectives.sft = objectives.config("sft")
    config.batch.examples = 4
    return config


def align():
    config = stage()
    config.init_from = "stage:sft"
    config.data.unpaired = dict(kind="unpaired", path="$TINY/unpaired.jsonl")
    config.data.pairs = dict(kind="pairs", path="$TINY/pairs.jsonl")
    config.data.heldout = dict(kind="pairs", path="$TINY/heldout.jsonl")
    config.objectives.kto = objectives.config("kto", data="unpaired")
    config.objectives.dpo = objectives.config("dpo", data="pairs", weight=0.5)
    config.reference.kind = "cached"
    config.train.epochs = 2.5
    config.batch.examples = 8
    config.batch.streams = dict(pairs=3)
    config.batch.layout = "packed+shared"
    config.batch.rows = 2
    config.ema.decay = 0.9
    config.evals.heldout = dict(data="heldout", every=3, samples=1)
    config.checkpoint.best = dict(metric="heldout/loss/dpo", mode="min")
    return config
