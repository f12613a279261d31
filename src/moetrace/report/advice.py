"""What to try, by what is wrong: causes that are usual and levers that exist, none of them claimed.

The page cannot know why a router went wrong. It names what has to be looked at, in the order in
which it costs least. The same levers stand in ``docs/alerts.md``.
"""

__all__ = ["ADVICE"]

ADVICE = {
    "uneven": (
        "look at the data and the padding mask of the first uneven steps; then raise the "
        "balancing coefficient or the bias update rate, or lower the router's learning rate."
    ),
    "collapse": (
        "stop and go back to a checkpoint from before step {step}, when it began to show; then "
        "raise the balancing coefficient or the bias update rate, lower the router's learning "
        "rate, warm it up longer."
    ),
    "never_even": (
        "it was like this from the start: wait while the figure falls; where it does not, look at "
        "the padding mask, raise the balancing coefficient or the bias update rate, lower the "
        "router's learning rate, or initialise the router smaller."
    ),
    "dead": (
        "a bias that lifts starved experts (loss-free balancing), a lower router learning rate, "
        "another initialisation of the router; from a checkpoint in which they lived they may "
        "come back."
    ),
    "silent": (
        "look for a branch of the model that no longer runs, a module that was replaced after "
        "attach, a mask over all its tokens; moetrace doctor RUN says which routers are called."
    ),
    "certain": (
        "router z-loss, the router in float32, a lower router learning rate; a router that is "
        "certain of every token learns nothing more from its choices."
    ),
    "nonfinite": (
        "the router in float32, router z-loss, a lower learning rate; look at the step before the "
        "first one."
    ),
    "dropped": "a larger capacity factor, or a better balance first.",
    "untrained": (
        "is the router in the optimizer, does it get a gradient, is its learning rate above 0; in "
        "bfloat16 an update below half a unit in the last place changes nothing."
    ),
    "gradients": "gradient clipping, a lower learning rate, a loss scale that can recover.",
    "identity": "nothing, if the model has them on purpose; they are in no balance figure.",
    "out_of_range": "compare the router's number of experts with the ids that it produces.",
    "fault": "what can be read is shown; moetrace inspect RUN lists every fault.",
}
"""What to try, by the kind of a finding; that of ``collapse`` has a ``{step}`` to fill in."""
