"""Hints of the command line: the nearest right word, and what a class takes."""

import pytest

from dreamloom.suggest import did_you_mean, explained, listed, parameters_of


@pytest.mark.parametrize(
    ("word", "hint"),
    [("steps", " (did you mean 'steps'?)"), ("stpes", " (did you mean 'steps'?)"), ("colour", ""), ("", "")],
)
def test_the_nearest_word_is_named(word: str, hint: str) -> None:
    assert did_you_mean(word, ["seed", "steps", "out"]) == hint


def test_long_lists_are_cut() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(map(str, range(20)), most=3) == "0, 1, 2, ... (20 in all)"


def test_a_class_takes_what_its_base_takes() -> None:
    assert parameters_of("dreamloom.train.tasks.TokenizerTask")[:3] == ["model", "optimizer", "warmup_steps"]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("unrecognized arguments: --stpes 3", "unrecognized arguments: --stpes 3 (did you mean '--steps'?)"),
        ("mode: Expected one of ['easy', 'hard']. Got value: hrad", "Got value: hrad (did you mean 'hard'?)"),
        (
            "Parser key \"model\": Problem with given class_path 'dreamloom.tokenizers.quantizers.FSQ': "
            "Option 'levles' is not accepted",
            "dreamloom.tokenizers.quantizers.FSQ takes no 'levles' (did you mean 'levels'?); it takes width, levels",
        ),
        ("something else", "something else"),
    ],
)
def test_a_message_is_explained(message: str, said: str) -> None:
    assert said in explained(message, ["--steps", "--out", "-h"])
