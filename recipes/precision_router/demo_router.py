"""All of it in one go, without a network: a small model, its quantisation, routers, read-out."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import evaluate_router_vs_quantized
import quantize
import train_layerwise_router

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="demo_router.py", description=__doc__)
    parser.add_argument("--work_dir", default="router_demo", help="folder of everything it makes")
    parser.add_argument("--teach_steps", type=int, default=300, help="of the small model")
    parser.add_argument("--num_examples", type=int, default=160)
    parser.add_argument("--num_epochs", type=int, default=5)
    parser.add_argument("--test_examples", type=int, default=48, help="of the read-out")
    parser.add_argument("--swaps", type=int, default=32, help="of the static search")
    options = parser.parse_args(arguments)
    from layerwise.tiny_model import source_text

    folder = Path(options.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    text.write_text(source_text(unseen=True), encoding="utf-8")
    model, trained = str(folder / "model"), str(folder / "routers")
    data = ["--dataset", str(text), "--seq_len", "128", "--batch_size", "8"]
    best = f"{trained}/best_router_checkpoint.pt"
    teaching = ["--teach_steps", str(options.teach_steps)]
    teaching += ["--group", "32", "--precisions", "2", "3", "4", "8"]
    training = ["--num_examples", str(options.num_examples)]
    training += ["--num_epochs", str(options.num_epochs), "--save_dir", trained]
    training += ["--objective", "target", "--target_precision", "2.5", "--learning_rate", "1e-2"]
    reading = ["--num_examples", str(options.test_examples), "--swaps", str(options.swaps)]
    reading += ["--router", best, "--save_dir", str(folder / "readout")]
    steps = [
        (quantize.main, ["tiny-random", model, *teaching]),
        (train_layerwise_router.main, [model, *data, "--pool", "prefix:32", *training]),
        (evaluate_router_vs_quantized.main, [model, *data, *reading]),
    ]
    for program, words in steps:
        if code := program(words):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
