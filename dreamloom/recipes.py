"""The recipes that come with dreamloom: beside the package in a checkout, else where the wheel puts them."""

import sysconfig
from itertools import pairwise
from pathlib import Path

import dreamloom
from dreamloom.suggest import did_you_mean

RECIPE_ROOTS = (Path(dreamloom.__file__).parent.parent, Path(sysconfig.get_path("data"), "share", "dreamloom"))


def recipe_paths() -> dict[str, Path]:
    """`recipes/coinrun/tokenizer.yaml` -> its file, for every one."""
    root = next((root for root in RECIPE_ROOTS if (root / "recipes").is_dir()), RECIPE_ROOTS[0])
    return {path.relative_to(root).as_posix(): path for path in sorted(root.glob("recipes/**/*.yaml"))}


def with_packaged_recipes(words: list[str]) -> list[str]:
    """Lets a word `recipes/...` of a command line name a recipe that comes with dreamloom, from any folder.

    An existing path comes first.

    Raises:
        ValueError: the recipe that `-c` asks for does not exist.
    """
    packaged = recipe_paths()
    found = [str(packaged[word]) if word in packaged and not Path(word).exists() else word for word in words]
    for option, word in pairwise(found):
        if option in ("-c", "--config") and not Path(word).exists():
            raise ValueError(f"-c {word}: no such recipe{did_you_mean(word, packaged)}")
    return found
