"""The model card of a bundle: what it is, how to play it, and the table that was measured."""

from typing import Any

# Key in metrics.json (dots descend) -> what to call it, and how to print it.
ROWS = {
    "tokenizer.psnr": ("tokenizer PSNR", "{:.2f} dB"),
    "tokenizer.code_usage": ("codes in use", "{:.1%}"),
    "rollout.psnr.1": ("rollout PSNR, 1 frame ahead", "{:.2f} dB"),
    "copy_last.psnr.1": ("last frame repeated, 1 frame ahead", "{:.2f} dB"),
    "rollout.psnr_pooled.1": ("rollout PSNR pooled over pixels, 1 frame ahead", "{:.2f} dB"),
    "copy_last.psnr_pooled.1": ("last frame repeated, pooled, 1 frame ahead", "{:.2f} dB"),
    "rollout.psnr.4": ("rollout PSNR, 4 frames ahead", "{:.2f} dB"),
    "copy_last.psnr.4": ("last frame repeated, 4 frames ahead", "{:.2f} dB"),
    "rollout.psnr_pooled.4": ("rollout PSNR pooled over pixels, 4 frames ahead", "{:.2f} dB"),
    "copy_last.psnr_pooled.4": ("last frame repeated, pooled, 4 frames ahead", "{:.2f} dB"),
    "rollout.psnr.16": ("rollout PSNR, 16 frames ahead", "{:.2f} dB"),
    "copy_last.psnr.16": ("last frame repeated, 16 frames ahead", "{:.2f} dB"),
    "rollout.psnr_pooled.16": ("rollout PSNR pooled over pixels, 16 frames ahead", "{:.2f} dB"),
    "copy_last.psnr_pooled.16": ("last frame repeated, pooled, 16 frames ahead", "{:.2f} dB"),
    "delta4_psnr.mean": ("controllability, delta 4 PSNR", "{:.2f} dB"),
    "delta4_psnr.low": ("its 95% interval, from", "{:.2f} dB"),
    "delta4_psnr.high": ("to", "{:.2f} dB"),
    "latent_actions.usage_entropy": ("latent-action usage entropy (1 is equal use)", "{:.2f}"),
    "latent_actions.nmi": ("mutual information with true actions, normalised", "{:.3f}"),
    "action_swap.accuracy": ("actions recognised by an inverse model", "{:.1%}"),
    "steady.frames.median": ("frames that a rollout stays near real frames, median", "{:.0f}"),
    "steady.blank.mean": ("blank frames of long rollouts", "{:.1%}"),
    "steady.stuck.mean": ("stuck steps of long rollouts", "{:.1%}"),
    "latency_ms.p50": ("time a frame, median", "{:.0f} ms"),
    "latency_ms.p95": ("time a frame, 95th percentile", "{:.0f} ms"),
}


def card(world: Any, metrics: dict[str, Any] | None, notes: str) -> str:
    """Markdown text.

    Args:
        world: what the card describes.
        metrics: of `dreamloom eval world`, or None where it was not evaluated.
        notes: the author's own text: data, recipe, cost, limits.
    """
    c, h, w = world.frame_shape
    about = (
        f"A playable world model of {c}x{h}x{w} frames with {world.action_space.n} actions: {', '.join(world.action_names)}."
    )
    parts = [f"# {world.name}", about, f"Play it: `dreamloom play FOLDER`. {_size(world)}", notes.strip(), _table(metrics)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _size(world: Any) -> str:
    millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in world.named_children()}
    levels = ", ".join(getattr(world, "train_levels", []))
    trained = f" Trained on levels {levels} (the end excluded)." if levels else ""
    return "Parameters: " + ", ".join(f"{name} {count:.2f} M" for name, count in millions.items()) + "." + trained


def _table(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "Not evaluated yet: `dreamloom eval world FOLDER --data HELD_OUT.hdf5 --out DIR`."
    found = {key: _at(metrics, key) for key in ROWS}
    lines = [f"| {ROWS[key][0]} | {ROWS[key][1].format(value)} |" for key, value in found.items() if value is not None]
    return "\n".join(["Measured by `dreamloom eval world` (`metrics.json`):", "", "| measure | value |", "|-|-|", *lines])


def _at(metrics: dict[str, Any], key: str) -> float | None:
    value: Any = metrics
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None
