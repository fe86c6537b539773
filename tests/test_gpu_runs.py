"""Every recipe, world, agent and study runs on a GPU: a few real steps each, at the recipe's own size; skipped elsewhere."""

import copy
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conformance import CASES, actions_of, prompt_of, rolled, tensors
from some_rows import rows
from torch import Tensor

from dreamloom import cli
from dreamloom.agents.buffer import Buffer
from dreamloom.agents.td3_bc import TD3BC
from dreamloom.agents.training import train
from dreamloom.datasets.augment import (
    Augment,
    Augmentation,
    ColourCutout,
    ColourJitter,
    Crop,
    Greyscale,
    Overlay,
    RandomConvolution,
)
from dreamloom.datasets.convert import save_dataset
from dreamloom.datasets.procgen import ACTION_NAMES
from dreamloom.datasets.transitions import load_transitions
from dreamloom.diffusion.upsampler import Upsampler
from dreamloom.eval.study import measure, read_study
from dreamloom.eval.study_pixels import measure_pixels
from dreamloom.nn.parts import checkpoint_at
from dreamloom.recipes import recipe_paths
from dreamloom.tokenizers.quantizers import FSQ
from dreamloom.tokenizers.st_vivit import Tokenizer
from dreamloom.train.graphed import GraphedLoss
from dreamloom.train.optimizers import MuonAdamW
from dreamloom.worldmodels.bundle import load_world
from dreamloom.worldmodels.dynamics import Dynamics
from dreamloom.worldmodels.imagined import ImaginedVectorEnv

pytestmark = pytest.mark.gpu

FIT = ["--trainer.max_steps=2", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
CLIPS = [*FIT, "--data.batch_size=4", "--data.val_batches=1", "--data.residence=auto"]
GRAPHS = "--model.graphs=true"
VECTORS = [*FIT, "--model.updates_per_step=3", "--data.batch_size=16"]


def fit(recipe: str, data: object, *more: str) -> str:
    """Two real steps of a recipe on the GPU; the folder of its run."""
    assert cli.main(["fit", "-c", str(recipe_paths()[f"recipes/{recipe}.yaml"]), f"--data.path={data}", *more]) == 0
    weights = torch.load(checkpoint_at(f"runs/{recipe}"), weights_only=True)["state_dict"]
    floats = [x for x in weights.values() if isinstance(x, Tensor) and x.is_floating_point()]
    assert floats[0].is_cuda
    assert all(x.isfinite().all() for x in floats)
    return f"runs/{recipe}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny game of 64 x 64 frames and rows of vectors, where all runs of this file are kept."""
    folder = tmp_path_factory.mktemp("gpu")
    write_game(folder / "game.hdf5")
    save_dataset(rows(400, o=11, a=3), folder / "rows.hdf5")
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def write_game(path: Path, levels: int = 10, length: int = 40) -> None:
    """Noise under 15 actions; every episode is a level, and its last row earns something and ends it."""
    random, count = np.random.default_rng(0), levels * length
    ends = np.arange(1, count + 1) % length == 0
    with h5py.File(path, "w") as file:
        file["observations"] = random.integers(0, 256, (count, 64, 64, 3), np.uint8)
        file["actions"], file["rewards"] = random.integers(15, size=count), 10 * ends.astype(np.float32)
        file["terminals"], file["timeouts"] = ends, np.zeros(count, bool)
        file["infos/level_seed"] = np.repeat(np.arange(levels, dtype=np.int32), length)
        file.attrs.update(format="dreamloom", format_version=1, fps=15.0, game="coinrun")
        file.attrs["action_names"] = json.dumps(ACTION_NAMES)


@pytest.fixture(scope="module")
def world(folder: Path) -> str:
    """A bundle of a diffusion world with heads, both of which have made two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        diffusion = fit("coinrun/diffusion_world", "game.hdf5", *CLIPS, GRAPHS)
        heads = fit("coinrun/outcomes", "game.hdf5", *CLIPS, "--data.val_batches=2")
        words = ["--data", "game.hdf5", "--stride", "2", "--outcomes", heads, "--prompts", "4", "--out", "world"]
        assert cli.main(["bundle", diffusion, *words]) == 0
    return "world"


@pytest.fixture(scope="module")
def learner(folder: Path) -> str:
    """A learner from pixels that has made six updates, by the augmentations of a bandit, and with DrAC's regulariser."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        bandit = ["--data.augment", str(recipe_paths()["recipes/pixels/augment/ucb_drac.yaml"]), "--data.augment.every=2"]
        bandit += ["--data.levels=0:7", "--data.judge=7:10", "--model.model.init_args.vision.init_args.drac=0.1"]
        return fit("pixels/coinrun/cql", "game.hdf5", *VECTORS, *bandit)


def test_worlds_of_tokens_train_on_a_gpu(here: Path) -> None:
    warmup = "--model.model.init_args.quantizer.init_args.warmup=1"  # the second step finds its codebook by k-means
    tokenizer, actions = (
        fit("coinrun/tokenizer", "game.hdf5", *CLIPS, GRAPHS),
        fit("coinrun/latent_actions", "game.hdf5", *CLIPS, warmup),
    )
    fit("coinrun/dynamics", "game.hdf5", *CLIPS, GRAPHS, f"--model.tokenizer={tokenizer}", f"--model.latent_actions={actions}")


def test_graphs_compute_the_loss_that_plain_calls_compute() -> None:
    torch.manual_seed(0)
    small = {"size": 8, "patch": 4, "width": 16, "heads": 2, "encoder_depth": 1, "decoder_depth": 1}
    plain = Tokenizer(FSQ(16, [5, 5]), **small).cuda()
    model = copy.deepcopy(plain)  # a model that took plain backward passes before cannot be recorded
    graphed = GraphedLoss(model)
    for _ in range(3):
        frames, found = torch.rand(2, 3, 3, 8, 8, device="cuda"), []
        for compute, weights in ((plain.loss, plain), (graphed, model)):
            weights.zero_grad()
            loss, metrics = compute(frames)
            loss.backward()
            found.append([loss.detach(), metrics["psnr"], *(parameter.grad.clone() for parameter in weights.parameters())])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-3)
        with torch.no_grad():
            for one, other in zip(plain.parameters(), model.parameters(), strict=True):
                one.add_(0.01 * torch.randn_like(one))
                other.copy_(one)  # a graph reads the weights of now


