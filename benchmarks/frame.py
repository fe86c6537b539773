"""One new frame, with the past in a cache against the past computed again: the same picture, in how much less time?

A frame of 64x64 in a window of 16 frames (15 past ones and the new one), 256 tokens a frame, width 128, 4 heads, 4 layers in
the dynamics and 4 in the decoder, 1024 codes, batch 1, one thread, untrained weights. What is timed goes from the action to
the pixels. Cached: every MaskGIT step is a pass over the new frame, one more pass takes the finished frame into the cache,
and the decoder runs over the new frame. Uncached: every MaskGIT step is a pass over 16 frames, and so is the decoding.
The two take turns, round by round; `cached_s` and `uncached_s` are medians in CPU-seconds of the process (on an idle machine
these are seconds), `equal` says that tokens are the same and pixels differ by rounding only.

    python benchmarks/frame.py --rounds 7 --out benchmarks/frame.json
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dreamloom.eval.provenance import publish
from dreamloom.tokenizers.quantizers import VQ
from dreamloom.tokenizers.st_vivit import Tokenizer
from dreamloom.worldmodels.dynamics import Dynamics

WINDOW, TOKENS, CODES, ACTIONS, STEPS = 16, 256, 1024, 6, (25, 8, 2)
SIZE = {"width": 128, "heads": 4, "window": WINDOW}
Frame = Callable[[int], tuple[Tensor, Tensor]]


def arms() -> dict[str, Frame]:
    """Two ways to the tokens and the pixels of the new frame, in a number of steps."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(VQ(SIZE["width"], CODES), patch=4, encoder_depth=1, decoder_depth=4, **SIZE).eval()
    dynamics = Dynamics(CODES, TOKENS, ACTIONS, depth=4, **SIZE).eval()
    past, actions = torch.randint(CODES, (1, WINDOW - 1, TOKENS)), torch.randint(ACTIONS, (1, WINDOW - 1))
    led = dynamics.leading(actions)
    seen, drawn = dynamics.empty_cache(1), tokenizer.decoder.empty_cache(1, TOKENS)
    for t in range(WINDOW - 1):
        seen = dynamics.observe(past[:, t], led[:, t], seen)
        _, drawn = tokenizer.decode_frame(past[:, t : t + 1], drawn)

    def cached(steps: int) -> tuple[Tensor, Tensor]:
        tokens, *_ = dynamics.imagine(led[:, -1], seen, steps=steps, generator=torch.Generator().manual_seed(0))
        return tokens, tokenizer.decode_frame(tokens[:, None], drawn)[0][:, 0]

    def uncached(steps: int) -> tuple[Tensor, Tensor]:
        tokens = dynamics.imagine_uncached(past, actions, steps=steps, generator=torch.Generator().manual_seed(0))
        return tokens, tokenizer.decode(torch.cat([past, tokens[:, None]], 1))[:, -1]

    return {"cached": cached, "uncached": uncached}


def timed(frame: Frame, steps: int) -> float:
    """CPU-seconds of one frame."""
    start = time.process_time()
    frame(steps)
    return time.process_time() - start


def compare(cached: Frame, uncached: Frame, steps: int, rounds: int) -> dict[str, float | bool]:
    """Medians of the two, taking turns, after one frame of each that is compared and not counted."""
    (tokens, frame), (plain_tokens, plain_frame) = cached(steps), uncached(steps)
    equal = torch.equal(tokens, plain_tokens) and torch.allclose(frame, plain_frame, atol=1e-4)
    times = [(timed(cached, steps), timed(uncached, steps)) for _ in tqdm(range(rounds), desc=f"{steps} steps")]
    cached_s, uncached_s = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "cached_s": round(cached_s, 4),
        "uncached_s": round(uncached_s, 4),
        "speedup": round(uncached_s / cached_s, 2),
        "equal": equal,
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="keep the JSON here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    frames = arms()
    report = {
        "benchmark": "frame",
        "unit": "CPU-seconds",
        "rounds": args.rounds,
        "steps": {str(steps): compare(frames["cached"], frames["uncached"], steps, args.rounds) for steps in STEPS},
    }
    publish(report, args.out, torch.device("cpu"))


if __name__ == "__main__":
    main()
