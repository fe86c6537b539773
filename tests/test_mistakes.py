"""What a new user does wrong: every verb answers with one line that names the mistake and exit code 2, and leaves nothing."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from dreamloom import cli
from dreamloom.tokenizers.quantizers import FSQ
from dreamloom.tokenizers.st_vivit import Tokenizer

TINY = """
trainer: {accelerator: cpu, max_steps: 1, limit_val_batches: 0, enable_progress_bar: false, enable_model_summary: false}
model:
  class_path: dreamloom.train.tasks.TokenizerTask
  init_args:
    model:
      class_path: dreamloom.tokenizers.st_vivit.Tokenizer
      init_args:
        quantizer: {class_path: dreamloom.tokenizers.quantizers.FSQ, init_args: {width: 16, levels: [3, 3]}}
        patch: 16
        width: 16
        heads: 2
        encoder_depth: 1
        decoder_depth: 1
data:
  class_path: dreamloom.train.data.ClipData
  init_args: {path: frames.hdf5, length: 4, batch_size: 2, val_fraction: 0}
"""


def save_rows(path: Path, observations: np.ndarray, **columns: np.ndarray) -> None:
    """A small dataset of two episodes."""
    with h5py.File(path, "w") as file:
        file["observations"] = observations
        file["terminals"] = np.zeros(len(observations), bool)
        file["timeouts"] = np.arange(len(observations)) % 20 == 19
        for name, column in columns.items():
            file[name] = column


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as a user has: a recipe, recordings, a trained tokenizer, and a file where no folder can be."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "recipe.yaml").write_text(TINY)
    (folder / "file").write_text("words")
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("words")
    (folder / "broken.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    labels = {"actions": np.zeros(40, np.int64), "rewards": np.zeros(40, np.float32)}
    save_rows(folder / "frames.hdf5", np.zeros((40, 64, 64, 3), np.uint8), **labels)
    save_rows(folder / "wide.hdf5", np.zeros((40, 84, 96, 3), np.uint8), **labels)
    save_rows(folder / "video.hdf5", np.zeros((40, 64, 64, 3), np.uint8))
    save_rows(folder / "rows.hdf5", np.zeros((40, 3), np.float32), actions=np.zeros((40, 1), np.float32), rewards=np.zeros(40))
    torch.manual_seed(0)
    part = Tokenizer(FSQ(16, [3, 3]), patch=16, width=16, heads=2, encoder_depth=1, decoder_depth=1)
    weights = {f"model.{name}": value for name, value in part.state_dict().items()}
    torch.save({"model_config": part.config, "state_dict": weights, "global_step": 1}, folder / "tokenizer.ckpt")
    return folder


QUICK = "--data.val_fraction 0 --data.length 4 --data.batch_size 2 --trainer.accelerator cpu --trainer.max_steps 1"
MISTAKES = [
    # verbs
    ("pley", "unknown command 'pley' (did you mean 'play'?)"),
    ("nosuchverb --help", "unknown command 'nosuchverb'; there are: collect procgen"),
    ("collect viedo clips --out new.hdf5", "unknown command 'collect viedo' (did you mean 'collect video'?)"),
    ("eval wrold --help", "unknown command 'eval wrold' (did you mean 'eval world'?)"),
    ("--verson", "unknown command '--verson'"),
    # options
    ("data convert frames.hdf5 --to new.npz --lvels 0:3", "--lvels 0:3 (did you mean '--levels'?)"),
    ("collect procgen --game coinrum --steps 4 --out new.hdf5", "Got value: coinrum (did you mean 'coinrun'?)"),
    ("collect procgen --game coinrun --steps many --out new.hdf5", "steps: Expected int"),
    ("collect procgen --game coinrun --steps 4 --levels 9:3 --out new.hdf5", "--levels"),
    ("collect procgen --game coinrun --out new.hdf5", "steps"),
    ("collect gymnasium --env Nope-v0 --steps 4 --out new.hdf5", "Nope"),
    ("collect gymnasium --env CartPole-v1 --steps 0 --out new.hdf5", "--steps 0: must be at least 1"),
    ("collect mujoco --env CartPole-v1 --steps 4 --policy random --out new.hdf5", "actions are Discrete(2)"),
    ("synthesize tokenizer.ckpt --out new", "required"),
    ("synthesize tokenizer.ckpt --n 0 --out new", "--n 0: expected at least 1"),
    ("synthesize tokenizer.ckpt --n 4 --out new --horizon 3", "--horizon: for a world, which needs --policy"),
    ("eval world tokenizer.ckpt --data frames.hdf5 --clips 1 --out new", "--clips must be at least 2"),
    ("eval replay rows.hdf5 --real rows.hdf5 --rows 3 --out new", "--rows 3: must be at least 100"),
    ("eval agent tokenizer.ckpt --env CartPole-v1 --episodes 0 --out new", "--episodes must be at least 1"),
    ("bundle --data frames.hdf5 --out new", "--tokenizer and --dynamics of a Genie"),
    ("play --port many", "port"),
    # recipes
    ("fit", "fit needs a recipe"),
    ("fit -c recipes/coinrun/tokeniser.yaml", "no such recipe (did you mean 'recipes/coinrun/tokenizer.yaml'?)"),
    ("fit -c recipe.yaml --model.model.widht 3", "Tokenizer takes no 'widht' (did you mean 'width'?)"),
    ("fit -c recipe.yaml --model.modle.width 3", "TokenizerTask takes no 'modle' (did you mean 'model'?)"),
    ("fit -c recipe.yaml --model.sede 3", "TokenizerTask takes no 'sede' (did you mean 'seed'?)"),
    ("fit -c recipe.yaml --data.batch_size many", "batch_size"),
    ("fit -c recipe.yaml --ckpt_path nowhere.ckpt", "--ckpt_path nowhere.ckpt: no checkpoint at nowhere.ckpt"),
    ("fit -c recipe.yaml --ckpt_path tokeniser.ckpt", "no checkpoint at tokeniser.ckpt (did you mean 'tokenizer.ckpt'?)"),
    ("eval study -c nowhere.yaml --out new", "-c nowhere.yaml: no such recipe"),
    ("eval study -c recipes/studies/synther_halfcheetah.yaml --udates 3 --out new", "(did you mean '--updates'?)"),
    ("eval imitation -c recipe.yaml --out new", "is not accepted"),
    # files that are not there, or are something else
    ("data nowhere.hdf5", "nowhere.hdf5: no such file"),
    ("data empty", "empty"),
    ("data notes.txt", "notes.txt: not a whole HDF5 file"),
    ("data broken.hdf5", "broken.hdf5: not a whole HDF5 file"),
    ("data mnari:cheetah/synth-v0", "format 'mnari' is not known (did you mean 'minari'?)"),
    ("collect video nowhere --out new.hdf5", "nowhere: no such folder"),
    ("collect video empty --out new.hdf5", "empty"),
    ("encode nowhere --data frames.hdf5 --out new.hdf5", "no checkpoint at nowhere"),
    ("encode tokenizer.ckpt --data frames.hdf5 --out new.hdf5", "here an Agent is needed"),
    ("synthesize tokenizer.ckpt --n 4 --out new", "Tokenizer; here an Upsampler is needed"),
    ("synthesize empty --n 4 --out new", "no checkpoint in empty"),
    ("synthesize notes.txt --n 4 --out new", "notes.txt is not a checkpoint of dreamloom"),
    ("synthesize coinrun --n 4 --out new", "coinrun is a world"),
    ("bundle --tokenizer nowhere --dynamics nowhere --data frames.hdf5 --out new", "no checkpoint at nowhere"),
    ("bundle --tokenizer tokenizer.ckpt --dynamics tokenizer.ckpt --data frames.hdf5 --out new", "here a Dynamics is needed"),
    ("bundle tokenizer.ckpt --data frames.hdf5 --out new", "it holds a part of a world (Tokenizer)"),
    ("eval agent tokenizer.ckpt --env CartPole-v1 --out new", "here an Agent is needed"),
    ("eval world nowhere --data frames.hdf5 --out new", "nowhere"),
    ("eval world coinrum --data frames.hdf5 --out new", "(did you mean 'coinrun'?)"),
    ("eval imagination coinrun --agents nowhere --out new", "nowhere"),
    ("play coinrum --no-open", "(did you mean 'coinrun'?)"),
    ("play tokenizer.ckpt --no-open", "it holds a part of a world (Tokenizer)"),
    ("fit -c recipe.yaml --data.path nowhere.hdf5", "nowhere.hdf5: no such file"),
    ("fit -c recipe.yaml --data.path rows.hdf5", "expected pixels"),
    # frames of another size than the model's
    ("fit -c recipe.yaml --data.path wide.hdf5", "wide.hdf5: frames are 84x96, the Tokenizer takes 64x64"),
    *[
        (
            f"fit -c recipes/coinrun/{name}.yaml --data.path wide.hdf5 {QUICK}",
            f"wide.hdf5: frames are 84x96, the {model} takes 64x64",
        )
        for name, model in {
            "latent_actions": "LatentActions",
            "autoencoder": "Autoencoder",
            "outcomes": "Outcomes",
            "diffusion_world": "NextFrameDenoiser",
        }.items()
    ],
    ("eval world coinrun --data wide.hdf5 --out new", "wide.hdf5: frames are 84x96, the CanvasWorld takes 128x128"),
    # formats and places that cannot be written
    ("data convert frames.hdf5 --to lerobot:new", "format 'lerobot' is not known"),
    ("data convert frames.hdf5 --to new.csv", "new.csv: no known format"),
    ("data convert frames.hdf5 --to d4rl:new", "no known format"),
    ("data convert frames.hdf5 --to rows.hdf5", "rows.hdf5: exists already"),
    ("data convert video.hdf5 --to new.npz", "video.hdf5"),
    ("bundle --tokenizer x --dynamics x --data frames.hdf5 --out empty", "empty exists and is not a world"),
]


def complaint(capsys: pytest.CaptureFixture, line: str) -> str:
    """The one line that the command says on stderr; its exit code is 2."""
    capsys.readouterr()
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dreamloom: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(("line", "said"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line(
    line: str, said: str, desk: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    before = {path.name for path in desk.iterdir()} | {"runs"}  # where `fit` logs until it finds the mistake
    assert said in complaint(capsys, line)
    assert {path.name for path in desk.iterdir()} <= before, "nothing is left behind"


def test_every_verb_has_its_mistakes() -> None:
    assert [verb for verb in cli.VERBS if not any(f"{line} ".startswith(f"{verb} ") for line, _ in MISTAKES)] == ["collect dmc"]


# What would be read is not there: that the place is complained of shows that it is looked at before the work.
PLACES = {
    "collect procgen --game coinrun --steps 4 --out": "file/new.hdf5",
    "collect gymnasium --env CartPole-v1 --steps 4 --out": "file/new.hdf5",
    "collect mujoco --env Pendulum-v1 --steps 4 --policy random --out": "file/new.hdf5",
    "data nowhere.hdf5 --out": "file/new.png",
    "data convert nowhere.hdf5 --to": "file/new.hdf5",
    "encode nowhere --data nowhere --out": "file/new.hdf5",
    "synthesize nowhere --n 4 --out": "file/new",
    "bundle --tokenizer nowhere --dynamics nowhere --data nowhere --out": "file/new",
    "eval world nowhere --data nowhere --out": "file/new",
    "eval replay nowhere --real nowhere --out": "file/new",
    "eval agent nowhere --env nowhere --out": "file",
    "eval imagination nowhere --agents nowhere --out": "file",
    "eval study -c recipes/studies/synther_halfcheetah.yaml --out": "file",
    "eval imitation -c recipes/studies/imitation.yaml --out": "file",
    "fit -c recipe.yaml --data.path nowhere --trainer.default_root_dir": "file",
}


@pytest.mark.parametrize("line", PLACES)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    line: str, desk: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    said = complaint(capsys, f"{line} {PLACES[line]}")
    assert f"{PLACES[line]}" in said
    assert f"cannot be written: {desk / 'file'} is not a folder" in said
