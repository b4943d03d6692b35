"""Answers a file of prompts with a model, one JSON object a line; without a file, answers at the terminal.

The model is a run of ours (its best checkpoint if it measured which one is, else its newest) or a Hugging Face
directory.
"""

import argparse

SUMMARY = "sample from a model"
CONFIG = ""
DTYPES = ("float32", "bfloat16")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--model", required=True, metavar="D", help="run folder, Hugging Face directory, or hf://org/name")
    add("--step", type=int, metavar="N", help="checkpoint of the run (default: the best or the newest)")
    add("--prompts", metavar="F", help="JSONL (.gz, .zst) or Parquet with 'prompt' or 'messages'; terminal without it")
    add("--output", metavar="F", help="JSONL file to write (default: the standard output)")
    add("--max-tokens", type=int, default=256, metavar="N", help="longest answer (default: %(default)s)")
    add("--temperature", type=float, default=1.0, metavar="X", help="0: the likeliest token (default: %(default)s)")
    add("--top-k", type=int, default=0, metavar="N", help="sample from the N likeliest tokens (default: from all)")
    add("--top-p", type=float, default=1.0, metavar="X", help="sample from the likeliest tokens of total probability X")
    add("--samples", type=int, default=1, metavar="N", help="answers to each prompt (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the samples (default: %(default)s)")
    add("--stop", action="append", default=[], metavar="TOKEN", help="further token to stop at; may be repeated")
    add("--template", default="", metavar="NAME", help="chat template (default: that of the run or the tokenizer)")
    add("--tokenizer", default="", metavar="D", help="tokenizer (default: the model's own)")
    add("--prompt-limit", type=int, default=0, metavar="N", help="a longer prompt keeps its last N tokens")
    add("--batch-size", type=int, default=32, metavar="N", help="answers computed together (default: %(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="of weights and computation (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Generates."""
    import jax

    from jaxpref import generation
    from jaxpref.configuration import schema
    from jaxpref.training import mesh, starting

    source = starting.resolve(options.model)
    tokenizer = starting.load_tokenizer(options.tokenizer, source)
    template = starting.template_name(options.template or run_template(source), tokenizer)
    devices = mesh.make_mesh(schema.Mesh())
    section = schema.Model(dtype=options.dtype, param_dtype=options.dtype)
    with jax.set_mesh(devices):
        model, params = starting.load_model(section, source, devices, seed=0, step=options.step)
    generation.command.run(
        model,
        params,
        tokenizer,
        template=template,
        prompts=options.prompts,
        output=options.output,
        stop=options.stop,
        prompt_limit=options.prompt_limit,
        seed=options.seed,
        batch_size=options.batch_size,
        samples=options.samples,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
    )


def run_template(source) -> str:
    """The chat template that a run was trained with; empty for other models, and where it was the tokenizer's own."""
    from etils import epath

    from jaxpref import configuration

    file = epath.Path(source.path) / "config.json"
    if source.kind != "run" or not file.exists():
        return ""
    return configuration.from_json(file.read_text()).tokenizer.template
