"""Converts models between Hugging Face directories and runs of ours; what it writes, transformers loads.

jaxpref convert --from_hf=llama --to=runs/llama          a run to start others from, without training
jaxpref convert --from=runs/dpo --to_hf=export           the policy of a run
jaxpref convert --from=runs/reward --to_hf=export --head=bradley_terry     a reward model
jaxpref convert --from=runs/lora --to_peft=export        the adapter of a run alone, for Hugging Face's PEFT

An adapter is merged into the weights of everything but --to_peft.
"""

import argparse
import json

from jaxpref.errors import ConfigError, hint

SUMMARY = "import from and export to Hugging Face directories"
CONFIG = ""
DTYPES = ("float32", "bfloat16")
NO_HEAD = "none"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    sources = parser.add_mutually_exclusive_group(required=True)
    sources.add_argument("--from", dest="run", metavar="D", help="run folder")
    sources.add_argument("--from-hf", metavar="D", help="Hugging Face directory, or hf://org/name")
    targets = parser.add_mutually_exclusive_group(required=True)
    targets.add_argument("--to", metavar="D", help="run folder to make")
    targets.add_argument("--to-hf", metavar="D", help="Hugging Face directory to make")
    targets.add_argument("--to-peft", metavar="D", help="PEFT directory to make, with the adapter of a run only")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint of the run (default: the best or the newest)")
    parser.add_argument("--head", default="", metavar="TERM", help="reward head to export with the model, or none")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of stored weights (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Converts."""
    import jax
    from etils import epath

    from jaxpref import models
    from jaxpref.configuration import schema
    from jaxpref.training import mesh, starting

    target = epath.Path(options.to or options.to_hf or options.to_peft)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} is not empty; give a folder to be made.")
    source = starting.resolve(options.run or options.from_hf)
    if (source.kind == "run") != bool(options.run):
        kind, right = ("run", "--from") if source.kind == "run" else ("Hugging Face directory", "--from_hf")
        raise ConfigError(f"{source.path} is a {kind}; give it as {right}={source.path}.")
    devices = mesh.make_mesh(schema.Mesh())
    with jax.set_mesh(devices):
        read = read_run if options.run else read_hf
        model, params = read(source, devices, options)
        head = choose_head(params["heads"], options)
        if options.to_peft:
            write_adapter(target, model, params, source, head)
        else:
            tokenizer, weights = starting.load_tokenizer("", source), starting.merged(params, model, devices)
            if options.to_hf:
                models.save_hf(model, weights, target, tokenizer=tokenizer, head=head)
            else:
                write_run(target, model, weights, tokenizer)
    print(f"Wrote {target}.")


def read_hf(source, devices, options):
    """Model, and ``{"model": ..., "heads": ...}`` of a Hugging Face directory, with its score head if it has one."""
    from etils import epath

    from jaxpref import models
    from jaxpref.configuration import schema
    from jaxpref.training import starting

    section = schema.Model(param_dtype=options.dtype)
    model, params = starting.load_model(section, source, devices, seed=0, step=options.step)
    described = json.loads((epath.Path(source.path) / "config.json").read_text())
    scores = any(name.endswith("ForSequenceClassification") for name in described.get("architectures") or ())
    heads = {"score": models.load_hf_head(source.path, dtype=options.dtype)} if scores else {}
    return model, {"model": params, "heads": heads}


def read_run(source, devices, options):
    """Model, and ``{"model": ..., "heads": ..., "adapter": ...}`` of a run; the last where it trained one."""
    import jax
    from etils import epath

    from jaxpref import configuration, models, objectives
    from jaxpref.training import checkpoints, starting

    folder = epath.Path(source.path)
    described = models.ModelConfig.from_dict(json.loads((folder / starting.MODEL_FILE).read_text()))
    model = models.Transformer(described, param_dtype=options.dtype)
    adapter = starting.adapter_section(source)
    target = {"model": starting.parameter_shapes(model, devices, adapter.base), "heads": {}}
    target |= starting.adapter_shapes(adapter, model, devices)
    if (folder / "config.json").exists():
        config = configuration.from_json((folder / "config.json").read_text())
        terms = objectives.build(config.objectives, others=len(config.reference.others))
        shapes = jax.eval_shape(lambda: terms.init(jax.random.key(0), model)[0])
        whole = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec())
        target["heads"] = jax.tree.map(lambda leaf: leaf.update(sharding=whole), shapes)
    params = checkpoints.load_params(folder, target, step=options.step)
    if params["heads"]:  # those of classifiers only serve training
        params["heads"] = {name: h for name, h in params["heads"].items() if not terms.terms[name].classes}
    return model, params


def write_adapter(target, model, params, source, head) -> None:
    """The adapter of a run alone, which names the Hugging Face model that the run started from, if it did."""
    from jaxpref import models

    if "adapter" not in params:
        raise ConfigError(f"{source.path} has no adapter; export its weights with --to_hf.")
    if head is not None:
        raise ConfigError("--to_peft writes no reward head; export the merged reward model with --to_hf.")
    models.save_peft(model, params["adapter"], target, base=base_of(source))


def base_of(source) -> str:
    """The Hugging Face model that a run started from, as its config names it; empty if it started from another."""
    from etils import epath

    from jaxpref import configuration
    from jaxpref.training import starting

    name = configuration.from_json((epath.Path(source.path) / "config.json").read_text()).init_from
    if name.startswith("hf://"):
        return name.removeprefix("hf://")
    folder = starting.expand(name)
    ours = not name or name.startswith("stage:") or (folder / starting.MODEL_FILE).exists()
    return "" if ours else str(folder)


def choose_head(heads: dict, options: argparse.Namespace):
    """The reward head to export, or None."""

    if not heads and options.head not in ("", NO_HEAD):
        raise ConfigError(f"--head={options.head}: the model has no reward head; leave --head out.")
    if not heads or options.head == NO_HEAD:
        return None
    names = f"the model has the reward heads {', '.join(heads)}"
    if options.to:
        raise ConfigError(f"{names}, which a run to start others from does not hold; --head=none leaves them out.")
    if not options.head:
        raise ConfigError(f"{names}; give one as --head, or --head=none to export a language model.")
    if options.head not in heads:
        raise ConfigError(f"--head={options.head}: no such reward head; {hint(options.head, heads)}")
    return heads[options.head]


def write_run(target, model, params, tokenizer) -> None:
    """A run folder with one checkpoint, from which others can start."""
    from jaxpref.configuration import schema
    from jaxpref.training import checkpoints, starting

    with checkpoints.Checkpoints(target, schema.Checkpoint(), identity={}) as saver:
        saver.save(0, {"params": {"model": params}}, {})
    (target / starting.MODEL_FILE).write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
    tokenizer.save(target / starting.TOKENIZER_FOLDER)
