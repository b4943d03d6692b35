"""TRL's side of the benchmark: its own trainers and training loop, on the token ids that jaxpref's side trains on.

    python tools/benchmark_trl.py work SETTINGS.json    takes orders (see benchmark_worker)

The trainers are used as they are, except that rows come tokenised (DPO and KTO tokenise text only, so that this step
of theirs is left out) and that a callback waits for orders between steps. Nothing is logged, saved or evaluated.
"""

import json
import os
import sys
import time
from pathlib import Path

import benchmark_worker as worker

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import accelerate  # noqa: E402
import datasets  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402


class FromTokens:
    """Leaves out a trainer's tokenisation."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


class DPOTrainer(FromTokens, trl.DPOTrainer):
    """DPO on token ids."""


class KTOTrainer(FromTokens, trl.KTOTrainer):
    """KTO on token ids, the mismatched completion included."""


TRAINERS = {
    "sft": (trl.SFTTrainer, trl.SFTConfig),
    "dpo": (DPOTrainer, trl.DPOConfig),
    "kto": (KTOTrainer, trl.KTOConfig),
    "reward": (trl.RewardTrainer, trl.RewardConfig),
}


def columns(method: str, row) -> dict:
    """A row under the names of a trainer's columns."""
    prompt, responses = row["prompt"], row["responses"]
    if method == "sft":
        return {"input_ids": prompt + responses[0], "labels": [-100] * len(prompt) + responses[0]}
    if method == "dpo":
        return {"prompt_ids": prompt, "chosen_ids": responses[0], "rejected_ids": responses[1]}
    if method == "kto":
        mismatched = {"KL_completion_ids": responses[1]}
        return {"prompt_ids": prompt, "completion_ids": responses[0], "label": row["label"]} | mismatched
    return {"chosen_ids": prompt + responses[0], "rejected_ids": prompt + responses[1]}


class Obedience(transformers.TrainerCallback):
    """Runs as many steps as an order says, answers, and sleeps until the next one."""

    def __init__(self, answer, settings, counted):
        self.answer, self.settings, self.counted = answer, settings, counted
        self.left, self.steps = 0, 0

    def on_train_begin(self, args, state, control, **_):
        self.wait(control)

    def on_step_end(self, args, state, control, **_):
        self.left -= 1
        if self.left:
            return
        synchronise()
        seconds, used = time.perf_counter() - self.start, time.process_time() - self.used
        self.answer({"seconds": seconds, "processor_seconds": used} | self.counted.taken())
        self.wait(control)

    def wait(self, control) -> None:
        for order in worker.orders():
            if "steps" in order:
                self.left, self.start, self.used = order["steps"], time.perf_counter(), time.process_time()
                return
            if "matmul" in order:
                self.answer({"matmul_rate": matmul_rate(order["matmul"], self.settings["dtype"])})
            elif "forget_peak" in order:
                worker.forget_peak()
                self.answer({})
            else:
                self.answer(describe())
        control.should_training_stop = True


class Counted:
    """A collator that counts the tokens of the batches that pass, padding and all."""

    def __init__(self, collator):
        self.collator, self.computed, self.filled = collator, 0, 0

    def __call__(self, examples):
        batch = self.collator(examples)
        for name in ("input_ids", "KL_input_ids"):
            if name in batch:
                self.computed += batch[name].numel()
                mask = batch.get(name.replace("input_ids", "attention_mask"))
                self.filled += batch[name].numel() if mask is None else int(mask.sum())
        return batch

    def taken(self) -> dict:
        """The counts since the last call. Batches are collated one step ahead."""
        counts = {"computed": self.computed, "filled": self.filled}
        self.computed = self.filled = 0
        return counts


def make_trainer(settings, answer):
    """A trainer with the settings that suit the device, and its callback."""
    method, on_cpu = settings["method"], settings["device"] == "cpu"
    trainer_class, config_class = TRAINERS[method]
    arguments = dict(
        output_dir=str(Path(settings["folder"]) / "trl"),
        per_device_train_batch_size=settings["examples"],
        max_steps=settings["total_steps"],
        max_length=settings["prompt"] + settings["response"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=False,  # the parameters have the dtype of the benchmark; no autocast
        gradient_checkpointing=settings["remat"] != "none",
        train_sampling_strategy="sequential",
        use_cpu=on_cpu,
        dataloader_num_workers=0,
        dataloader_pin_memory=not on_cpu,
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        model_init_kwargs={"dtype": settings["dtype"], "attn_implementation": settings["trl_attention"]},
    )
    if method in ("dpo", "kto"):
        arguments["precompute_ref_log_probs"] = settings["reference"] == "cached"
    if method == "sft":
        arguments |= settings["trl_sft"]
    rows = [columns(method, row) for batch in worker.read_rows(settings["rows"]) for row in batch]
    trainer = trainer_class(
        model=settings["model"],
        args=config_class(**arguments),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(settings["model"]),
    )
    counted = Counted(trainer.data_collator)
    trainer.data_collator = counted
    trainer.add_callback(Obedience(answer, settings, counted))
    return trainer


def describe() -> dict:
    """What ran, and what it took."""
    on_gpu = torch.cuda.is_available()
    libraries = {library.__name__: library.__version__ for library in (trl, torch, transformers, accelerate)}
    return {
        "peak_bytes": worker.peak_bytes(),
        "device_peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "compile_seconds": 0.0,
        "rows": "padded to the longest sequence of each batch",
        "versions": libraries,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
    }


def synchronise() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_rate(size: int, dtype: str) -> float:
    """FLOP/s of a large matrix product, the best of several."""
    x = torch.ones(size, size, dtype=getattr(torch, dtype), device="cuda" if torch.cuda.is_available() else "cpu")
    seconds = []
    for _ in range(6):
        synchronise()
        start = time.perf_counter()
        torch.matmul(x, x)
        synchronise()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


if __name__ == "__main__":
    _, path = sys.argv[1:]
    chosen = json.loads(Path(path).read_text())
    answers = worker.channel()
    if chosen["device"] == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    ready = make_trainer(chosen, answers)
    answers({"ready": True})
    ready.train()