def test_graphs_draw_anew_in_each_step() -> None:
    torch.manual_seed(0)
    graphed = GraphedLoss(Dynamics(9, 4, 3, width=16, depth=1, heads=2).cuda())
    tokens, actions = torch.randint(9, (4, 5, 4), device="cuda"), torch.randint(3, (4, 4), device="cuda")
    losses = []
    for seed in (0, 1, 2, 1):
        torch.manual_seed(seed)
        losses.append(float(graphed(tokens, actions, part=(0, 1))[0]))
    assert losses[1] == losses[3]
    assert len(set(losses)) == 3


def test_worlds_of_latents_train_on_a_gpu_and_go_on(here: Path) -> None:
    autoencoder = fit("coinrun/autoencoder", "game.hdf5", *CLIPS, GRAPHS)
    words = ["coinrun/forcing", "game.hdf5", *CLIPS, GRAPHS, f"--model.autoencoder={autoencoder}"]
    fit(*words)
    fit(*words, "--trainer.max_steps=4", "--ckpt_path=last")
    assert load_world("runs/coinrun/forcing").train_wall_s > 0


def test_an_upsampler_trains_and_generates_on_a_gpu(here: Path) -> None:
    run = fit("replay/transitions", "rows.hdf5", *FIT, "--data.batch_size=32", "--data.val_batches=1")
    assert cli.main(["synthesize", run, "--n", "300", "--steps", "3", "--shard-rows", "200", "--out", "synthetic"]) == 0
    assert len(load_transitions("synthetic")) == 300
    made = Upsampler(width=32, depth=1, condition="return_to_go", precision="bfloat16").cuda()
    made.fit(rows(100), steps=12, progress=False)
    assert np.isfinite(made.sample(50, condition=(0.9, 1.0)).observations).all()


