"""The LightningCLI behind `dreamloom fit`: a recipe's keys are the parameters of the task, the data and the trainer."""

import argparse
import inspect
import logging
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import DefaultHelpFormatter
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dreamloom.datasets.atomic import require_folder
from dreamloom.nn.parts import checkpoint_at
from dreamloom.recipes import recipe_paths, with_packaged_recipes
from dreamloom.suggest import explained
from dreamloom.train.checkpoints import AtomicCheckpointIO, FiniteLosses, LastCheckpoint


class _Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of the description."""


class FitCLI(LightningCLI):
    """Adds to LightningCLI: runs/<recipe>/version_N for logs and checkpoints, `--ckpt_path last`, whole files only."""

    def __init__(self, words: list[str]) -> None:
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults={"callbacks": [FiniteLosses()]},
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "prog": "dreamloom fit",
                "usage": "dreamloom fit -c RECIPE [--KEY VALUE ...]",
                "description": inspect.getdoc(fit),
                "formatter_class": _Help,
                "exit_on_error": False,
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=words,
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `--ckpt_path` and `--checkpoint.*`."""
        resume = "checkpoint to resume, or `last`: that of this recipe's newest run"
        parser.add_argument("--ckpt_path", type=str | None, help=resume)
        parser.add_lightning_class_args(LastCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.every_n_train_steps": 500,
                "checkpoint.save_last": True,
                "checkpoint.save_top_k": 0,
                "checkpoint.enable_version_counter": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the words after `dreamloom fit` (Lightning's own warns whenever the process has arguments too)."""
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            raise ValueError(explained(_without_echo(str(error)), [action.dest for action in parser._actions])) from error

    def before_instantiate_classes(self) -> None:
        """Finds the checkpoint to resume and the place of the run before anything is built or read."""
        settings, resumed = self.config.trainer, self.config.ckpt_path
        runs = Path(settings.default_root_dir or "runs", run_name(self.config.config[0]))
        try:
            if resumed is not None:
                self.config.ckpt_path = str(checkpoint_at(runs if resumed == "last" else resumed))
        except ValueError as error:
            raise ValueError(f"--ckpt_path {resumed}: {error}") from error
        if not settings.fast_dev_run:
            require_folder(runs)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that logs to TensorBoard unless told otherwise, in the resumed run's folder if there is one."""
        settings = self.config_init.trainer
        root, name = settings.default_root_dir or "runs", run_name(self.config.config[0])
        if settings.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(root, name=name, version=self._resumed_version(Path(root, name)))
        return super().instantiate_trainer(plugins=[*_listed(settings.plugins), AtomicCheckpointIO()], **kwargs)

    def _resumed_version(self, folder: Path) -> int | None:
        run = Path(self.config.ckpt_path or "").absolute().parent.parent
        number = re.fullmatch(r"version_(\d+)", run.name)
        return int(number[1]) if number and run.parent == folder.absolute() else None


def fit(*arguments: str) -> None:
    """Trains a part of a world, an upsampler of replay or an agent from a recipe.

    A recipe is a YAML file of constructor parameters; every key is an option too (`--trainer.max_steps 100`).
    Logs, config and checkpoints go to runs/<recipe>/version_N.

    Example:
        dreamloom fit -c recipes/coinrun/tokenizer.yaml --data.path data/coinrun.hdf5
        dreamloom fit -c recipes/coinrun/tokenizer.yaml --data.path data/coinrun.hdf5 --ckpt_path last
        dreamloom fit -c recipes/coinrun/tokenizer.yaml --print_config
    """
    quiet_lightning()
    if not any(word.partition("=")[0] in ("-c", "--config", "-h", "--help") for word in arguments):
        raise ValueError(f"fit needs a recipe: dreamloom fit -c RECIPE; recipes at hand: {', '.join(recipe_paths()) or 'none'}")
    try:
        cli = FitCLI(with_packaged_recipes(list(arguments)))
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path)
    except (argparse.ArgumentError, ValueError) as error:
        raise ValueError(_without_echo(str(error))) from error
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    if not cli.config.trainer.fast_dev_run:
        print(f"saved {cli.trainer.log_dir}", file=sys.stderr)


def run_name(recipe: Any) -> str:
    """`recipes/coinrun/tokenizer.yaml` -> `coinrun/tokenizer`; outside a folder `recipes`, the file's stem."""
    path = Path(str(recipe)).absolute().with_suffix("")
    below = path.parts[path.parts.index("recipes") + 1 :] if "recipes" in path.parts else path.parts[-1:]
    return "/".join(below)


def quiet_lightning() -> None:
    """Leaves out what Lightning tells about itself."""
    for chatty in ("pytorch.utilities.rank_zero", "fabric.utilities.seed"):
        logging.getLogger(f"lightning.{chatty}").setLevel(logging.WARNING)
    # Frozen parts are in eval mode on purpose, and how Lightning calls torch is not the user's concern.
    # A checkpoint after the step is what agents, which optimise manually, mean to keep.
    manual = "Using ModelCheckpoint with manual optimization"
    for advice in (r"Found \d+ module\(s\) in eval mode", r"`isinstance\(treespec", manual):
        warnings.filterwarnings("ignore", advice)


def _without_echo(message: str) -> str:
    """Of jsonargparse's message the part that says what is wrong; it also tells why the value is not None, and repeats it."""
    said = re.search(r'(Parser key "\w+":)?.*?Errors:\s+- (.*?)\s+- Expected a <class \'NoneType\'>', message, re.S)
    return " ".join(part for part in said.groups() if part) if said else message


def _listed(plugins: Any) -> list[Any]:
    return plugins if isinstance(plugins, list) else [] if plugins is None else [plugins]
