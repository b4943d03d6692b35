"""Real human preferences on a laptop: SFT, a reward model and DPO on Anthropic HH, three seeds, from stories260k.

    JAXPREF_DATA=../shared/data jaxpref train --config=configs/hh_cpu.py --workdir=runs/hh_cpu

Start: the 260,032-parameter Llama of llama2.c (a storyteller: it has seen neither dialogue nor facts).
Data: our split of the official test files of hh-rlhf (never "hh-rlhf train"): 5,240 pairs to train on, and the last
1,000 of helpful-base held out. Pairs with differing prompts, identical or empty responses are dropped and counted.
Length rule: a prompt keeps its last 128 tokens, a response its first 128; both are counted and shown.
Hardware: two CPU cores, about a quarter of an hour a seed; results in docs/results.md. ``configs/hh_cpu.py:seeds=1``
runs one seed, ``configs/hh_cpu.py:quick`` is a smoke test of a few steps.

See *Training a Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback*
(https://arxiv.org/abs/2204.05862) for the data.
"""

from jaxpref import configuration, objectives

HH = "$JAXPREF_DATA/hh_rlhf"
TRAIN = (
    dict(path=f"{HH}/helpful-rejection-sampled.test.jsonl.gz"),
    dict(path=f"{HH}/helpful-online.test.jsonl.gz"),
    dict(path=f"{HH}/helpful-base.test.jsonl.gz", lines=(1, 1354)),
)
TEST = (dict(path=f"{HH}/helpful-base.test.jsonl.gz", lines=(1355, 2354)),)


def get_config(arg="seeds=3"):
    quick = arg == "quick"
    seeds = range(1 if quick else int(arg.removeprefix("seeds=")))
    config = configuration.default()
    config.stages = {
        f"{name}-{seed}": make(seed, quick)
        for seed in seeds
        for name, make in (("sft", sft), ("reward", reward), ("dpo", dpo))
    }
    config.compare.pairs = dict(
        likelihoods={
            "stories260k": ["start:sft-0"],
            "SFT": [f"sft-{seed}" for seed in seeds],
        },
        accuracies={
            "reward model": [f"reward-{seed}" for seed in seeds],
            "DPO, implicit reward": [f"dpo-{seed}" for seed in seeds],
        },
    )
    return config


def stage(seed, quick, epochs, learning_rate):
    """What all stages share."""
    config = configuration.default()
    config.seed = seed
    config.tokenizer.template = "human-assistant"
    config.data.on_bad_row = "skip"  # seven rows have an empty response
    config.length.prompt = 128
    config.length.response = 128
    config.batch.examples = 64
    config.train.epochs = epochs
    config.train.steps = 3 if quick else 0
    config.optimizer.learning_rate = learning_rate
    config.optimizer.warmup_steps = 1 if quick else 10
    config.optimizer.weight_decay = 0.01
    config.checkpoint.every = 0 if quick else 40
    return config


def sft(seed, quick):
    config = stage(seed, quick, epochs=1.0, learning_rate=2e-3)
    config.init_from = "$JAXPREF_DATA/stories260k/hf"
    config.data.demonstrations = dict(kind="demonstrations", turns="last", sources=TRAIN)
    config.data.heldout = dict(kind="demonstrations", turns="last", sources=TEST)
    config.objectives.sft = objectives.config("sft")
    config.evals.heldout = dict(data="heldout")
    return config


def preferences(config, seed):
    """Pairs for training, and held-out ones; starts from this seed's SFT."""
    config.init_from = f"stage:sft-{seed}"
    config.data.pairs = dict(kind="pairs", sources=TRAIN)
    config.data.heldout = dict(kind="pairs", sources=TEST)
    config.batch.layout = "shared"
    config.evals.heldout = dict(data="heldout")
    return config


def reward(seed, quick):
    config = preferences(stage(seed, quick, epochs=1.0, learning_rate=1e-3), seed)
    config.objectives.bradley_terry = objectives.config("bradley_terry")
    return config


def dpo(seed, quick):
    config = preferences(stage(seed, quick, epochs=1.0, learning_rate=2e-4), seed)
    config.objectives.dpo = objectives.config("dpo", beta=0.1)
    config.reference.kind = "cached"
    return config
