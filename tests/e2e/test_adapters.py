"""An adapter through the command line: trained, continued, evaluated, sampled, exported, and built upon."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxpref import cli, models
from tests.e2e import tiny

pytestmark = pytest.mark.slow

CONFIG = tiny.HERE / "configs" / "adapters.py"
TOKENS = np.random.default_rng(0).integers(1, 250, (2, 11)).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the finished pipeline in ``run``."""
    folder = tmp_path_factory.mktemp("adapters")
    tiny.write_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY", str(folder))
        assert cli.main(["train", f"--config={CONFIG}", f"--workdir={folder}/run"]) == 0
        yield folder


@pytest.fixture
def main(capsys):
    """Runs a command line; returns what it prints, or raises with its line of error."""

    def run(*arguments, code=0):
        found = cli.main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        assert found == code, err
        return out if code == 0 else err.splitlines()[-1]

    return run


def parameters(run, step) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint's ``params`` and ``average``."""
    leaves = tiny.checkpoint(run, step)
    return {path[1:]: np.frombuffer(raw, name).reshape(shape) for path, (shape, name, raw) in leaves.items()
            if path.startswith(("/params/", "/average/"))}  # fmt: skip


def logits(place) -> np.ndarray:
    model, params = models.load_hf(place)
    return np.asarray(models.logits(model, params, TOKENS))


def by_transformers(place) -> np.ndarray:
    torch = pytest.importorskip("torch")
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(place)
    with torch.no_grad():
        return model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


def test_a_run_starts_at_its_reference_and_moves_its_adapter_only(folder):
    lines = tiny.read(folder / "run/lora/metrics.jsonl")
    losses = [line["loss/dpo"] for line in lines if "loss/dpo" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and abs(losses[-1] - losses[0]) > 1e-4
    three, five = (parameters(folder / "run/lora", step) for step in (3, 5))
    moved = {path for path in five if not np.array_equal(three[path], five[path])}
    assert moved == {path for path in five if "/adapter/" in path}
    assert not any(path.startswith("average/model") for path in five)
    base = parameters(folder / "run/base", 1)
    assert all(np.array_equal(base[path], five[path]) for path in base if path.startswith("params/model/"))


def test_the_next_run_starts_from_base_and_average_merged(folder):
    """Every kernel of the third stage's frozen base is the second's plus scale times its averaged factors."""
    lora, again = parameters(folder / "run/lora", 5), parameters(folder / "run/again", 3)
    name = "model/layers/mlp/up/kernel"
    a, b = (np.float64(lora[f"average/adapter/layers/mlp/up/{factor}"]) for factor in "ab")
    expected = lora[f"params/{name}"] + 3.0 * np.einsum("ndr,nrf->ndf", a, b)
    np.testing.assert_allclose(again[f"params/{name}"], expected, atol=1e-6)
    assert {path.split("/")[4] for path in again if path.startswith("params/adapter")} == {"query", "value"}


def test_eval_gives_the_numbers_of_the_run(folder, main):
    measured = json.loads(main("eval", f"--workdir={folder}/run/lora"))
    logged = tiny.read(folder / "run/lora/metrics.jsonl")[-1]
    assert measured["heldout/loss/dpo"] != pytest.approx(math.log(2), abs=1e-4)
    for name, value in measured.items():
        assert value == pytest.approx(logged[name], rel=1e-5, abs=1e-6), name


def test_a_prolonged_run_restores_base_and_adapter(folder, main):
    """Its last step is that of the run that was never stopped."""
    for name in ("base", "lora"):
        shutil.copytree(folder / "run" / name, folder / "half" / name)
    shutil.rmtree(folder / "half/lora/checkpoints/5")
    main("train", f"--config={CONFIG}", f"--workdir={folder}/half")
    one, other = (tiny.checkpoint(folder / run / "lora", 5) for run in ("run", "half"))
    assert one == other


def test_an_export_is_what_transformers_computes(folder, main, tmp_path):
    main("convert", f"--from={folder}/run/lora", f"--to_hf={tmp_path}/hf")
    ours = logits(tmp_path / "hf")
    np.testing.assert_allclose(by_transformers(tmp_path / "hf"), ours, atol=1e-5)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Name birch 6"}\n')
    options = ("--temperature=0", "--max_tokens=6", f"--prompts={tmp_path}/prompts.jsonl")
    answers = [main("generate", f"--model={place}", *options) for place in (folder / "run/lora", tmp_path / "hf")]
    assert answers[0] == answers[1]


def test_an_adapter_is_exported_alone_as_peft_names_it(folder, main, tmp_path):
    main("convert", f"--from={folder}/run/lora", f"--to_peft={tmp_path}/peft")
    main("convert", f"--from={folder}/run/lora", f"--to_hf={tmp_path}/merged")
    main("convert", f"--from={folder}/run/base", f"--to_hf={tmp_path}/base")
    described = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert described["r"] == 4 and described["lora_alpha"] == 12.0 and described["peft_type"] == "LORA"
    assert described["target_modules"] == sorted(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))
    factors = safetensors.numpy.load_file(tmp_path / "peft/adapter_model.safetensors")
    weights = safetensors.numpy.load_file(tmp_path / "base/model.safetensors")
    assert len(factors) == 2 * 2 * 7
    for name in list(factors):
        prefix, _, kind = name.rpartition(".lora_")
        if kind == "A.weight":
            module = prefix.removeprefix("base_model.model.") + ".weight"
            weights[module] = weights[module] + 12.0 / 4 * factors[f"{prefix}.lora_B.weight"] @ factors[name]
    safetensors.numpy.save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    np.testing.assert_allclose(logits(tmp_path / "base"), logits(tmp_path / "merged"), atol=1e-5)