def test_muon_steps_on_a_gpu_as_on_a_cpu() -> None:
    def stepped(device: str) -> Tensor:
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape).to(device)) for shape in ((16, 32), (32, 16), (16, 32), (16,))]
        optimizer = MuonAdamW(params, lr=0.1)
        for _ in range(3):
            for param in params:
                param.grad = torch.randn(param.shape).to(device)
            optimizer.step()
        return torch.cat([param.detach().cpu().flatten() for param in params])

    torch.testing.assert_close(stepped("cuda"), stepped("cpu"), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("recipe", ["bc", "td3_bc", "iql", "cql", "edac"])
def test_agents_of_vectors_train_on_a_gpu(recipe: str, here: Path) -> None:
    fit(f"agents/{recipe}", "rows.hdf5", *VECTORS)


@pytest.mark.parametrize("recipe", ["bc", "iql", "bcq", "decision_transformer"])
def test_agents_from_pixels_train_on_a_gpu(recipe: str, here: Path) -> None:
    augment = ["--data.augment", str(recipe_paths()["recipes/pixels/augment/colour.yaml"])]
    fit(f"pixels/coinrun/{recipe}", "game.hdf5", *VECTORS, *augment)


def test_heads_train_on_latents_on_a_gpu(learner: str, here: Path) -> None:
    assert cli.main(["encode", learner, "--data", "game.hdf5", "--out", "z.hdf5"]) == 0
    fit("pixels/coinrun/cql_head", "[z.hdf5, z.hdf5]", *VECTORS, f"--model.learner={learner}")


def test_plain_training_loops_run_on_a_gpu() -> None:
    agent = TD3BC(seeds=2, width=16)
    agent.prepare(rows(200))
    metrics = train(agent.cuda(), Buffer([rows(200)], device="cuda"), updates=4, batch_size=8, progress=False)
    assert all(value.is_cuda and value.isfinite().all() for value in metrics.values())


@pytest.mark.parametrize("augmentation", [Crop(), ColourJitter(), ColourCutout(), RandomConvolution(), Greyscale(), Overlay()])
def test_augmentations_on_a_gpu_are_those_of_the_cpu(augmentation: Augmentation) -> None:
    frames = torch.rand(4, 6, 64, 64)
    drawn = augmentation.draw(4, torch.Generator().manual_seed(0), device="cpu", size=(64, 64))
    on_gpu = augmentation.draw(4, torch.Generator().manual_seed(0), device="cuda", size=(64, 64))
    changed = augmentation(frames.cuda(), on_gpu).cpu()
    torch.testing.assert_close(changed, augmentation(frames, drawn), atol=5e-3, rtol=5e-3)
    plan = Augment([augmentation]).draw(4, torch.Generator("cuda").manual_seed(0), device="cuda", size=(64, 64))
    assert Augment([augmentation])((frames * 255).byte().cuda(), plan).is_cuda


@pytest.mark.parametrize("case", [name for name in CASES if "hand-written" not in name])
def test_a_world_plays_on_a_gpu_what_it_plays_on_a_cpu(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # rounds convolutions to three digits
    on_cpu, on_gpu = CASES[case].build(), CASES[case].build().cuda()
    prompt, actions = prompt_of(on_cpu, 3), actions_of(on_cpu, 3, 5)
    state, shown = rolled(on_gpu, on_gpu.reset(prompt), actions)
    assert all(x.is_cuda for x in tensors(state).values())
    same = (rolled(on_cpu, on_cpu.reset(prompt), actions)[1].int() - shown.cpu().int()).abs() <= 4
    assert same.float().mean() > 0.9  # a draw near the edge of two codes may fall to the other side


def test_an_imagined_environment_steps_on_the_gpu(world: str, here: Path) -> None:
    env = ImaginedVectorEnv(4, world=world, starts="game.hdf5", horizon=3)
    assert env.world.device.type == "cuda"
    frames, _ = env.reset(seed=0)
    for _ in range(5):
        frames, rewards, *_ = env.step(env.action_space.sample())
    assert (frames.shape, rewards.shape) == ((4, 64, 64, 3), (4,))


@pytest.mark.parametrize("policy", ["random", "data", "learner"])
def test_a_world_generates_on_the_gpu(policy: str, world: str, learner: str, here: Path) -> None:
    acts = learner if policy == "learner" else policy
    words = ["--policy", acts, "--starts", "game.hdf5", "--n", "60", "--horizon", "4", "--out", f"imagined_{policy}"]
    assert cli.main(["synthesize", world, *words]) == 0
    assert len(load_transitions(f"imagined_{policy}")) > 0


def test_a_world_is_evaluated_on_the_gpu(world: str, here: Path) -> None:
    assert cli.main(["eval", "world", world, "--data", "game.hdf5", "--clips", "4", "--context", "2", "--out", "report"]) == 0
    found = json.loads(Path("report/metrics.json").read_text())
    assert found["machine"]["device"] == torch.cuda.get_device_name()
    assert found["world"]["parameters"] > 0


STUDY = """
learners:
  one:
    class_path: dreamloom.agents.{learner}
arms:
  baseline: {{}}
  more: {{synthetic: 50}}
upsampler: {{class_path: dreamloom.diffusion.upsampler.Upsampler, init_args: {{width: 16, depth: 1}}}}
upsampler_steps: 12
updates: 6
batch_size: 8
episodes: 1
"""
PIXELS = """
environments: {procgen:fruitbot: game.hdf5}
pixels:
  levels: "0:10"
  test: "1000:1100"
  head_updates: 2
  heads: {one: {class_path: dreamloom.agents.cql.DiscreteCQL, init_args: {width: 8}}}
"""
NATURE = """cql.DiscreteCQL
    init_args:
      vision:
        class_path: dreamloom.agents.vision.Vision
        init_args: {encoder: {class_path: dreamloom.nn.encoders.Nature, init_args: {latent_size: 6}}}"""


@pytest.mark.parametrize("kind", ["vectors", "frames"])
def test_cells_of_studies_are_measured_on_a_gpu(kind: str, here: Path) -> None:
    pytest.importorskip("mujoco" if kind == "vectors" else "procgen")
    learner, rest = ("td3_bc.TD3BC", "environments: {Hopper-v5: rows.hdf5}\n") if kind == "vectors" else (NATURE, PIXELS)
    Path("study.yaml").write_text(STUDY.format(learner=learner) + rest)
    study, out = read_study(["-c", "study.yaml", "--out", kind])
    for cell in study.cells():
        made = (measure if study.pixels is None else measure_pixels)(study, out, *cell)
        assert np.isfinite(made["returns"]).all()
