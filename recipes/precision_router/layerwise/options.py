"""The command lines. Imports no torch, so that ``--help`` answers at once."""

import argparse
from collections.abc import Callable

__all__ = [
    "evaluation_parser",
    "example_parser",
    "quantize_parser",
    "sweep_parser",
    "training_parser",
]

_PATH = "path to the quantized model directory, which quantize.py has made"


def training_parser() -> argparse.ArgumentParser:
    """Of ``train_layerwise_router.py``."""
    parser = argparse.ArgumentParser(
        prog="train_layerwise_router.py",
        description="Train a router per layer that picks how many bits its weights are read with.",
    )
    parser.add_argument("model_path", help=_PATH)
    _add_training(parser, seq_len=512, num_examples=1000, batch_size=4, num_epochs=10)
    parser.add_argument("--save_dir", default="router_checkpoints", help="folder of the results")
    return parser


def example_parser() -> argparse.ArgumentParser:
    """Of ``example_train_router.py``: the same with smaller defaults."""
    parser = argparse.ArgumentParser(
        prog="example_train_router.py",
        description="Train routers on little data, for a first look.",
    )
    parser.add_argument("--model_path", required=True, help=_PATH)
    _add_training(parser, seq_len=256, num_examples=500, batch_size=2, num_epochs=5)
    parser.add_argument(
        "--save_dir", default="example_router_checkpoints", help="folder of the results"
    )
    return parser


def sweep_parser() -> argparse.ArgumentParser:
    """Of ``sweep_router.py``: the same, once per target."""
    parser = argparse.ArgumentParser(
        prog="sweep_router.py",
        description="Train routers for several average precisions; write the frontier.",
    )
    parser.add_argument("model_path", help=_PATH)
    parser.add_argument(
        "--targets",
        type=_positive(float),
        nargs="+",
        default=[3.5, 4.0, 5.0, 6.0],
        metavar="BITS",
        help="average bits to train for, one training each",
    )
    _add_training(parser, seq_len=512, num_examples=1000, batch_size=4, num_epochs=10)
    parser.add_argument("--save_dir", default="router_sweep", help="folder of the results")
    return parser


def evaluation_parser() -> argparse.ArgumentParser:
    """Of ``evaluate_router_vs_quantized.py``."""
    parser = argparse.ArgumentParser(
        prog="evaluate_router_vs_quantized.py",
        description="Routers beside every fixed precision and the best fixed bits per layer.",
    )
    parser.add_argument("model_path", help=_PATH)
    parser.add_argument(
        "--router",
        default="router_checkpoints/best_router_checkpoint.pt",
        help="checkpoint of the routers",
    )
    _add_data(parser, seq_len=512, num_examples=100, batch_size=4)
    _add_machine(parser)
    parser.add_argument(
        "--swaps", type=_count, default=64, help="measurements of the static search's second part"
    )
    parser.add_argument("--save_dir", default="router_readout", help="folder of table and picture")
    return parser


def quantize_parser() -> argparse.ArgumentParser:
    """Of ``quantize.py``."""
    parser = argparse.ArgumentParser(
        prog="quantize.py",
        description="Store a causal language model so that it can be read in any precision.",
    )
    parser.add_argument("model", help="local folder, name on the hub, or tiny-random")
    parser.add_argument("save_dir", help="folder to write")
    parser.add_argument("--precisions", type=int, nargs="+", default=[3, 4, 5, 6, 7, 8])
    parser.add_argument(
        "--group", type=_positive(int), default=64, help="inputs that share a scale"
    )
    parser.add_argument(
        "--teach_steps",
        type=_count,
        default=0,
        help="with tiny-random: train it so many steps on this machine's Python sources first",
    )
    parser.add_argument("--random_state", type=int, default=42)
    parser.add_argument("--trust_remote_code", action="store_true")
    parser.add_argument("--debug", action="store_true", help="a line per layer")
    return parser


def _add_training(
    parser: argparse.ArgumentParser,
    *,
    seq_len: int,
    num_examples: int,
    batch_size: int,
    num_epochs: int,
) -> None:
    _add_data(parser, seq_len=seq_len, num_examples=num_examples, batch_size=batch_size)
    _add_machine(parser)
    add = parser.add_argument
    add("--learning_rate", type=_positive(float), default=1e-4)
    add("--num_epochs", type=_positive(int), default=num_epochs)
    add("--weight_ce", type=_weight, default=0.7, help="weight of the cross-entropy")
    add("--weight_precision", type=_weight, default=0.3, help="weight of the precision loss")
    add("--precision_scale", type=_weight, default=10.0, help="precision loss at the most bits")
    add("--objective", choices=["weighted", "target"], default="weighted")
    add("--target_precision", type=_positive(float), default=4.0, help="bits, for target")
    add("--alpha", type=_weight, default=1.0, help="nats per squared bit off, for target")
    add("--precisions", type=int, nargs="+", help="precisions to choose from (default: all)")
    add(
        "--start_precision",
        type=int,
        help="what new routers choose (default: the highest, or the target)",
    )
    add("--pool", default="prefix:64", help="what a router looks at: prefix:K tokens, or mean")
    add("--mode", choices=["output", "straight_through"], default="output", help="of train_forward")
    add(
        "--neighbours", type=int, choices=[2], help="run the two precisions around the expected one"
    )
    add("--recompute", action="store_true", help="keep no activations of layers: less memory")
    add("--lr_schedule", choices=["constant", "cosine"], default="constant")
    add("--val_examples", type=_count, help="more pieces to validate with (default: a tenth)")
    add("--resume", action="store_true", help="go on after the last checkpoint in --save_dir")


def _add_data(
    parser: argparse.ArgumentParser, *, seq_len: int, num_examples: int, batch_size: int
) -> None:
    add = parser.add_argument
    add("--dataset", default="c4", help="c4, wikitext2, ptb, pileval, or a file or folder of text")
    add("--seq_len", type=_positive(int), default=seq_len, help="tokens per example")
    add("--num_examples", type=_positive(int), default=num_examples)
    add("--batch_size", type=_positive(int), default=batch_size)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    add("--random_state", type=int, default=42, help="seed")
    add("--trust_remote_code", action="store_true", help="run model code of the folder")
    add("--debug", action="store_true", help="a line per batch")


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        number = kind(text)
        if not 0 < number < float("inf"):
            raise argparse.ArgumentTypeError(f"found {text}; it has to be above 0")
        return number

    read.__name__ = kind.__name__  # what argparse calls it in an error
    return read


def _weight(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text}; it has to be 0 or more")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"found {text}; it has to be 0 or more")
    return number
