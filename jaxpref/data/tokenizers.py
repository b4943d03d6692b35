"""Tokenizers: a byte-level one that needs no download, and fast tokenizers read from a Hugging Face directory."""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from etils import epath

from jaxpref.data import sources
from jaxpref.errors import DataError

BYTE_BOS, BYTE_EOS, BYTE_PAD = 256, 257, 258
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to token ids and back, without ever adding special tokens.

    Attributes:
        name: ``'byte'`` or the directory it was read from.
        bos_id: id of the beginning-of-sequence token, or None.
        eos_id: id of the end-of-sequence token.
        vocab_size: largest id plus one.
        special: special tokens by their text.
        digest: changes whenever any text could get other ids.
        chat_template: the Jinja template that came with the tokenizer, or None.
        files: what :meth:`save` writes, by file name.
    """

    name: str
    bos_id: int | None
    eos_id: int
    vocab_size: int
    special: Mapping[str, int]
    digest: str
    chat_template: str | None
    files: Mapping[str, str]
    _encode: Callable[[Sequence[str], bool, bool], list[list[int]]] = dataclasses.field(repr=False)
    _decode: Callable[[list[int], bool], str] = dataclasses.field(repr=False)

    def encode(self, text: str, *, continued: bool = False, markup: bool = True) -> list[int]:
        """Token ids of a text; see :meth:`encode_batch`."""
        return self.encode_batch([text], continued=continued, markup=markup)[0]

    def encode_batch(self, texts: Sequence[str], *, continued: bool = False, markup: bool = True) -> list[list[int]]:
        """Token ids of each text.

        Args:
            texts: what to encode.
            continued: the texts follow other tokens, so that no word-start marker is put before them:
                ``decode(encode(a) + encode(b, continued=True)) == a + b``.
            markup: whether the text of a special token (say ``'</s>'``) stands for that token.
        """
        return self._encode(texts, continued, markup)

    def decode(self, ids: Iterable[int], *, after: Sequence[int] = (), special: bool = False) -> str:
        """Text of token ids that follow the tokens ``after``; special tokens are shown only when ``special``."""
        before = [int(i) for i in after]
        text = self._decode(before + [int(i) for i in ids], special)
        return text[len(self._decode(before, special)) :] if before else text

    def vocabulary(self) -> dict[str, int]:
        """Id of every token, special ones included."""
        import tokenizers

        return tokenizers.Tokenizer.from_str(self.files["tokenizer.json"]).get_vocab(with_added_tokens=True)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the tokenizer into a directory, as ``transformers`` reads it."""
        directory = epath.Path(path)
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in self.files.items():
            (directory / name).write_text(text)


