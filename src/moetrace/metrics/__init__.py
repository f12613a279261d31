"""Pure functions of counts and sums: what one window of one layer says, and how layers compare.

```
balance           how evenly the assignments fall on the experts
usage             how many experts are used, dead, hot
ever_used         which experts have had a token since the training began
routing_scores    what the router's own scores say: entropy, confidence, losses
noise_floor       what a perfectly uniform router would show by chance
expected_maximum  the same for MaxVio
chance            what a uniform router shows next to never
change            how far a router moved between two windows
index_usage       how a table of up to millions of experts is used
sub_keys          how its product keys are
index_floor       what a uniform draw from it would show by chance
placement         load of the EP ranks for a given placement of the experts
window            all metrics of one window of one layer, and which are withheld and why
index_window      all metrics of one window of one table of experts
columns           three metrics of all layers at once, for the log
layers            percentiles over layers, and the worst layer by name
summary           the few keys that a tracker shows
```

Nothing here imports torch or knows what a snapshot is. Every entry has a page in `docs/metrics.md`.
"""

from moetrace.metrics.balance import (
    FAR_OUT,
    HEAVY,
    avg_vio,
    load_cv,
    load_gini,
    load_imbalance,
    load_share,
    max_vio,
    min_vio,
    utilisation,
)
from moetrace.metrics.chance import chance_of_dead, chance_of_maximum
from moetrace.metrics.change import bias_drift, load_change, load_change_floor
from moetrace.metrics.columns import SHOWN, shown_metrics
from moetrace.metrics.ever_used import EverUsed
from moetrace.metrics.expected_maximum import max_vio_floor
from moetrace.metrics.index_floor import (
    coverage_floor,
    dead_sub_keys_floor,
    hot_indices_floor,
    hot_overlap_floor,
    least_sure_count,
    mutual_information_floor,
    poisson_tail,
    unevenness_floor,
    unevenness_score_floor,
    uniform_rank_curve,
)
from moetrace.metrics.index_usage import (
    counts_of_counts,
    coverage,
    hot_indices,
    hot_overlap,
    least_hot_count,
    persistent_experts,
    rank_curve,
    rank_curve_of,
    rank_slope,
    top_indices,
    top_share,
    unevenness,
    unevenness_of,
)
from moetrace.metrics.index_window import INDEX_METRICS, index_metrics
from moetrace.metrics.layers import LayerSpread, spread
from moetrace.metrics.noise_floor import (
    avg_vio_floor,
    dead_experts_floor,
    load_cv_floor,
    load_gini_floor,
)
from moetrace.metrics.placement import rank_imbalance, rank_load
from moetrace.metrics.routing_scores import (
    confidence,
    load_balancing_loss,
    margin,
    routing_entropy,
    routing_entropy_normalized,
    z_loss,
)
from moetrace.metrics.sub_keys import dead_sub_keys, mutual_information, sub_key_counts
from moetrace.metrics.summary import layer_detail, layer_summary
from moetrace.metrics.usage import (
    active_experts,
    dead_experts,
    effective_experts,
    hot_experts,
    load_entropy,
    load_entropy_normalized,
)
from moetrace.metrics.window import METRICS, ScoreSums, window_metrics

__all__ = [
    "FAR_OUT",
    "HEAVY",
    "INDEX_METRICS",
    "METRICS",
    "SHOWN",
    "EverUsed",
    "LayerSpread",
    "ScoreSums",
    "active_experts",
    "avg_vio",
    "avg_vio_floor",
    "bias_drift",
    "chance_of_dead",
    "chance_of_maximum",
    "confidence",
    "counts_of_counts",
    "coverage",
    "coverage_floor",
    "dead_experts",
    "dead_experts_floor",
    "dead_sub_keys",
    "dead_sub_keys_floor",
    "effective_experts",
    "hot_experts",
    "hot_indices",
    "hot_indices_floor",
    "hot_overlap",
    "hot_overlap_floor",
    "index_metrics",
    "layer_detail",
    "layer_summary",
    "least_hot_count",
    "least_sure_count",
    "load_balancing_loss",
    "load_change",
    "load_change_floor",
    "load_cv",
    "load_cv_floor",
    "load_entropy",
    "load_entropy_normalized",
    "load_gini",
    "load_gini_floor",
    "load_imbalance",
    "load_share",
    "margin",
    "max_vio",
    "max_vio_floor",
    "min_vio",
    "mutual_information",
    "mutual_information_floor",
    "persistent_experts",
    "poisson_tail",
    "rank_curve",
    "rank_curve_of",
    "rank_imbalance",
    "rank_load",
    "rank_slope",
    "routing_entropy",
    "routing_entropy_normalized",
    "shown_metrics",
    "spread",
    "sub_key_counts",
    "top_indices",
    "top_share",
    "unevenness",
    "unevenness_floor",
    "unevenness_of",
    "unevenness_score_floor",
    "uniform_rank_curve",
    "utilisation",
    "window_metrics",
    "z_loss",
]
