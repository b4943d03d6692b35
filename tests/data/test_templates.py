"""Chat templates: exact masks, one beginning, one end, and a refusal wherever the answer cannot be told exactly."""

import json
import re

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given

from jaxpref.data import load_stream, templates, tokenizers
from jaxpref.errors import ConfigError, DataError

BUILT_IN = ("none", "chatml", "human-assistant")
WORDS = st.text("hello world.\n</s>", min_size=1, max_size=12).filter(str.strip)
LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TOOLS = "{{ bos_token }}{% if tools is not none %}{{ tools | tojson }}{% endif %}" + LLAMA_2.removeprefix(
    "{{ bos_token }}"
)
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
EMPTY_THOUGHT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% generation %}{{ m.content + '<|im_end|>\\n' }}{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def chat(*contents):
    """Turns of user and assistant by turns."""
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


@pytest.fixture
def tokenise(write_rows):
    def run(row, tokenizer, template, kind="demonstrations", **options):
        path = write_rows(row)
        return load_stream({"kind": kind, "path": path, **options}, tokenizer, template=template)[0]

    return run


def trained(example, tokenizer, k=0):
    """Texts of the runs of target tokens."""
    runs, ids, mask = [], example.responses[k], example.masks[k]
    for n, (token, target) in enumerate(zip(ids, mask, strict=True)):
        if target:
            runs = [*runs[:-1], [*runs[-1], token]] if n and mask[n - 1] else [*runs, [token]]
    return [tokenizer.decode(run, special=True) for run in runs]


def whole(example, tokenizer, k=0):
    return tokenizer.decode([*example.prompt, *example.responses[k]], special=True)


@pytest.mark.parametrize(
    "template, text, targets",
    [
        ("none", "<s>HiHello</s>MoreAgain</s>", ["Hello</s>", "Again</s>"]),
        (
            "chatml",
            "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
            "<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\nAgain<|im_end|>",
            ["Hello<|im_end|>", "Again<|im_end|>"],
        ),
        (
            "human-assistant",
            "<s>\n\nHuman: Hi\n\nAssistant: Hello</s>\n\nHuman: More\n\nAssistant: Again</s>",
            [" Hello</s>", " Again</s>"],
        ),
        (
            "tokenizer",
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
            "<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\nAgain<|im_end|>",
            ["Hello<|im_end|>", "Again<|im_end|>"],
        ),
    ],
)
def test_trap_51_every_turn_of_the_assistant_is_trained(template, text, targets, bpe, tokenise):
    example = tokenise({"messages": chat("Hi", "Hello", "More", "Again")}, bpe, template)
    assert whole(example, bpe) == text
    assert trained(example, bpe) == targets
    last = tokenise({"messages": chat("Hi", "Hello", "More", "Again")}, bpe, template, turns="last")
    assert whole(last, bpe) == text
    assert trained(last, bpe) == targets[1:]


def test_untrained_turns_stay_in_the_text(bpe, tokenise):
    turns = chat("Hi", "Hello", "More", "Again", "On", "End")
    turns[3]["weight"] = 0
    for template in templates.NAMES:
        example = tokenise({"messages": turns}, bpe, template)
        assert "Again" in whole(example, bpe)
        assert [text.strip()[:3] for text in trained(example, bpe)] == ["Hel", "End"]


@pytest.mark.parametrize("template", templates.NAMES)
@given(prompt=WORDS, answer=WORDS, history=st.booleans())
def test_trap_36_37_42_one_beginning_and_one_end(template, bpe, prompt, answer, history):
    # built-in chat templates keep special tokens in messages as text; the others take them for what they are
    if template in ("none", "tokenizer"):
        special = re.compile("|".join(re.escape(text) for text in bpe.special))
        prompt, answer = special.sub("", prompt).strip() or "x", special.sub("", answer).strip() or "y"
        assume(not special.search(prompt + answer))
    layout = templates.load(template, bpe)
    before = tuple(templates.Message(m["role"], m["content"]) for m in chat("A", "B", prompt)[0 if history else 2 :])
    spans = layout.response(before, (templates.Message("assistant", answer),))
    (prompt_ids, _, _), (ids, mask, _) = templates.encode(bpe, [(layout.prompt(before), False), (spans, True)])
    row = [bpe.bos_id] * layout.bos + prompt_ids + ids
    assert row.count(bpe.bos_id) <= 1
    assert all(mask)
    assert ids[-1] in layout.stop_ids
    assert not set(ids[:-1]) & set(layout.stop_ids)
    assert bpe.decode(ids[:-1]).strip() == answer.strip()


def test_trap_36_an_end_that_the_text_already_has_is_not_repeated(bpe, tokenise):
    example = tokenise({"prompt": "<s>Hi", "completion": "Hello</s>"}, bpe, "none")
    assert whole(example, bpe) == "<s>HiHello</s>"


def test_trap_42_a_second_beginning_is_refused(bpe, tokenise):
    with pytest.raises(DataError, match="rows.jsonl:1: the text has a second beginning-of-sequence token"):
        tokenise({"prompt": "<s><s>Hi", "completion": "Hello"}, bpe, "none")
    rendered = {"prompt": "Hi<s>", "completion": "Hello"}
    assert list(tokenise(rendered, bpe, "chatml").prompt).count(bpe.bos_id) == 1


@pytest.mark.parametrize("template", templates.NAMES)
def test_trap_34_both_responses_share_the_prompt_and_keep_their_beginning(template, bpe, tokenise):
    row = {"prompt": chat("Hi"), "chosen": "<think>yes</think> good", "rejected": "bad"}
    example = tokenise(row, bpe, template, kind="pairs")
    assert [t.strip() for t in trained(example, bpe, 0)][0].startswith("<think>yes</think> good")
    assert trained(example, bpe, 1)[0].strip().startswith("bad")
    assert all(mask.all() for mask in example.masks)


@pytest.mark.parametrize("template", BUILT_IN)
def test_transcripts_in_every_built_in_template(template, bpe, tokenise):
    prompt = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    row = {"chosen": prompt + " d", "rejected": prompt + " e"}
    example = tokenise(row, bpe, template, kind="pairs")
    expected = {
        "none": "<s>\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d</s>",
        "human-assistant": "<s>\n\nHuman: a\n\nAssistant: b</s>\n\nHuman: c\n\nAssistant: d</s>",
        "chatml": "<s><|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>",
    }
    assert whole(example, bpe) == expected[template]


def test_chatml_without_its_tokens_ends_turns_with_end_of_sequence(byte, tokenise):
    example = tokenise({"messages": chat("Hi", "Hello")}, byte, "chatml")
    assert whole(example, byte) == "<bos><|im_start|>user\nHi<eos>\n<|im_start|>assistant\nHello<eos>"


@pytest.mark.parametrize(
    "source, text, target",
    [
        (LLAMA_2, "<s>[INST] Hi [/INST] Hello </s>", "Hello </s>"),
        (PHI_3, "<|user|>\nHi<|im_end|>\n<|assistant|>\nHello<|im_end|>", "Hello<|im_end|>"),
    ],
)
def test_trap_37_the_last_trained_token_is_the_stop_token_of_the_template(source, text, target, make_bpe, tokenise):
    tokenizer = tokenizers.load(make_bpe(template=source))
    example = tokenise({"messages": chat("Hi", "Hello")}, tokenizer, "tokenizer")
    assert (whole(example, tokenizer), trained(example, tokenizer)) == (text, [target])
    assert example.responses[0][-1] in templates.load("tokenizer", tokenizer).stop_ids


def test_trap_41_an_empty_thought_is_not_trained(make_bpe, tokenise):
    tokenizer = tokenizers.load(make_bpe(template=EMPTY_THOUGHT))
    example = tokenise({"messages": chat("Hi", "Hello")}, tokenizer, "tokenizer")
    assert whole(example, tokenizer).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nHello<|im_end|>")
    assert trained(example, tokenizer) == ["Hello<|im_end|>"]


def test_trap_41_a_template_that_rewrites_earlier_turns_is_refused(make_bpe, tokenise):
    tokenizer = tokenizers.load(make_bpe(template=EMPTY_THOUGHT))
    row = {"messages": chat("Hi", "Hello", "More", "Again")}
    with pytest.raises(DataError, match="rewrites earlier turns.*set turns='last'"):
        tokenise(row, tokenizer, "tokenizer")
    assert trained(tokenise(row, tokenizer, "tokenizer", turns="last"), tokenizer) == ["Again<|im_end|>"]


@pytest.mark.parametrize(
    "source, message",
    [
        (None, "has no chat template; set tokenizer.template to one of none, chatml, human-assistant"),
        ("{% for", "is no valid Jinja"),
        ("{{ raise_exception('roles must alternate') }}", "cannot write this conversation: roles must alternate"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "writes no special token after the answer"),
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}",
            "once it is answered",
        ),
        ("{% for m in messages %}{{ m.content | upper + eos_token }}{% endfor %}", "changes the answer's text"),
    ],
)
def test_templates_without_a_usable_mask_are_refused(source, message, make_bpe, tokenise):
    tokenizer = tokenizers.load(make_bpe(template=source))
    with pytest.raises(DataError, match=message):
        tokenise({"messages": chat("Hi", "Hello")}, tokenizer, "tokenizer")


