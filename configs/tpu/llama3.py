"""The parts that the Llama 3 recipes for TPU slices share; ``llama3_<size>_<method>.py`` beside it are the recipes.

Every recipe reads ``$JAXPREF_DATA/train.jsonl`` and ``heldout.jsonl`` (a folder, or a bucket: ``gs://name/folder``):
demonstrations for SFT, pairs for DPO and reward models, as docs/data-formats.md describes them. Its docstring names the
smallest slice that holds it; the same config runs on any larger one, and

    jaxpref plan --config=configs/tpu/<recipe>.py --topology=<slice>

says what it takes there.

See *The Llama 3 Herd of Models* (https://arxiv.org/abs/2407.21783) for the models, and for DPO's learning rate, beta,
and the weight of the likelihood term that it adds.
"""

from jaxpref import configuration, objectives

CHECKPOINTS = {
    "1b": "hf://meta-llama/Llama-3.2-1B-Instruct",
    "8b": "hf://meta-llama/Llama-3.1-8B-Instruct",
    "70b": "hf://meta-llama/Llama-3.1-70B-Instruct",
    "405b": "hf://meta-llama/Llama-3.1-405B-Instruct",
}


def recipe(size, *, examples, learning_rate, epochs=1.0):
    """What all recipes share: bfloat16 products, float32 parameters, everything divided over all chips.

    Args:
        size: of the model, a key of CHECKPOINTS.
        examples: of a batch.
        learning_rate: peak.
        epochs: passes over the data.
    """
    config = configuration.default()
    config.init_from = CHECKPOINTS[size]
    config.model.name = f"llama3-{size}"
    config.model.dtype = "bfloat16"
    config.model.attention = "splash"
    config.model.remat = "full"
    config.model.chunk = 1024
    config.tokenizer.template = "tokenizer"
    config.length.prompt = 2048
    config.length.response = 2048
    config.batch.examples = examples
    config.batch.rows_per_device = 1
    config.train.epochs = epochs
    config.optimizer.learning_rate = learning_rate
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.moment_dtype = "bfloat16"
    config.checkpoint.every = 100
    return config


def data(config, stream, kind):
    """The files of a recipe, and the evaluation on those held out."""
    config.data[stream] = dict(kind=kind, path="$JAXPREF_DATA/train.jsonl")
    config.data.heldout = dict(kind=kind, path="$JAXPREF_DATA/heldout.jsonl")
    config.evals.heldout = dict(data="heldout", every=200)
    return config


def sft(size, **options):
    config = data(recipe(size, **{"learning_rate": 1e-5, "epochs": 2.0, **options}), "demonstrations", "demonstrations")
    config.batch.layout = "packed"
    config.batch.length = 4096
    config.objectives.sft = objectives.config("sft")
    return config


def pairs(size, **options):
    """Pairs: prompts of up to 2,048 tokens, shared by responses of up to 2,048 each."""
    config = data(recipe(size, **options), "pairs", "pairs")
    config.batch.layout = "packed+shared"
    config.batch.prompt_length = 2048
    config.batch.response_length = 2048
    return config


def dpo(size, **options):
    config = pairs(size, **{"learning_rate": 1e-6, **options})
    config.objectives.dpo = objectives.config("dpo", beta=0.1)
    config.reference.kind = "cached"
    return config


def reward(size, **options):
    config = pairs(size, **{"learning_rate": 5e-6, **options})
    config.length.response = 2047  # a head reads the last token, which takes one more position of the region
    config.objectives.bradley_terry = objectives.config("bradley_terry")
    return config
