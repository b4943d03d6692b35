"""The whole job in one command, from scratch: SFT, a reward model, DPO, and a table that compares them.

    jaxpref train --config=configs/quickstart.py --workdir=runs/quickstart

Data: the controlled-sentiment world, short reviews from a grammar whose true reward is known exactly. Preferences are
noisy (Bradley-Terry at temperature 0.5: 82 % is the best possible accuracy on labels).
Hardware: two CPU cores, about three minutes, most of it SFT. ``configs/quickstart.py:quick`` is a smoke test of half a
minute that learns little.
Expected: the gold reward rises from below 0 (base) to about 0 (SFT, which imitates the grammar) to about 1 (DPO).

See *Direct Preference Optimization: Your Language Model is Secretly a Reward Model* (https://arxiv.org/abs/2305.18290).
"""

from jaxpref import configuration, objectives

WORLD = "world:sentiment"


def get_config(arg=""):
    quick = arg == "quick"
    config = configuration.default()
    config.stages = {
        "sft": sft(steps=60 if quick else 2500),
        "reward": reward(steps=20 if quick else 300),
        "dpo": dpo(steps=20 if quick else 200),
    }
    config.compare.gold = dict(
        world="sentiment",
        policies={"base": "start:sft", "SFT": "sft", "DPO": "dpo"},
        reference="sft",
        reward_models={"reward model": "reward"},
        samples=1 if quick else 4,
        max_tokens=24,
    )
    return config


def stage(steps, learning_rate):
    """What all stages share."""
    config = configuration.default()
    config.tokenizer.path = WORLD  # one token for each of the world's phrases, bytes for everything else
    config.length.prompt = 16
    config.length.response = 24
    config.batch.examples = 64
    config.batch.layout = "packed"
    config.train.steps = steps
    config.optimizer.learning_rate = learning_rate
    config.optimizer.warmup_steps = steps // 20
    config.log.every = 10
    return config


def sft(steps):
    config = stage(steps, learning_rate=3e-3)
    config.model.name = "nano"
    config.data.demonstrations = dict(kind="demonstrations", source=WORLD, size=16_000)
    config.data.heldout = dict(kind="demonstrations", source=WORLD, size=128, split="test")
    config.objectives.sft = objectives.config("sft")
    config.evals.heldout = dict(data="heldout", samples=4)
    return config


def preferences(config):
    """Pairs for training, and held-out ones."""
    config.init_from = "stage:sft"
    config.data.pairs = dict(kind="pairs", source=WORLD, size=4_000, temperature=0.5)
    config.data.heldout = dict(kind="pairs", source=WORLD, size=1_000, temperature=0.5, split="test")
    config.evals.heldout = dict(data="heldout", every=100)
    return config


def reward(steps):
    config = preferences(stage(steps, learning_rate=1e-3))
    config.objectives.bradley_terry = objectives.config("bradley_terry")
    return config


def dpo(steps):
    config = preferences(stage(steps, learning_rate=2e-4))
    config.batch.layout = "packed+shared"
    config.objectives.dpo = objectives.config("dpo", beta=0.3)
    config.reference.kind = "cached"
    config.evals.heldout = dict(data="heldout", every=100, samples=4)
    return config
