"""Recording Procgen (Cobbe et al. 2020): any of its 16 games, at the speed of the bare environment, to one HDF5 file."""

import contextlib
import io
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from dreamloom import __version__
from dreamloom.datasets.plans import plans_path
from dreamloom.datasets.players import Part, Players
from dreamloom.datasets.procgen_players import choose_players, require_choice
from dreamloom.datasets.recorder import Column, Recorder, page_aligned, split_rows

Game = Literal[
    "bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot",
    "heist", "jumper", "leaper", "maze", "miner", "ninja", "plunder", "starpilot",
]  # fmt: skip
ACTION_NAMES = [
    "left-down", "left", "left-up", "down", "none", "up", "right-down", "right", "right-up",
    "D", "A", "W", "S", "Q", "E",
]  # fmt: skip
FPS = 15.0  # Procgen's own video.frames_per_second
# Steps after which a game stops an episode: game.cpp's default is 1000, and these set their own.
_STEP_LIMITS = {"bigfish": 6000, "bossfight": 4000, "plunder": 4000, "leaper": 500, "maze": 500}
_NATIVE = 64  # side of the frames that Procgen's agents see
_DRAWN = 512  # side of those that it draws for people
_SCALARS = {
    "actions": Column(np.int64),
    "rewards": Column(np.float32),
    "terminals": Column(np.bool_),
    "timeouts": Column(np.bool_),
    "infos/level_seed": Column(np.int32),
    "infos/policy": Column(np.uint8),
}
_CHUNK = 64  # steps that are gathered before they are written: 50 MB of frames for 64 environments


