"""Tokenizers for the tests of this room."""

import json

import pytest

from jaxpref.data import tokenizers

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CORPUS = [
    "hello world wide web",
    "the world is wide",
    "Human: hello Assistant: the web",
    "lower lowest newer wider",
] * 8


def train_bpe(directory, *, special=("<s>", "</s>", "<|im_start|>", "<|im_end|>"), template=CHATML, **config):
    """A byte-level BPE with many merges, written as a Hugging Face directory."""
    import tokenizers as library

    backend = library.Tokenizer(library.models.BPE())
    backend.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"} | config
    settings |= {"chat_template": template} if template else {}
    (directory / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return directory


@pytest.fixture(scope="session")
def make_bpe(tmp_path_factory):
    """A function that trains a byte-level BPE with special tokens of its own and returns its directory."""
    return lambda **options: train_bpe(tmp_path_factory.mktemp("bpe"), **options)


@pytest.fixture(scope="session")
def bpe(make_bpe):
    return tokenizers.load(make_bpe())


@pytest.fixture(scope="session")
def stories(data_dir):
    return tokenizers.load(data_dir / "stories260k" / "hf")


@pytest.fixture(scope="session")
def transformers():
    """The library, imported before the clock of a test starts: it brings torch along where that is installed."""
    return pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def byte():
    return tokenizers.load("byte")


@pytest.fixture
def write_rows(tmp_path):
    """A function that writes rows (or raw lines) as JSON lines and returns the path."""

    def write(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    return write