def test_an_unknown_template_and_an_unknown_role(bpe, tokenise):
    with pytest.raises(ConfigError, match="tokenizer.template is 'chat-ml'; expected one of none, chatml"):
        templates.load("chat-ml", bpe)
    row = {"messages": [{"role": "tool", "content": "4"}, *chat("Hi", "Hello")]}
    with pytest.raises(DataError, match="no turn for the role 'tool'"):
        tokenise(row, bpe, "human-assistant")


def test_rendering_equals_transformers(make_bpe, tokenise, transformers):
    for source in (None, LLAMA_2, TOOLS, PHI_3, EMPTY_THOUGHT):
        directory = make_bpe(**({"template": source} if source else {}))
        theirs, ours = transformers.AutoTokenizer.from_pretrained(str(directory)), tokenizers.load(directory)
        turns = chat("Hi\n", "Hello", "More")
        example = tokenise({"prompt": turns, "completion": "Again"}, ours, "tokenizer")
        options = {"tokenize": True, "return_dict": True}
        prompt = theirs.apply_chat_template(turns, add_generation_prompt=True, **options)["input_ids"]
        assert list(example.prompt) == prompt
        full = theirs.apply_chat_template([*turns, {"role": "assistant", "content": "Again"}], **options)["input_ids"]
        assert full[: len(prompt) + len(example.responses[0])] == [*example.prompt, *example.responses[0]]


def test_the_date_in_a_template_is_the_same_every_day(make_bpe, tokenise):
    source = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    tokenizer = tokenizers.load(make_bpe(template=source))
    example = tokenise({"messages": chat("Hi", "Hello")}, tokenizer, "tokenizer")
    assert whole(example, tokenizer).startswith("26 Jul 2024Hi")


def test_a_template_file_beside_the_tokenizer_is_read(make_bpe):
    directory = make_bpe(template=None)
    (directory / "chat_template.jinja").write_text(LLAMA_2)
    assert tokenizers.load(directory).chat_template == LLAMA_2
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "chat_template.jinja").unlink()
    settings["chat_template"] = [{"name": "tools", "template": "x"}, {"name": "default", "template": "y"}]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    assert tokenizers.load(directory).chat_template == "y"
