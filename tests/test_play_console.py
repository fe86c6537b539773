"""`dreamloom play` as a process, with a small Genie: it says where it plays, dreams, and ends quietly on Ctrl-C."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from play_world import Client

from dreamloom.play.messages import THUMBNAIL
from dreamloom.tokenizers.quantizers import FSQ
from dreamloom.tokenizers.st_vivit import Tokenizer
from dreamloom.worldmodels.bundle import save_bundle
from dreamloom.worldmodels.dynamics import Dynamics
from dreamloom.worldmodels.genie import Genie


def small_genie() -> Genie:
    torch.manual_seed(0)
    sizes = {"width": 16, "heads": 2, "window": 4}
    quantizer = FSQ(width=16, levels=[8, 5])
    tokenizer = Tokenizer(quantizer, size=16, patch=4, encoder_depth=1, decoder_depth=1, **sizes)
    dynamics = Dynamics(codes=40, tokens=16, actions=3, depth=1, **sizes)
    prompts = torch.randint(0, 256, (2, 3, 3, 16, 16), dtype=torch.uint8)
    return Genie(tokenizer, dynamics, prompts=prompts, name="small", action_names=["left", "right", "stand"], steps=2)


def test_the_command_plays_a_genie_until_ctrl_c(tmp_path: Path) -> None:
    save_bundle(small_genie(), tmp_path / "small")
    command = [sys.executable, "-m", "dreamloom", "play", str(tmp_path / "small"), "--no-open", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"http://(127\.0\.0\.1:\d+)", line)
        assert address, line
        with Client(address[1], patience=120) as player:
            _, first = player.frame()
            assert {player.frame(kind=THUMBNAIL)[0]["index"] for _ in range(3)} == {0, 1, 2}
            player.send(type="hold", action=1, id=1)
            header, second = player.frame(stamp=1)
            assert header["model_ms"] > 0
            assert not np.array_equal(first, second)
            player.socket.send(b"no picture")
            assert "picture" in player.error()
        process.send_signal(signal.SIGINT)
        said, complaints = process.communicate(timeout=300)
        assert (process.returncode, said, complaints) == (0, "", "")
    finally:
        process.kill()
