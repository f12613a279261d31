"""Scores of answers against what people wrote: BLEU, ROUGE and METEOR, all from 0 to 1.

Each is of a package of its own and stays null, with the reason, where that is missing. Which
variant was taken is written beside the scores: figures of different variants are not comparable.
"""

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["METRICS", "scored"]

METRICS = ("bleu", "rouge1", "rouge2", "rougeL", "meteor")
"""The scores, by the names in the file."""


def scored(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """All scores of some answers.

    Args:
        answers: One per prompt.
        references: For each prompt what people wrote, one text at least.

    Returns:
        `METRICS` and ``num_samples``; ``variants`` says how each was formed, ``missing`` why one is
        null.

    Raises:
        ValueError: There is no answer, or not one list of references for each.
    """
    if not answers or len(answers) != len(references):
        raise ValueError(f"found {len(answers)} answers and {len(references)} lists of references")
    scores: dict[str, Any] = dict.fromkeys(METRICS)
    variants: dict[str, str] = {}
    missing: dict[str, str] = {}
    takes: dict[str, Callable[..., tuple[dict[str, float], dict[str, str]]]] = {
        "sacrebleu": _bleu,
        "rouge_score": _rouge,
        "nltk": _meteor,
    }
    for package, take in takes.items():
        try:
            found, how = take(answers, references)
        except ImportError as error:
            missing[package] = f"pip install {package} ({error})"
            continue
        scores.update(found)
        variants.update(how)
    return {**scores, "num_samples": len(answers), "variants": variants, "missing": missing}


def _bleu(
    answers: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, str]]:
    from sacrebleu.metrics import BLEU  # type: ignore[attr-defined]

    bleu = BLEU(tokenize="13a")
    most = max(map(len, references))
    # sacrebleu wants streams: the first reference of every answer, the second of every answer, ...
    streams: list[Any] = [  # its types leave out None, its manual asks for it
        [texts[at] if at < len(texts) else None for texts in references] for at in range(most)
    ]
    found = bleu.corpus_score(list(answers), streams).score / 100
    return {"bleu": min(1.0, found)}, {"bleu": f"sacrebleu/100, corpus, {bleu.get_signature()}"}


def _rouge(
    answers: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, str]]:
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=False)
    sums = dict.fromkeys(kinds, 0.0)
    for answer, texts in zip(answers, references, strict=True):
        best = scorer.score_multi(list(texts), answer)
        for kind in kinds:
            sums[kind] += best[kind].fmeasure
    how = "rouge_score, F1, best reference of each prompt, mean over prompts, no stemming"
    return {kind: total / len(answers) for kind, total in sums.items()}, {"rouge": how}


class _NoSynonyms:
    """What METEOR asks for synonyms where there is no WordNet."""

    def synsets(self, word: str) -> list[Any]:
        del word
        return []


def _meteor(
    answers: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, str]]:
    from nltk.tokenize import wordpunct_tokenize  # type: ignore[import-untyped]
    from nltk.translate.meteor_score import meteor_score  # type: ignore[import-untyped]

    dictionary, variant = _dictionary()
    total = 0.0
    for answer, texts in zip(answers, references, strict=True):
        wanted = [wordpunct_tokenize(text) for text in texts]
        total += meteor_score(wanted, wordpunct_tokenize(answer), wordnet=dictionary)
    how = f"nltk, {variant}, best reference of each prompt, mean over prompts"
    return {"meteor": total / len(answers)}, {"meteor": how, "meteor_variant": variant}


def _dictionary() -> tuple[Any, str]:
    """WordNet where NLTK has it; without it METEOR matches equal words and equal stems only."""
    try:
        from nltk.corpus import wordnet  # type: ignore[import-untyped]

        wordnet.synsets("house")
    except (LookupError, OSError, AttributeError):
        return _NoSynonyms(), "exact+stem"
    return wordnet, "wordnet"