def test_a_quantised_base_is_trained_on_continued_and_merged(main, tmp_path, monkeypatch):
    pytest.importorskip("qwix")
    tiny.write_data(tmp_path)
    monkeypatch.setenv("TINY", str(tmp_path))
    command = ("train", f"--config={CONFIG}:nf4", f"--workdir={tmp_path}/run")
    main(*command)
    lora, again = parameters(tmp_path / "run/lora", 5), parameters(tmp_path / "run/again", 3)
    lines = tiny.read(tmp_path / "run/lora/metrics.jsonl")
    assert lines[0]["loss/dpo"] == pytest.approx(math.log(2), abs=1e-6)
    place = "model/layers/mlp/up/kernel"
    assert lora[f"params/{place}/values"].dtype == np.uint8 and f"params/{place}" not in lora
    stored = {name: jnp.asarray(lora[f"params/{place}/{name}"]) for name in ("values", "scale")}
    whole = jax.vmap(lambda one: models.quantization.dequantize(one, jnp.float32))(stored)
    a, b = (np.float64(lora[f"average/adapter/layers/mlp/up/{factor}"]) for factor in "ab")
    expected = whole + 3.0 * np.einsum("ndr,nrf->ndf", a, b)
    np.testing.assert_allclose(again[f"params/{place}"], expected, atol=1e-6)
    shutil.rmtree(tmp_path / "run/lora/checkpoints/5")
    main(*command)
    restored = parameters(tmp_path / "run/lora", 5)
    assert restored.keys() == lora.keys() and all(np.array_equal(restored[path], lora[path]) for path in lora)
    measured = json.loads(main("eval", f"--workdir={tmp_path}/run/lora"))
    logged = tiny.read(tmp_path / "run/lora/metrics.jsonl")[-1]
    assert measured["heldout/loss/dpo"] == pytest.approx(logged["heldout/loss/dpo"], rel=1e-5)
    main("convert", f"--from={tmp_path}/run/lora", f"--to_hf={tmp_path}/hf")
    np.testing.assert_allclose(by_transformers(tmp_path / "hf"), logits(tmp_path / "hf"), atol=1e-5)


def test_what_an_export_would_lose_is_an_error(folder, main, tmp_path):
    error = main("convert", f"--from={folder}/run/base", f"--to_peft={tmp_path}/peft", code=cli.USER_ERROR)
    assert "has no adapter; export its weights with --to_hf" in error
