"""What an adapter has to count: the oracle on an untraced model, asked around its forward."""

from tests.matrix.training import as_lists
from tests.oracle import Oracle
from tests.tiny import batch

LAYERS = ("model.layers.0.mlp", "model.layers.1.mlp")


def watched(model):
    """An oracle that labels every forward of ``model``: ``train`` or ``eval`` by its mode."""
    oracle = Oracle(model, [(layer, f"{layer}.gate") for layer in LAYERS])
    open_labels = []

    # On the inner model: trainers replace the outer one's forward, or call the inner one.
    def begin(inner, args, kwargs):
        label = "train" if inner.training else "eval"
        open_labels.append(oracle.says(label, kwargs.get("attention_mask")))
        open_labels[-1].__enter__()

    def end(inner, args, output):
        open_labels.pop().__exit__(None, None, None)

    model.model.register_forward_pre_hook(begin, with_kwargs=True)
    model.model.register_forward_hook(end, always_call=True)
    return oracle


def found(oracle):
    """What the oracle has counted, per phase and layer, as lists."""
    return as_lists(oracle.counts)


def counted(snapshots, phase):
    """Counts per layer over all windows of a phase, as lists."""
    total = {}
    for snapshot in snapshots:
        for stats in snapshot if snapshot.phase == phase else ():
            total[stats.layer] = total.get(stats.layer, 0) + stats.tokens_per_expert
    return {layer: row.tolist() for layer, row in total.items()}


def spans(snapshots, phase):
    """First and last step of each window of a phase."""
    return [(s.first_step, s.last_step) for s in snapshots if s.phase == phase]


def rows(count):
    """A data set of padded rows."""
    ids, mask = batch(1, rows=count)
    return [
        {"input_ids": i, "attention_mask": m, "labels": i} for i, m in zip(ids, mask, strict=True)
    ]
