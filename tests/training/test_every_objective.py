"""Every registered objective, from rows of a file to an update: a small step lowers its loss."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import configuration, models, objectives
from jaxpref.objectives import registry
from jaxpref.objectives.inputs import OTHERS
from jaxpref.training import assembly, mesh, precompute, starting

pytestmark = pytest.mark.slow

ANSWERS = [" red", " a blue door", " green!", " yellow and old", " black", " white as snow"]
NUMBERS = {
    "margin": [0.1, 0.5, 0.2], "tie": [False, True, False], "user_id": [0, 0, 0],
    "preference_strength": [0.9, 0.6, 0.8],
    "chosen_score": [2.0, 1.5, 0.5], "rejected_score": [1.0, -1.0, 0.0], "chosen_win_prob": [0.8, 0.9, 0.7],
    "rejected_win_prob": [0.3, 0.1, 0.2], "prob_desirable": [0.7, 0.4, 0.6],
    "degree": [0, 3, 1],
    "prefers": [[1, 1], [1, -1], [-1, 1]], "prompt_embedding": [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]],
}  # fmt: skip


def rows(method: registry.Method) -> list[dict]:
    """Three rows with all that the method can read, and nothing else."""
    made = []
    for n in range(3):
        first, second = ANSWERS[n], ANSWERS[n + 3]
        fields = {
            "demonstrations": {"completion": first},
            "pairs": {"chosen": first, "rejected": second},
            "unpaired": {"completion": first, "label": n != 1},
            "ranked": {"completions": [first, second, " none"][: 3 - n % 2], "scores": [1.0, 0.25, -1.0][: 3 - n % 2]},
            "graded": {"completion": second},
            "joint": {"chosen_prompt": "Go:", "rejected_prompt": "Stay:", "response": first},
            "crossed": {"hi_prompt": "Go:", "lo_prompt": "Stay:", "chosen": first, "rejected": second},
        }[method.feedback]
        fields |= {"samples": [second, first, " none"][: 1 + n]} if method.sampled else {}
        numbers = {name: values[n] for name, values in NUMBERS.items() if name in method.sides}
        made.append({"prompt": f"Door {n}:", **fields, **numbers})
    return made


def config(name: str, folder):
    method = registry.method(name)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(method)))
    made = configuration.default()
    made.model.name, made.model.overrides = "nano", dict(layers=1, width=16, heads=2, head_dim=8, mlp_width=16)
    made.tokenizer.path = "byte"
    made.data[method.feedback] = dict(kind=method.feedback, path=str(folder / "rows.jsonl"))
    made.objectives.term = objectives.config(name)
    compares = method.needs & models.vocabulary.OF_REFERENCE and not method.reference_free(method.defaults)
    made.reference.kind = "frozen" if compares else "none"
    if OTHERS in method.needs:
        made.reference.others = (str(another(made, folder / "another")),)
    made.optimizer.name, made.optimizer.learning_rate, made.optimizer.clip_norm = "sgd", 1e-3, 0.0
    made.batch.examples, made.train.steps = 3, 1
    return made


def another(made, folder):
    """A folder with a model as the config's, of another seed."""
    sections = configuration.sections(made)
    devices = mesh.make_mesh(sections.mesh)
    with jax.set_mesh(devices):
        model, params = starting.load_model(sections.model, starting.Source("scratch", ""), devices, seed=1)
        models.save_hf(model, params, folder)
    return folder


@pytest.mark.parametrize("name", sorted(registry.METHODS))
def test_a_small_step_lowers_the_loss(name, tmp_path):
    """On the same batch, with the state, the step and the key of before."""
    parts = assembly.assemble(configuration.sections(config(name, tmp_path)), str(tmp_path), report=lambda _: None)
    with jax.set_mesh(parts.mesh):
        parts = precompute.fill_run(parts, [], range(1), lambda _: None)
        step, batch, key = parts.compile_step(), parts.place(0), jax.random.key(0)
        frozen = jax.tree.map(jnp.copy, parts.state.objective)
        moved, before = step(parts.state, parts.reference, key, batch)
        again = moved._replace(step=jnp.zeros_like(moved.step), objective=frozen)
        _, after = step(again, parts.reference, key, batch)
    assert float(before["gradient_norm"][0]) > 1e-4
    assert float(after["loss"][0]) < float(before["loss"][0]) or registry.METHODS[name].surrogate
    assert all(np.isfinite(total / max(count, 1)) for total, count in jax.tree.map(float, after).values())
