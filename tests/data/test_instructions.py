"""Instructions that a rule can check, by responses that follow them and responses that do not."""

import pytest

from jaxpref.data.transforms import instruction, instructions
from jaxpref.errors import ConfigError

EXAMPLES = {
    "lower_case": ("tea for 2, please", "Tea"),
    "upper_case": ("TEA FOR 2!", "Tea"),
    "no_comma": ("tea and milk", "tea, milk"),
    "no_digit": ("two cups", "2 cups"),
    "no_question_mark": ("Tea.", "Tea?"),
    "no_exclamation_mark": ("Tea?", "Tea!"),
    "one_line": (" Tea and milk.\n", "Tea\nMilk"),
    "quoted": (' "Tea and milk."\n', '"Tea" and "milk"'),
    "at_most_words:2": ("hot  tea", "very hot tea"),
    "at_least_words:3": ("very\nhot tea", "hot tea"),
    "contains:tea": ("Green TEA!", "teapot"),
    "lacks:green tea": ("a green pot of tea", "Green tea."),
    "begins_with:Tea": (" Tea, please", "A tea"),
    "ends_with:please.": ("Tea, please. ", "Please."),
    "bullet_points:2": ("Drinks:\n- tea\n\n- milk", "- tea\n-milk"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_response_follows_or_does_not(name):
    one = instruction(name)
    assert [one.check(response) for response in EXAMPLES[name]] == [True, False]
    assert name.partition(":")[2] in one.text


def test_every_instruction_has_an_example_and_the_default_ones_are_different():
    assert {name.partition(":")[0] for name in EXAMPLES} == {*instructions.PLAIN, *instructions.WITH_ARGUMENT}
    assert len({one.text for one in instructions.load(instructions.DEFAULT)}) == len(instructions.DEFAULT)


def test_an_instruction_of_several_words_and_of_signs():
    assert instruction("contains:C++ code").check("Write c++ code.")
    assert not instruction("contains:a.b").check("a-b")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_comas", "there is no instruction 'no_comas' that a rule can check; did you mean 'no_comma'"),
        ("no_comma:3", "'no_comma:3' has an argument, but no_comma takes none"),
        ("at_most_words", "'at_most_words' needs a whole number as its argument, for example 'at_most_words:3'"),
        ("at_most_words:few", "'at_most_words:few' needs a whole number"),
        ("contains: ", "'contains: ' needs some text"),
    ],
)
def test_wrong_instructions_are_config_errors(name, message):
    with pytest.raises(ConfigError, match=message):
        instruction(name)


@pytest.mark.parametrize("names", ["no_comma", ()])
def test_a_list_of_names_is_expected(names):
    with pytest.raises(ConfigError, match="expected a list of names such as"):
        instructions.load(names)
