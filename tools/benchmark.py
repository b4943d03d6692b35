"""jaxpref against TRL, side by side: the same model, rows, batch, dtype and hardware, in one run.

    JAXPREF_DATA=../shared/data python tools/benchmark.py --torch-python=/path/to/python --out=runs/benchmark

Each side is a worker process that is warmed up and then steps when it is told to, in turn: jaxpref, TRL, TRL, jaxpref,
... so that noise of the machine hits both. While one side steps the other sleeps. Repeat r of both sides trains on the
same rows in the same order: jaxpref's side writes its token ids down, TRL's trainers read them. ``--torch-python`` is
an interpreter that has ``trl`` (by default this one).

Beside every speed stands its floor: the floating-point operations and bytes that the mathematics needs, each prompt
counted once, no padding and no recomputation, at the rate of a large matrix product measured on both sides. Medians of
repeats; results go to ``OUT/results.json`` and ``OUT/results.md``.

On a GPU (``--device=cuda``) give ``--shape=1.5b`` or ``8b``, ``--dtype=bfloat16``, ``--remat=full`` and
``--trl-attention`` (sdpa, flash_attention_2, ...); the sides are then started one at a time, as neither leaves room.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
sys.path[:0] = [str(TOOLS), str(TOOLS.parent)]
import benchmark_worker as worker  # noqa: E402

SIDES = ("jaxpref", "trl")
METHODS = ("sft", "dpo", "kto", "reward")
LAYOUTS = {"sft": "packed", "dpo": "packed+shared", "kto": "packed+shared", "reward": "packed+shared"}
SHAPES = {
    "nano": ("nano", {}),
    "mini": ("mini", {}),
    "1.5b": ("llama3-1b", dict(width=1536, layers=28, heads=12, key_value_heads=2, head_dim=128, mlp_width=8960)),
    "8b": ("llama3-8b", {}),
}
MATMUL = 1024  # a product of this size on a CPU; eight times as wide on a GPU


def arguments(given=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the results")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has trl")
    parser.add_argument("--data", default="$JAXPREF_DATA/hh_rlhf/helpful*.gz", help="pairs")
    parser.add_argument("--sides", default=",".join(SIDES), help="jaxpref,trl or one of them")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--references", default="live,cached", help="how dpo and kto have their reference")
    parser.add_argument("--shape", default="mini", choices=SHAPES)
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens of the tokenizer, which the rows train")
    parser.add_argument("--examples", type=int, default=8, help="of a batch")
    parser.add_argument("--prompt", type=int, default=256, help="most tokens of a prompt; it keeps its end")
    parser.add_argument("--response", type=int, default=256, help="most tokens of a response; it keeps its start")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="parameters, moments and all"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--remat", default="none", help="of jaxpref; TRL checkpoints gradients unless it is none")
    parser.add_argument("--layout", default="", help="of jaxpref; by default what suits the method")
    parser.add_argument("--jaxpref-attention", default="xla")
    parser.add_argument("--trl-attention", default="sdpa")
    parser.add_argument("--trl-sft", type=json.loads, default={}, help="more fields of SFTConfig, as JSON")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the first repeat")
    parser.add_argument("--steps", type=int, default=8, help="of a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(given)
    options.sides, options.methods = options.sides.split(","), options.methods.split(",")
    return options


class Worker:
    """One side, in a process of its own."""

    def __init__(self, side: str, settings: dict, options):
        folder = Path(settings["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{side}.json"
        self.file.write_text(json.dumps(settings, indent=2))
        self.log = open(folder / f"{side}.log", "a")
        python = sys.executable if side == "jaxpref" else options.torch_python
        command = [python, str(TOOLS / f"benchmark_{side}.py"), "work", str(self.file)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, bufsize=1)
        self.process = subprocess.Popen(command, env=environment(options), **pipes)
        self._answer()

    def ask(self, **order) -> dict:
        """Sends an order and waits for its answer."""
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.file.stem} ended with code {self.process.wait()}; see {self.log.name}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def environment(options) -> dict[str, str]:
    """Variables of the workers: they find the package, and jax takes GPU memory only when it needs it."""
    path = os.pathsep.join(filter(None, [str(TOOLS.parent), os.environ.get("PYTHONPATH")]))
    return os.environ | {
        "PYTHONPATH": path,
        "JAX_PLATFORMS": options.device,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0") if options.device == "cuda" else "",
    }


def settings_of(options, method: str, reference: str) -> dict:
    """What the workers of one comparison are told."""
    folder = Path(options.out).resolve()
    name, overrides = SHAPES[options.shape]
    if name in ("nano", "mini"):
        overrides = {"vocab_size": options.vocabulary}
    fields = "examples prompt response dtype device remat jaxpref_attention trl_attention trl_sft vocabulary".split()
    return {name: getattr(options, name) for name in fields} | {
        "data": os.path.expandvars(options.data),
        "shape": name,
        "overrides": overrides,
        "model": str(folder / "model"),
        "folder": str(folder / f"{method}-{reference}"),
        "method": method,
        "reference": reference,
        "layout": options.layout or LAYOUTS[method],
        "learning_rate": 1e-5,
        "total_steps": options.warmup + options.steps * options.repeats + 1,
        "rows": str(folder / f"{method}-{reference}" / "rows.jsonl"),
    }


def prepare(options) -> dict:
    """The model and tokenizer that both sides load; in a process that leaves the device alone afterwards."""
    settings = settings_of(options, "sft", "none")
    file = Path(settings["model"]).parent / "prepare.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings))
    command = [sys.executable, str(TOOLS / "benchmark_jaxpref.py"), "prepare", str(file)]
    made = subprocess.run(
        command, env=environment(options) | {"JAX_PLATFORMS": "cpu"}, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(made.stdout.splitlines()[-1])


def compare(options, method: str, reference: str) -> dict:
    """One comparison: alternating repeats of all sides on the same rows."""
    settings = settings_of(options, method, reference)
    measured: dict[str, list] = {side: [] for side in options.sides}
    described: dict[str, dict] = {}
    together = options.device == "cpu"
    with contextlib.ExitStack() as open_workers:
        workers = {}

        def start(side):
            done = len(measured[side]) * options.steps if not together else 0
            workers[side] = Worker(side, settings, options)
            open_workers.callback(workers[side].close)
            workers[side].ask(steps=options.warmup + done)
            workers[side].ask(forget_peak=True)

        def finish(side):
            described[side] = workers[side].ask(describe=True)
            described[side] |= workers[side].ask(matmul=MATMUL if together else 8 * MATMUL)
            open_workers.close()

        if together:
            for side in options.sides:
                start(side)
        for repeat in range(options.repeats):
            for side in options.sides if repeat % 2 == 0 else reversed(options.sides):
                if not together:
                    start(side)
                measured[side].append(workers[side].ask(steps=options.steps))
                if not together:
                    finish(side)
        if together:
            for side in options.sides:
                described[side] = workers[side].ask(describe=True)
            for side in options.sides:
                described[side] |= workers[side].ask(matmul=MATMUL)
    return {"settings": settings, "repeats": measured, "described": described}


def needed(architecture: dict, method: str, reference: str, batches, dtype: str) -> dict[str, float]:
    """The floor: FLOPs and bytes that the mathematics of these batches needs.

    A prompt is read once for all its responses; attention is causal within each sequence; the vocabulary is needed at
    the response tokens only (a reward model's not at all). A backward pass costs two forward passes; a live reference
    runs forward; KTO's mismatched responses need no gradient. Parameters are read forward and backward (and by a live
    reference), the gradient is written, and the optimizer reads it, the parameters and two moments and writes three.
    """
    from jaxpref import models
    from jaxpref.training import throughput

    config = models.ModelConfig.from_dict(architecture)
    token = throughput.flops_per_token(config, 0.0, vocabulary=False)
    pair = throughput.flops_per_token(config, 1.0, vocabulary=False) - token
    vocabulary = 0.0 if method == "reward" else throughput.flops_per_token(config, 0.0) - token

    def flops(prompt: int, responses: list[int]) -> float:
        fed = [n - (method != "reward") for n in responses]  # the last token is read by reward heads only
        pairs = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in fed)
        return token * (prompt + sum(fed)) + pair * pairs + vocabulary * sum(responses)

    total, live = 0.0, reference == "live"
    for row in (row for batch in batches for row in batch):
        prompt, responses = len(row["prompt"]), [len(response) for response in row["responses"]]
        trained = responses[:1] if method == "kto" else responses
        total += (3 + live) * flops(prompt, trained)
        if method == "kto":
            total += (1 + live) * (flops(prompt, responses) - flops(prompt, trained))
    itemsize = {"float32": 4, "bfloat16": 2}[dtype]
    return {"flops": total, "parameter_bytes": len(batches) * itemsize * (10 + live)}


def summarise(options, made: dict, found: dict) -> dict:
    """Medians of a comparison, with its floor."""
    settings, seen = found["settings"], found["described"]
    batches = worker.read_rows(settings["rows"])
    timed = [
        batches[options.warmup + r * options.steps : options.warmup + (r + 1) * options.steps]
        for r in range(options.repeats)
    ]
    tokens = [sum(len(e["prompt"]) + len(r) for b in part for e in b for r in e["responses"]) for part in timed]
    examples = options.steps * options.examples
    floors = [
        needed(made["architecture"], settings["method"], settings["reference"], part, settings["dtype"])
        for part in timed
    ]
    peak = max(side["matmul_rate"] for side in seen.values())
    sides = {}
    for side, repeats in found["repeats"].items():
        seconds = [repeat["seconds"] for repeat in repeats]
        known = seen["jaxpref"].get("peak_flops") if "jaxpref" in seen else None
        rates = [floor["flops"] / s for floor, s in zip(floors, seconds, strict=True)]
        sides[side] = seen[side] | {
            "seconds_per_step": statistics.median(s / options.steps for s in seconds),
            "processor_seconds_per_step": statistics.median(r["processor_seconds"] / options.steps for r in repeats),
            "examples_per_second": statistics.median(examples / s for s in seconds),
            "tokens_per_second": statistics.median(n / s for n, s in zip(tokens, seconds, strict=True)),
            "padding_share": 1 - sum(r["filled"] for r in repeats) / sum(r["computed"] for r in repeats),
            "computed_tokens_per_example": sum(r["computed"] for r in repeats) / (examples * options.repeats),
            "share_of_matmul_rate": statistics.median(rates) / peak,
            "mfu": statistics.median(rates) / known if known else None,
            "repeats": repeats,
        }
        if "planning_seconds" in repeats[0]:
            sides[side]["planning_share"] = sum(r["planning_seconds"] for r in repeats) / sum(seconds)
    flops = statistics.median(floor["flops"] for floor in floors) / examples
    summary = {
        "method": settings["method"],
        "reference": settings["reference"],
        "settings": settings,
        "floor": {
            "flops_per_example": flops,
            "parameter_bytes_per_step": made["parameters"] * floors[0]["parameter_bytes"] / options.steps,
            "matmul_rate": peak,
            "examples_per_second": peak / flops,
        },
        "sides": sides,
    }
    if len(sides) == 2:
        ratios = [
            other["seconds"] / ours["seconds"]
            for ours, other in zip(*(found["repeats"][side] for side in SIDES), strict=True)
        ]
        summary["ratio"] = {"median": statistics.median(ratios), "repeats": ratios}
    return summary


HEADER = (
    "| method | reference | side | examples/s | tokens/s | ratio | of matrix product | peak MiB (steps) | padding | "
    "tokens/example | compile s | floor: examples/s, GFLOP/example |\n" + "|---" * 12 + "|\n"
)


def table(summaries: list[dict]) -> str:
    """The results as a Markdown table."""
    lines = [HEADER]
    for found in summaries:
        for side, numbers in found["sides"].items():
            floor, peaks = found["floor"], numbers["peak_bytes"]
            memory = numbers["device_peak_bytes"] or peaks.get("steps", peaks["process"])
            ratio = f"{found['ratio']['median']:.2f}" if "ratio" in found and side == "jaxpref" else ""
            cells = (
                found["method"],
                found["reference"],
                side,
                f"{numbers['examples_per_second']:.2f}",
                f"{numbers['tokens_per_second']:.0f}",
                ratio,
                f"{numbers['share_of_matmul_rate']:.0%}",
                f"{memory / 2**20:.0f}",
                f"{numbers['padding_share']:.0%}",
                f"{numbers['computed_tokens_per_example']:.0f}",
                f"{numbers['compile_seconds']:.1f}",
                f"{floor['examples_per_second']:.1f}, {floor['flops_per_example'] / 1e9:.1f}",
            )
            lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


def main(given=None) -> int:
    """Runs all comparisons; results are written after each."""
    options = arguments(given)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    made = prepare(options)
    machine = {"platform": platform.platform(), "processor": processor(), "cores": os.cpu_count()}
    report = {"options": vars(options), "machine": machine, "load": [os.getloadavg()], "parameters": made["parameters"]}
    summaries: list[dict] = []
    for method in options.methods:
        for reference in options.references.split(",") if method in ("dpo", "kto") else ("none",):
            summaries.append(summarise(options, made, compare(options, method, reference)))
            report["load"].append(os.getloadavg())
            (out / "results.json").write_text(json.dumps(report | {"results": summaries}, indent=1))
            (out / "results.md").write_text(table(summaries))
            print(*table(summaries[-1:]).splitlines()[2:], sep="\n", flush=True)
    return 0


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
