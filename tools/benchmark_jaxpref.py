"""jaxpref's side of the benchmark: what a config sets up, stepped as the training loop steps it.

python tools/benchmark_jaxpref.py prepare SETTINGS.json    makes the tokenizer and the model that both sides load
python tools/benchmark_jaxpref.py work SETTINGS.json       takes orders (see benchmark_worker)
"""

import json
import sys
import time
from pathlib import Path

import benchmark_worker as worker
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import jaxpref
from jaxpref import configuration, data, models, objectives
from jaxpref.batch import computed_tokens
from jaxpref.data import layouts, sources
from jaxpref.training import assembly, precompute, throughput

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
STREAMS = {"sft": "demonstrations", "dpo": "pairs", "kto": "unpaired", "reward": "pairs"}
OBJECTIVES = {"sft": "sft", "dpo": "dpo", "kto": "kto", "reward": "bradley_terry"}
REFERENCES = {"none": "none", "live": "frozen", "cached": "cached"}


def prepare(settings) -> dict:
    """Trains a byte-level BPE tokenizer on the rows, draws a model, and writes both as a Hugging Face directory."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE

    folder = Path(settings["model"])
    folder.mkdir(parents=True, exist_ok=True)
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings["vocabulary"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL.values()),
        show_progress=False,
    )
    rows = sources.read({"path": settings["data"]}, "pairs", lambda *_: None)
    bpe.train_from_iterator((text for _, row in rows for text in row.values() if isinstance(text, str)), trainer)
    bpe.save(str(folder / "tokenizer.json"))
    described = SPECIAL | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    architecture = models.BUILTIN[settings["shape"]].to_dict() | settings["overrides"]
    model = models.Transformer(
        models.ModelConfig.from_dict(architecture), dtype=settings["dtype"], param_dtype=settings["dtype"]
    )
    params = jax.jit(lambda key: models.init(model, key))(jax.random.key(0))
    tokenizer = data.tokenizers.load(folder)
    data.tokenizers.check_vocabulary(tokenizer, model.config.vocab_size)
    models.save_hf(model, params, folder, tokenizer=tokenizer)
    return {"parameters": models.count(params), "architecture": model.config.to_dict()}


def make_config(settings):
    """The config that a user would write for this method."""
    method = settings["method"]
    config = configuration.default()
    config.init_from = settings["model"]
    config.model.dtype = config.model.param_dtype = settings["dtype"]
    config.model.remat = settings["remat"]
    config.model.attention = settings["jaxpref_attention"]
    config.tokenizer.template = "human-assistant"
    stream = dict(kind=STREAMS[method], path=settings["data"], on_bad_row="skip")
    config.data.rows = stream | (dict(turns="last") if method == "sft" else {})
    config.length.prompt, config.length.response = settings["prompt"], settings["response"]
    config.batch.examples = settings["examples"]
    config.batch.layout = settings["layout"]
    config.objectives[method] = objectives.config(OBJECTIVES[method], data="rows")
    config.reference.kind = REFERENCES[settings["reference"]]
    config.optimizer.learning_rate = settings["learning_rate"]
    config.optimizer.clip_norm = 1.0
    config.optimizer.moment_dtype = settings["dtype"]
    config.train.steps = settings["total_steps"]
    return config


class Run:
    """A run that is ready to step."""

    def __init__(self, settings):
        report = lambda *lines: print(*lines, file=sys.stderr)  # noqa: E731
        sections = configuration.sections(make_config(settings))
        self.parts = assembly.assemble(sections, settings["folder"], report=report)
        if settings.get("rows"):
            worker.write_rows(settings["rows"], self._batches(settings["total_steps"]))
        with jax.set_mesh(self.parts.mesh):
            if self.parts.cache is not None:
                precompute.fill_run(self.parts, [], range(settings["total_steps"]), report)
                self.parts = self.parts._replace(reference=None)
            self.state, self.number, self.batch = self.parts.state, 0, self.parts.place(0)
            self.key = jax.random.key(0)
            self.parts = self.parts._replace(state=None)  # its buffers are donated
            start = time.perf_counter()
            arguments = (self.state, self.parts.reference, self.key, self.batch)
            self.step = self.parts.compile_step().lower(*arguments).compile()
            self.compile_seconds = time.perf_counter() - start

    def _batches(self, steps: int):
        for step in range(steps):
            yield [
                {
                    "prompt": example.prompt.tolist(),
                    "responses": [response.tolist() for response in example.responses],
                    "label": bool(example.side.get("label", True)),
                }
                for example in self.parts.inputs.examples(step)["rows"]
            ]

    def run(self, steps: int) -> dict:
        """Steps as the training loop does: the next batch is laid out while the devices work."""
        waited, first = 0.0, self.number
        start, used = time.perf_counter(), time.process_time()
        with jax.set_mesh(self.parts.mesh):
            for _ in range(steps):
                self.state, measured = self.step(self.state, self.parts.reference, self.key, self.batch)
                self.number += 1
                planning = time.perf_counter()
                self.batch = self.parts.place(self.number)
                waited += time.perf_counter() - planning
            jax.block_until_ready((self.state, measured))
        seconds, used = time.perf_counter() - start, time.process_time() - used
        planned = [self.parts.inputs.batch(number) for number in range(first, self.number)]
        return {
            "seconds": seconds,
            "processor_seconds": used,
            "planning_seconds": waited,
            "loss": float(measured["loss"][0] / measured["loss"][1]),
            "computed": sum(int(computed_tokens(b)) for b in planned),
            "filled": sum(int(np.sum(b.rows.segments > 0)) for b in planned),
        }

    def describe(self) -> dict:
        """What ran, and what it took."""
        memory = self.step.memory_analysis()
        statistics = jax.devices()[0].memory_stats() or {}
        sizes = ("argument_size_in_bytes", "temp_size_in_bytes", "output_size_in_bytes", "alias_size_in_bytes")
        return {
            "peak_bytes": worker.peak_bytes(),
            "device_peak_bytes": statistics.get("peak_bytes_in_use"),
            "compiled_bytes": {name: getattr(memory, name, None) for name in sizes},
            "compile_seconds": self.compile_seconds,
            "rows": layouts.describe(self.parts.inputs.shape),
            "versions": {"jaxpref": jaxpref.__version__, "jax": jax.__version__},
            "device": jax.devices()[0].device_kind,
            "peak_flops": throughput.peak_flops(jax.devices()[0].device_kind),
        }


def matmul_rate(size: int, dtype: str) -> float:
    """FLOP/s of a large matrix product, the best of several."""
    x = jnp.ones((size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def work(settings) -> None:
    """Takes orders until the input ends."""
    answer = worker.channel()
    run = Run(settings)
    answer({"ready": True})
    for order in worker.orders():
        if "steps" in order:
            answer(run.run(order["steps"]))
        elif "matmul" in order:
            answer({"matmul_rate": matmul_rate(order["matmul"], settings["dtype"])})
        elif "forget_peak" in order:
            worker.forget_peak()
            answer({})
        else:
            answer(run.describe())


if __name__ == "__main__":
    task, path = sys.argv[1:]
    chosen = json.loads(epath.Path(path).read_text())
    if task == "prepare":
        print(json.dumps(prepare(chosen)))
    else:
        work(chosen)
