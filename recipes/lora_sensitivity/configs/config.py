"""Everything that an experiment can be told, with its defaults."""

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from src.errors import ExperimentError

__all__ = [
    "PRESETS",
    "TARGET_MODULES",
    "TINY_RANDOM",
    "AnalysisConfig",
    "DataConfig",
    "DatasetType",
    "EvaluationConfig",
    "ExperimentConfig",
    "LoraConfig",
    "ModelConfig",
    "TargetModuleGroup",
    "TrainingConfig",
]

TINY_RANDOM = "tiny-random"
"""A model that is made on the spot: needs no network, no files and half a second."""


class DatasetType(StrEnum):
    """The texts that are learnt."""

    E2E_NLG = "e2e_nlg"
    SAMSUM = "samsum"


class TargetModuleGroup(StrEnum):
    """The modules that get an adapter."""

    ATTENTION_ONLY = "attention_only"
    MLP_ONLY = "mlp_only"
    BOTH = "both"
    ALL = "all"


_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
TARGET_MODULES = {
    TargetModuleGroup.ATTENTION_ONLY: _ATTENTION,
    TargetModuleGroup.MLP_ONLY: _MLP,
    TargetModuleGroup.BOTH: (*_ATTENTION, *_MLP),
    TargetModuleGroup.ALL: (*_ATTENTION, *_MLP, "embed_tokens", "lm_head"),
}
"""Last part of the names of the modules of each group."""

PRESETS = {
    "e2e_attention": (DatasetType.E2E_NLG, TargetModuleGroup.ATTENTION_ONLY),
    "e2e_mlp": (DatasetType.E2E_NLG, TargetModuleGroup.MLP_ONLY),
    "samsum_attention": (DatasetType.SAMSUM, TargetModuleGroup.ATTENTION_ONLY),
    "samsum_mlp": (DatasetType.SAMSUM, TargetModuleGroup.MLP_ONLY),
}
"""Data set and modules of each preset; whatever else is said wins over them."""


@dataclass(slots=True)
class DataConfig:
    """What is learnt.

    Attributes:
        dataset_type: The data set, which also names the columns and the prompt.
        num_samples: Samples for training and validation together; 0 for all.
        max_length: Most tokens of a sample.
        validation_split: Share of the samples that is held out; 0 for none.
        data_file: CSV, TSV, JSON or JSONL in place of the data set.
        test_file: The same for the evaluation; None takes the data set's test part, or what is
            held out.
    """

    dataset_type: DatasetType = DatasetType.E2E_NLG
    num_samples: int = 500
    max_length: int = 128
    validation_split: float = 0.2
    data_file: str | None = None
    test_file: str | None = None


@dataclass(slots=True)
class LoraConfig:
    """The adapter.

    Attributes:
        target_module_group: Where it is put.
        r: Rank.
        lora_alpha: Its output is scaled by ``lora_alpha / r``.
        lora_dropout: Probability of dropout before it.
    """

    target_module_group: TargetModuleGroup = TargetModuleGroup.ATTENTION_ONLY
    r: int = 8
    lora_alpha: int = 32
    lora_dropout: float = 0.1


@dataclass(slots=True)
class TrainingConfig:
    """The training.

    Attributes:
        batch_size: Samples per forward and device.
        gradient_accumulation_steps: Forwards per optimizer step.
        max_steps: Optimizer steps.
        learning_rate: Its highest value.
        warmup_steps: Steps until it is reached.
        seed: Of samples, initial adapter, order and dropout.
        eval_steps: Steps between validations.
        save_steps: Steps between checkpoints, where there is a validation.
        weight_decay: Of AdamW.
        max_grad_norm: Gradients are clipped to it; 0 for never.
        lr_scheduler_type: How the learning rate falls, by transformers' names.
        precision: ``fp32``, ``fp16``, ``bf16``, or ``auto``: fp16 with a GPU, else fp32.
    """

    batch_size: int = 4
    gradient_accumulation_steps: int = 4
    max_steps: int = 100
    learning_rate: float = 2e-4
    warmup_steps: int = 10
    seed: int = 42
    eval_steps: int = 10
    save_steps: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    lr_scheduler_type: str = "cosine"
    precision: str = "auto"


@dataclass(slots=True)
class ModelConfig:
    """The model.

    Attributes:
        model_id: A folder, a name on the hub, or ``tiny-random``.
    """

    model_id: str = "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"


