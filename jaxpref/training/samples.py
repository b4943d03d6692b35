"""Samples of the policy at evaluations: a few prompts answered, to be read."""

import json

import jax
from etils import epath

from jaxpref import data, generation
from jaxpref.analysis.report import SAMPLES
from jaxpref.training import state
from jaxpref.training.assembly import Assembly
from jaxpref.training.heldout import Evaluation


def write(evaluation: Evaluation, parts: Assembly, current: state.TrainState, folder: epath.Path, step: int) -> None:
    """Appends answers to an evaluation's first prompts to ``samples.jsonl``; a resumed run rewrites its own lines."""
    if not evaluation.samples:
        return
    examples = [evaluation.dataset[index] for index in range(min(evaluation.samples, len(evaluation.dataset)))]
    template = data.templates.load(parts.template, parts.tokenizer)
    sampled = generation.generate(
        parts.model,
        state.averaged(current, parts.trainable)["model"],
        [example.prompt for example in examples],
        key=jax.random.fold_in(jax.random.key(parts.sections.seed), step),
        max_tokens=parts.sections.length.response,
        stop_ids=template.stop_ids,
    )
    lines = [
        {
            "step": step,
            "evaluation": evaluation.name,
            "prompt": parts.tokenizer.decode(example.prompt),
            "sample": parts.tokenizer.decode(answer.tokens, after=example.prompt),
        }
        for example, answer in zip(examples, sampled, strict=True)
    ]
    if jax.process_index() == 0:
        path = folder / SAMPLES
        before = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        kept = [
            line
            for line in before
            if line["step"] < step or (line["step"], line["evaluation"]) < (step, evaluation.name)
        ]
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept + lines))
