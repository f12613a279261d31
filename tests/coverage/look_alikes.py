"""What the scan suspects and a person has found to route nothing, with the reason."""

__all__ = ["LOOK_ALIKES", "SPARE_PARTS"]

_QUERIES = "its top-k picks object queries of a detector"
_MATCHING = "its top-k is in the loss, over points to sample"

LOOK_ALIKES: dict[str, str] = {
    "autoformer": "its top-k picks time delays of its attention",
    "convbert": "its stacked parameter is a grouped linear layer: every group runs",
    "csm": "its stacked parameter holds one output head per codebook, picked by position",
    "d_fine": _QUERIES,
    "deformable_detr": _QUERIES,
    "deimv2": _QUERIES,
    "dinat": "its stacked parameter holds position biases per head",
    "edgetam_video": "its stacked parameter holds time embeddings of its memory",
    "eomt": _MATCHING,
    "eomt_dinov3": _MATCHING,
    "esmfold2": "its stacked parameter holds one output head per atom",
    "flaubert": "its top-k is a beam of answer spans",
    "funnel": "its stacked parameter holds position weights per head",
    "gemma4_assistant": "its top-k picks clusters of the vocabulary",
    "gemma4_unified": "its stacked parameter holds position embeddings",
    "gemma4_unified_assistant": "its top-k picks clusters of the vocabulary",
    "granite_docling": "its density router scores a whole sample with one number",
    "grounding_dino": _QUERIES,
    "informer": "its top-k picks queries of its attention",
    "kimi_k25": "its stacked parameter holds position embeddings; its text model is deepseek_v3",
    "kyutai_speech_to_text": "its gating is a GLU, and its stacked weights are picked by codebook",
    "lw_detr": _QUERIES,
    "mask2former": _MATCHING,
    "mm_grounding_dino": _QUERIES,
    "moshi": "its gating is a GLU, and its stacked weights are picked by codebook",
    "nemotron3_5_transcribe": "it wraps a text model of another folder, nemotron_h",
    "nemotron3_diarization": "its top-k picks frames of a cache",
    "omdet_turbo": _QUERIES,
    "oneformer": _MATCHING,
    "pp_doclayout_v2": _QUERIES,
    "pp_doclayout_v3": _QUERIES,
    "pp_doclayout_v4": _QUERIES,
    "rag": "its top-k picks answers",
    "recurrent_gemma": "its stacked parameter holds one block per head: every block runs",
    "rf_detr": _QUERIES,
    "rt_detr": _QUERIES,
    "rt_detr_v2": _QUERIES,
    "sam2_video": "its stacked parameter holds time embeddings of its memory",
    "sam3_tracker_video": "its stacked parameter holds time embeddings of its memory",
    "sam3_video": "its top-k picks objects to keep",
    "videomt": _MATCHING,
    "vjepa2": "its stacked parameter holds mask tokens",
    "xlm": "its top-k is a beam of answer spans",
    "xlnet": "its top-k is a beam of answers; its stacked parameters project for attention",
    "yolos": "its stacked parameter holds position embeddings",
    "zamba": "its stacked parameter holds one projection per head: every head runs",
}
"""Suspects that a person has looked at and that route nothing, with the reason.

A suspect without parts that is not here is an architecture that nobody has looked at.
"""

SPARE_PARTS: dict[str, str] = {
    "AriaSharedExpertsMLP": "runs for every token",
    "InklingSharedExperts": "run for every token",
    "Qwen3OmniMoeTextTopKRouter": "declared as a source of router logits, used by no module",
    "ZayaRouterMLP": "the network inside ZayaRouter",
}
"""Classes that are called like a part of a mixture of experts and are none of their own."""
