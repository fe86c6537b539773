"""What a mistyped word was probably meant to be."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A hint to end a message with: the choice that a word nearly is, or nothing where it is near to none.

    Args:
        word: as the user typed it.
        choices: what would have been right.
    """
    near = get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def listed(choices: Iterable[str], most: int = 12) -> str:
    """Choices for a message, of which the first few are named."""
    names = list(choices)
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def explained(message: str, options: Iterable[str] = ()) -> str:
    """What jsonargparse says of a mistyped option, with what would have been right.

    Args:
        message: jsonargparse's.
        options: those of the command line, with their dashes or without.
    """
    wrong = re.search(r"Option '([\w.]+)' is not accepted|unrecognized arguments: (?:--)?([\w.-]+)", message)
    if wrong is None:
        choices = re.search(r"Expected one of \[(.*?)\]. Got value: (\S+)", message)
        return message + (did_you_mean(choices[2], re.findall(r"'(.*?)'", choices[1])) if choices else "")
    word, before, after = wrong[1] or wrong[2], message[: wrong.start()], message[wrong.end() :]
    classes = [
        *re.findall(r"class_path '([\w.]+)'", before),
        *re.findall(r"Got value: Namespace\(class_path='([\w.]+)'", after),
    ]
    if not classes:
        return message + did_you_mean(f"--{word}", [f"--{option.lstrip('-')}" for option in options])
    taken, first = parameters_of(classes[-1]), word.partition(".")[0]
    return f"{classes[-1]} takes no {first!r}{did_you_mean(first, taken)}; it takes {listed(taken)}"


def parameters_of(class_path: str) -> list[str]:
    """Names of a class's parameters, those that it hands on to its base included."""
    from jsonargparse import ArgumentParser

    module, _, name = class_path.rpartition(".")
    return ArgumentParser(exit_on_error=False).add_class_arguments(getattr(import_module(module), name))