@dataclass(slots=True)
class AnalysisConfig:
    """What is measured.

    Attributes:
        log_frequency: Steps per row; a row is the root mean square of its steps.
        layer_norms: Whether there is also a file per layer, with its pictures.
        save_format: ``csv``, or ``json`` for a JSON file with the same columns beside it.
    """

    log_frequency: int = 1
    layer_norms: bool = True
    save_format: str = "csv"


@dataclass(slots=True)
class EvaluationConfig:
    """What is generated and scored after the training.

    Attributes:
        enabled: Whether it is.
        num_samples: How many prompts; each has all its references. 0 for all.
        max_new_tokens: Longest answer.
        do_sample: Draw tokens; False takes the likeliest, which is repeatable.
        temperature: Of drawing.
        top_p: Of drawing.
    """

    enabled: bool = True
    num_samples: int = 100
    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float = 0.7
    top_p: float = 0.9


@dataclass(slots=True)
class ExperimentConfig:
    """One experiment; everything may be set after it was made.

    Attributes:
        data: What is learnt.
        lora: The adapter.
        training: The training.
        model: The model.
        analysis: What is measured.
        evaluation: What is scored.
        output_dir: Folder above those of the experiments.
        experiment_name: Name of its folder; None for data set and target, as they are then.
    """

    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output_dir: str = "./results"
    experiment_name: str | None = None

    @property
    def name(self) -> str:
        """The name, given or made of what it is about.

        >>> ExperimentConfig().name
        'e2e_attention_only'
        """
        if self.experiment_name is not None:
            return self.experiment_name
        data = DatasetType(self.data.dataset_type).value.removesuffix("_nlg")
        return f"{data}_{TargetModuleGroup(self.lora.target_module_group).value}"

    @property
    def results_dir(self) -> Path:
        """The folder of its results."""
        return Path(self.output_dir) / self.name

    def checked(self) -> Self:
        """This configuration, where it can be run.

        Raises:
            ExperimentError: A value is not what it has to be.
        """
        at_least = {
            "--max_length": (self.data.max_length, 16),
            "--num_samples": (self.data.num_samples, 0),
            "--r": (self.lora.r, 1),
            "--lora_alpha": (self.lora.lora_alpha, 1),
            "--batch_size": (self.training.batch_size, 1),
            "--grad_accum": (self.training.gradient_accumulation_steps, 1),
            "--max_steps": (self.training.max_steps, 1),
            "--warmup_steps": (self.training.warmup_steps, 0),
            "--eval_steps": (self.training.eval_steps, 1),
            "--save_steps": (self.training.save_steps, 1),
            "--max_grad_norm": (self.training.max_grad_norm, 0),
            "--log_frequency": (self.analysis.log_frequency, 1),
            "--eval_samples": (self.evaluation.num_samples, 0),
            "--max_new_tokens": (self.evaluation.max_new_tokens, 1),
        }
        for option, (value, least) in at_least.items():
            if value < least:
                raise ExperimentError(f"found {option} {value}; the least is {least}")
        for option, share in {
            "--lora_dropout": self.lora.lora_dropout,
            "--validation_split": self.data.validation_split,
        }.items():
            if not 0 <= share < 1:
                raise ExperimentError(f"found {option} {share}; it is from 0 to below 1")
        if Path(self.name).name != self.name or self.name in ("", ".", ".."):
            raise ExperimentError(
                f"found --experiment_name {self.name!r}; it names one folder below --output_dir"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain text and numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """The configuration that `to_dict` has written.

        Raises:
            ExperimentError: It holds a field that there is not.

        >>> ExperimentConfig.from_dict(ExperimentConfig().to_dict()) == ExperimentConfig()
        True
        """
        config = cls()
        _fill(config, record, "")
        config.data.dataset_type = DatasetType(config.data.dataset_type)
        group = TargetModuleGroup(config.lora.target_module_group)
        config.lora.target_module_group = group
        return config


def _fill(target: Any, record: dict[str, Any], where: str) -> None:
    known = {item.name for item in fields(target)}
    for key, value in record.items():
        if key not in known:
            raise ExperimentError(f"found no setting {where}{key}; there are {sorted(known)}")
        section = getattr(target, key)
        if is_dataclass(section) and not isinstance(section, type):
            _fill(section, value, f"{key}.")
        else:
            setattr(target, key, value)
