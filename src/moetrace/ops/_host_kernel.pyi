def add(
    row: int,
    num_experts: int,
    tokens: int,
    chosen: int,
    ids: int,
    logits: int,
    kind: int,
    row_bytes: int,
    scoring: int,
    weights: int,
    real: int,
    /,
) -> None:
    """Add one forward of a router to its sums; addresses are trusted.

    Letters: T tokens, E experts, K chosen per token. An address of 0 says that there is no such
    part. The interpreter goes on meanwhile where there are more than a million scores.

    Args:
        row: Address of the sums, int64, ``(W,)``, in the order of `moetrace.layout`.
        num_experts: E, at least 1.
        tokens: T.
        chosen: K, at least 1.
        ids: Address of the chosen experts, int64, ``(T, K)``, contiguous.
        logits: Address of the scores before softmax, sigmoid or whatever it is, ``(T, E)``.
        kind: What a logit is: 0 float32, 1 bfloat16.
        row_bytes: Bytes from one token's logits to the next one's.
        scoring: Position in `moetrace.layout.SCORINGS`.
        weights: Address of the gate weights, float32, ``(T, K)``, contiguous.
        real: Address of the mask, bool, ``(T,)``: other than 0 where a token counts.

    Raises:
        MemoryError: There is none for three rows of scores.
        TypeError: An argument is no whole number, or their number is another one.
        OverflowError: An argument does not fit 64 bits.
    """