def load(spec: str | os.PathLike = "byte") -> Tokenizer:
    """The built-in byte-level tokenizer (``'byte'``), or the fast tokenizer of a Hugging Face directory.

    Raises:
        DataError: the directory holds no fast tokenizer, or the tokenizer has no end-of-sequence token.
    """
    if str(spec) == "byte":
        return _byte()
    path = sources.expand(spec)
    if not path.is_dir():
        raise DataError(
            f"tokenizer {str(spec)!r} is neither 'byte' nor a directory; give a directory that holds tokenizer.json."
        )
    return _from_files(str(path), _read_files(path))


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises DataError when the tokenizer can produce ids that a model with ``vocab_size`` embeddings lacks."""
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"tokenizer {tokenizer.name!r} has {tokenizer.vocab_size} tokens, but the model's vocabulary holds "
            f"{vocab_size}; "
            "use the model's own tokenizer, or a model whose vocabulary is at least as large."
        )


def _read_files(path: epath.Path) -> dict[str, str]:
    files = {name: (path / name).read_text() for name in FILES if (path / name).exists()}
    if "tokenizer.json" not in files:
        # A SentencePiece or vocabulary-and-merges checkpoint: transformers knows how to convert it.
        from transformers import AutoTokenizer

        try:
            converted = AutoTokenizer.from_pretrained(str(path), use_fast=True, local_files_only=True)
            files["tokenizer.json"] = converted.backend_tokenizer.to_str()
        except Exception as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{path} holds no tokenizer.json, and transformers cannot make one from the rest ({reason[:120]}); "
                "set tokenizer.path to a directory with the tokenizer's files, or to 'byte'."
            ) from error
        special = {
            name: converted.special_tokens_map[name]
            for name in ("bos_token", "eos_token")
            if name in converted.special_tokens_map
        }
        files.setdefault("tokenizer_config.json", json.dumps(special))
    return files


def _from_files(name: str, files: dict[str, str]) -> Tokenizer:
    import tokenizers

    try:
        description = json.loads(files["tokenizer.json"])
        settings = json.loads(files.get("special_tokens_map.json", "{}")) | json.loads(
            files.get("tokenizer_config.json", "{}")
        )
        backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"])
    except Exception as error:  # the tokenizers library raises bare Exception
        raise DataError(
            f"{name}: the tokenizer files cannot be read ({error}); expected those of a Hugging Face fast tokenizer."
        ) from error
    bos, eos = (_special_id(name, backend, settings.get(key), key) for key in ("bos_token", "eos_token"))
    if eos is None:
        raise DataError(
            f"{name}: the tokenizer has no end-of-sequence token, so that a model could never learn to stop; "
            "name one as 'eos_token' in tokenizer_config.json."
        )

    @functools.cache
    def variant(continued: bool, markup: bool) -> tokenizers.Tokenizer:
        made = tokenizers.Tokenizer.from_str(json.dumps(_without_prefix(description) if continued else description))
        made.encode_special_tokens = not markup
        made.no_truncation()
        made.no_padding()
        return made

    def encode(texts, continued, markup):
        return [e.ids for e in variant(continued, markup).encode_batch_fast(list(texts), add_special_tokens=False)]

    template = files.get("chat_template.jinja", settings.get("chat_template"))
    if isinstance(template, list):  # several named templates
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    special = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    digest = hashlib.sha256(json.dumps([description, bos, eos], sort_keys=True).encode()).hexdigest()
    size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    return Tokenizer(
        name, bos, eos, size, special, digest, template, files, encode,
        lambda ids, special: backend.decode(ids, skip_special_tokens=not special),
    )  # fmt: skip


def _special_id(name: str, backend, token: str | Mapping | None, key: str) -> int | None:
    text = token.get("content") if isinstance(token, Mapping) else token
    if text is None:
        return None
    found = backend.token_to_id(text)
    if found is None:
        raise DataError(f"{name}: {key} is {text!r}, which is not in the vocabulary; correct tokenizer_config.json.")
    return found


def _without_prefix(description: dict) -> dict:
    """The same tokenizer for text in mid-sequence: SentencePiece-like ones put a space before every text."""

    def mend(part):
        if isinstance(part, list):
            return [mend(each) for each in part if not (isinstance(each, dict) and each.get("type") == "Prepend")]
        if not isinstance(part, dict):
            return part
        part = {key: mend(value) for key, value in part.items()}
        if part.get("type") == "Metaspace":
            part |= {"prepend_scheme": "never"} | ({"add_prefix_space": False} if "add_prefix_space" in part else {})
        elif part.get("type") in ("ByteLevel", "Roberta", "RobertaProcessing"):
            part["add_prefix_space"] = False
        return None if part.get("type") == "Prepend" else part

    return description | {key: mend(description.get(key)) for key in ("normalizer", "pre_tokenizer")}


@functools.cache
def _byte() -> Tokenizer:
    """Bytes are ids 0-255; 256 begins a sequence, 257 ends it, 258 only pads in other libraries: 259 ids."""
    names = {"<bos>": BYTE_BOS, "<eos>": BYTE_EOS, "<pad>": BYTE_PAD}
    shown = {i: text.encode() for text, i in names.items()}
    pattern = re.compile(f"({'|'.join(names)})")

    def encode(text: str, markup: bool) -> list[int]:
        if not markup or "<" not in text:
            return list(text.encode())
        parts = pattern.split(text)
        return [i for part in parts for i in ([names[part]] if part in names else part.encode())]

    def decode(ids: list[int], special: bool) -> str:
        parts = (bytes([i]) if i < 256 else shown.get(i, b"") if special else b"" for i in ids)
        return b"".join(parts).decode(errors="replace")

    return Tokenizer(
        "byte", BYTE_BOS, BYTE_EOS, 259, names, "byte-259", None, _byte_files(names),
        lambda texts, continued, markup: [encode(text, markup) for text in texts], decode,
    )  # fmt: skip


def _byte_files(names: Mapping[str, int]) -> dict[str, str]:
    """The byte-level tokenizer as Hugging Face files: a byte-level BPE without merges."""
    # GPT-2's table: printable Latin-1 bytes stand for themselves, the others for the characters from 256 on.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printable)
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    begin = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    description = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for text, i in names.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": begin,
            "pair": begin + [{"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [names["<bos>"]], "tokens": ["<bos>"]}},
        },
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {letters[byte]: byte for byte in range(256)} | dict(names), "merges": []},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
    }
    return {"tokenizer.json": json.dumps(description), "tokenizer_config.json": json.dumps(settings)}