def collect_procgen(
    *,
    game: Game,
    steps: int,
    out: Path,
    levels: str = "0:10000",
    mode: Literal["easy", "hard"] = "easy",
    policy: str = "scripted:0.6,sticky:0.4",
    agent: Path | None = None,
    quality: Literal["expert", "suboptimal", "mixed"] = "expert",
    train_steps: int | None = None,
    network: Literal["impala", "nature"] = "impala",
    device: str = "cpu",
    search_rounds: int | None = None,
    seed: int = 0,
    use_backgrounds: bool = True,
    restrict_themes: bool = False,
    use_monochrome_assets: bool = False,
    center_agent: bool = True,
    paint_vel_info: bool = False,
    size: int = _NATIVE,
    num_envs: int = 64,
    segment: int = 1000,
    num_threads: int = 4,
) -> None:
    """Records real Procgen to one HDF5 file (the layout is docs/data.md).

    A killed recording goes on where it was when the same command is given again, and ends in the same bytes.

    With --policy ppo an agent learns from scratch while it records all that it sees: Stable-Baselines3's PPO with the
    IMPALA network and Procgen's published settings. About 90 steps a second and CPU core, so 500,000 steps take more than an
    hour on one; with --network nature about 600. Procgen's own agents saw 25 million. Ten agents along the way stay in a
    folder beside the file, OUT.agents, and with --agent FOLDER they record as they are.

    With --policy search every level is solved beforehand by search in the simulator, no agent learns, and episodes are what
    was found: the best plan, or one that leaves it and comes back. One core takes 1 to 3 seconds a level. Plans stay in a file
    beside the recording, OUT.plans.jsonl; a level without one is played by the scripted policy.

    Args:
        game: one of the 16 games.
        steps: rows to record.
        out: the file to make.
        levels: level seeds LO:HI, HI excluded; disjoint ranges make training and held-out sets.
        mode: Procgen's distribution mode.
        policy: random, sticky (holds actions), scripted (makes progress), stroll (walks to and fro on platforms),
            search (solves levels), ppo, module:callable, or a weighted list of these;
            each environment of a segment plays one of them. The callable is described in dreamloom/datasets/policies.py.
        agent: for policy ppo, an agent that learns no more: a file of OUT.agents, or that folder.
        quality: which agent of the folder: the one of the highest return, the one nearest to three quarters of it, or all of
            them, each in as many environments.
        train_steps: for policy ppo without agent, steps to learn from; more than are recorded are left out evenly.
        network: for policy ppo without agent: Procgen's own, or DQN's small one, 20 times as fast on a CPU.
        device: where PPO computes.
        search_rounds: for policy search, rounds of 64 tries at the most in each level; 150 unless told.
        seed: fixes everything that is recorded.
        use_backgrounds: pictures behind the level, rather than black.
        restrict_themes: one look for all levels of a game.
        use_monochrome_assets: plain rectangles instead of pictures.
        center_agent: the camera follows the agent, where the game allows that.
        paint_vel_info: draw the velocity into the corner, in the games that can.
        size: side of the recorded frames, pixels: 64 as agents see them, or 128 or 256, shrunk from the 512 that Procgen draws
            for people, at about 260 frames a second and core. Policies see 64 all the same.
        num_envs: environments that are stepped together.
        segment: steps of each environment between two points from which a killed recording can go on.
        num_threads: threads that step the environments; they do not change what is recorded.

    Examples:
        dreamloom collect procgen --game coinrun --steps 1000000 --levels 0:10000 --out data/coinrun.hdf5
        dreamloom collect procgen --game ninja --steps 50000 --policy random --no-use-backgrounds --out data/ninja.hdf5
        dreamloom collect procgen --game coinrun --size 128 --steps 100000 --out data/coinrun128.hdf5
        dreamloom collect procgen --game maze --levels 0:200 --policy search --steps 40000 --out data/maze.hdf5
        dreamloom collect procgen --game coinrun --levels 0:200 --policy ppo --steps 500000 --out data/mixed.hdf5
        dreamloom collect procgen --game coinrun --levels 0:200 --policy ppo --agent data/mixed.agents --steps 100000
            --out data/expert.hdf5

    Raises:
        ValueError: an unknown game, an empty level range, an unknown policy, or `out` exists.
    """
    low, high = parse_levels(levels)
    require_choice("game", game, Game)
    require_choice("mode", mode, Literal["easy", "hard"])
    if size not in (_NATIVE, 128, 256):
        raise ValueError(f"--size {size}: Procgen's frames are recorded at 64, 128 or 256 pixels")
    for name, value in {"steps": steps, "num_envs": num_envs, "segment": segment}.items():
        if value < 1:
            raise ValueError(f"--{name} {value}: must be at least 1")
    options = {
        "env_name": game,
        "start_level": low,
        "num_levels": high - low,
        "distribution_mode": mode,
        "use_backgrounds": use_backgrounds,
        "restrict_themes": restrict_themes,
        "use_monochrome_assets": use_monochrome_assets,
        "center_agent": center_agent,
        "paint_vel_info": paint_vel_info,
        **({} if size == _NATIVE else {"render_mode": "rgb_array"}),
    }
    plan = {"steps": steps, "seed": seed, "num_envs": min(num_envs, max(1, steps // segment)), "segment": segment}
    settings = {"command": "collect procgen", "dreamloom": __version__, "levels": levels, "policy": policy, **plan}
    columns = {"observations": Column(np.uint8, (size, size, 3)), **_SCALARS}
    ppo: dict[str, Any] = {"agent": agent, "quality": quality, "train_steps": train_steps, "network": network}
    search = {"path": plans_path(out), "levels": range(low, high), "options": options, "seed": seed, "threads": num_threads}
    players, told = choose_players(policy, game, plan, device=device, **ppo, search_rounds=search_rounds, search=search)
    attrs = {"game": game, "fps": FPS, "action_names": ACTION_NAMES, "policy_names": players.names}
    bounds = split_rows(steps, -(-steps // (plan["num_envs"] * segment)))
    with (
        Recorder(out, columns, bounds, settings={**settings, **told, "env": options}, attrs=attrs) as recorder,
        tqdm(total=steps, initial=recorder.rows_done, unit=" steps", desc=str(out)) as progress,
    ):
        players.begin(recorder, {"game": game, "levels": levels, "mode": mode, "seed": seed})
        for number in recorder.segments:
            for part in players.parts(recorder, number):
                with contextlib.closing(
                    _Segment(part, players, options, size=size, lanes=plan["num_envs"], threads=num_threads)
                ) as played:
                    played.record(progress)
            players.save(number + 1)  # before the journal knows of this segment
            recorder.commit(number)
    players.finish()


def make_procgen(num: int, **kwargs: Any) -> Any:
    """Makes a vector of Procgen environments (its gym3 interface).

    Raises:
        ValueError: Procgen is not installed.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the old gym that it imports prints a notice
            from procgen import ProcgenGym3Env
    except ImportError as error:
        raise ValueError(f"Procgen is missing ({error}); pip install 'dreamloom[procgen]', Python 3.11 or 3.12") from error
    env = ProcgenGym3Env(num=num, **kwargs)
    # Looked up now, while it is harmless: an environment that the garbage collector closes while another one is made
    # would look it up under the lock that cffi holds just then, and wait for ever.
    _ = env._c_lib.libenv_close
    return env


def parse_levels(levels: str) -> tuple[int, int]:
    """Reads `LO:HI`; HI is excluded.

    Raises:
        ValueError: not two whole numbers with 0 <= LO < HI <= 2^31 - 1.
    """
    low, _, high = levels.partition(":")
    if not (low.isdecimal() and high.isdecimal() and int(low) < int(high) < 2**31):
        raise ValueError(f"--levels {levels!r}: expected LO:HI with 0 <= LO < HI < 2^31, e.g. 0:10000")
    return int(low), int(high)


class _Segment:
    """One segment of a recording: fresh environments, seeded by the recording's seed and the segment's number.

    Lane e, one environment, fills the rows bounds[e]:bounds[e + 1], so that its episodes are contiguous in the file.
    """

    def __init__(self, part: Part, players: Players, options: dict[str, Any], *, size: int, lanes: int, threads: int) -> None:
        self.recorder, self.players = part.recorder, players
        self.bounds = part.rows.start + split_rows(len(part.rows), lanes)
        self.lengths = np.diff(self.bounds)
        self.limit = _STEP_LIMITS.get(options["env_name"], 1000)
        env_seed, policy_seed = part.seed.spawn(2)
        rand_seed = int(env_seed.generate_state(1)[0]) >> 1  # Procgen takes 31 bits
        self.act, chosen = players.start(lanes, int(self.lengths.max()), policy_seed)
        shape = (lanes, int(self.lengths.max()))
        self.rows = {name: np.zeros(shape, column.dtype) for name, column in _SCALARS.items()}
        self.rows["infos/policy"][:] = chosen[:, None]
        self.env, self.size = make_procgen(lanes, rand_seed=rand_seed, num_threads=threads, **options), size

    def close(self) -> None:
        """Closes the environments."""
        self.env.close()

    def record(self, progress: tqdm) -> None:
        """Steps to the segment's end. What comes back from an action (reward, first) belongs to the row before."""
        rows, frames = self.rows, _Frames(self.recorder, self.bounds, self.size) if self.recorder else None
        age = np.zeros(len(self.lengths), np.int64)
        _, observation, first = self.env.observe()
        levels = self._info("level_seed")
        for t in range(self.lengths.max()):
            rows["infos/level_seed"][:, t] = levels
            rows["actions"][:, t] = self.act(observation["rgb"], first)
            shown = self._shown(observation["rgb"]) if frames else observation["rgb"]
            self.env.act(rows["actions"][:, t])
            if frames:
                frames.add(shown)  # a copy of gym3's: it is put away while the environments step
                progress.update(int((self.lengths > t).sum()))
            rows["rewards"][:, t], observation, first = self.env.observe()
            self.players.reward(rows["rewards"][:, t], first)
            age += 1
            if first.any():
                late = first & (age >= self.limit) & (self._info("prev_level_complete") == 0)
                rows["timeouts"][:, t], rows["terminals"][:, t] = late, first & ~late
                levels = self._info("level_seed")
                age[first] = 0
        self.players.end(observation["rgb"], first)
        self.players.tell(progress)
        if frames:
            frames.flush()
            self._write_rows()

    def _shown(self, observed: np.ndarray) -> np.ndarray:
        """The frames to record: those that agents see, or those drawn for people, each pixel the mean of a square of them."""
        if self.size == _NATIVE:
            return observed
        pictures = (Image.fromarray(info["rgb"]) for info in self.env.get_info())
        return np.stack([np.asarray(picture.reduce(_DRAWN // self.size)) for picture in pictures])

    def _info(self, name: str) -> np.ndarray:
        return np.array([info[name] for info in self.env.get_info()])

    def _write_rows(self) -> None:
        """The columns without pixels, once a segment. An episode that the segment cuts is one that timed out."""
        lanes, last = np.arange(len(self.lengths)), self.lengths - 1
        self.rows["timeouts"][lanes, last] |= ~self.rows["terminals"][lanes, last]
        filled = np.arange(self.rows["actions"].shape[1]) < self.lengths[:, None]
        start = int(self.bounds[0])
        assert self.recorder is not None
        self.recorder.write([(name, start, array[filled]) for name, array in self.rows.items()])


class _Frames:
    """Gathers the lanes' frames and hands them to the recorder in turns of two buffers."""

    def __init__(self, recorder: Recorder, bounds: np.ndarray, size: int) -> None:
        self.recorder, self.ends, self.next = recorder, bounds[1:], bounds[:-1].copy()
        shape = (len(self.next), _CHUNK * _NATIVE**2 // size**2, size, size, 3)
        self.buffers = [page_aligned(shape) for _ in range(2)]
        self.written: Future[None] | None = None
        self.count = 0

    def add(self, frames: np.ndarray) -> None:
        self.buffers[0][:, self.count] = frames
        self.count += 1
        if self.count == self.buffers[0].shape[1]:
            self.flush()

    def flush(self) -> None:
        counts = np.minimum(self.count, self.ends - self.next)
        parts = zip(self.next.tolist(), counts.tolist(), self.buffers[0], strict=True)
        blocks = [("observations", row, block[:count]) for row, count, block in parts if count]
        if self.written:
            self.written.result()
        self.written = self.recorder.write(blocks)
        self.next += counts
        self.count = 0
        self.buffers.reverse()
