"""Holds every action of a world for a few seconds and saves what it dreams as a GIF.

uv run python examples/dream.py --world coinrun --out dream.gif
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import dreamloom


def dream(world_name: str, prompt: int, frames: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Names of the actions, and uint8 frames (actions, t, h, w, 3) of holding each of them from one prompt."""
    world = dreamloom.load_world(world_name)
    count = world.action_space.n
    state = world.reset(world.prompts[prompt : prompt + 1].expand(count, -1, -1, -1, -1))
    shown = [state.frame]
    generators = [torch.Generator().manual_seed(seed) for _ in range(count)]
    for _ in range(frames):
        state, outcome = world.step(state, torch.arange(count), generators)
        shown.append(outcome.frame)
    return world.action_names, torch.stack(shown, 1).permute(0, 1, 3, 4, 2).cpu().numpy()


def picture(names: list[str], frames: np.ndarray, columns: int, scale: int) -> Image.Image:
    """One moment of all dreams, each under the name of its action."""
    side, bar = frames.shape[1] * scale, 16
    rows = -(-len(names) // columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + bar + 4)), (13, 17, 23))
    pen = ImageDraw.Draw(sheet)
    for i, (name, frame) in enumerate(zip(names, frames, strict=True)):
        x, y = i % columns * (side + 4) + 2, i // columns * (side + bar + 4)
        pen.text((x + 2, y + 2), name, fill=(201, 209, 217))
        sheet.paste(Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST), (x, y + bar))
    return sheet


def main() -> None:
    """Reads the options and writes the GIF."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="coinrun", help="bundled name, folder or hf://org/name")
    parser.add_argument("--out", type=Path, default=Path("dream.gif"))
    parser.add_argument("--prompt", type=int, default=0, help="which of the world's prompts to start from")
    parser.add_argument("--frames", type=int, default=45)
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--scale", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names, frames = dream(options.world, options.prompt, options.frames, options.seed)
    sheets = [picture(names, frames[:, t], options.columns, options.scale) for t in range(frames.shape[1])]
    sheets[0].save(options.out, save_all=True, append_images=sheets[1:], duration=1000 // 15, loop=0, optimize=True)
    print(f"saved {options.out}: {', '.join(names)}")


if __name__ == "__main__":
    main()
