"""Which folders of the installed transformers hold a mixture of experts, found in their sources.

The net is wide on purpose: whatever looks like experts or like a choice among them is a suspect, so
that a new release cannot bring an architecture that nobody looks at. Nothing is imported.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Suspect", "models_folder", "scan"]

_PART = re.compile(
    r"Expert|Router|Gating|Top[Kk]Gate|(MoE|Moe|MOE)$|(MoE|Moe)[A-Z0-9]*(Block|Layer|Gate)$|MoA$|SparseMLP$"
)
_NO_PART = re.compile(
    r"PreTrained|Config|Output|For[A-Z]|Model$|Attention|Norm$|Rotary|DecoderLayer|EncoderLayer"
    r"|PatchEmbed|VisionBlock|Encoder$|Decoder$"
)
_EXPERTS_IN_CONFIG = re.compile(r"\b(?:\w+_experts?|num_experts\w*|expert_\w+|moe_\w+)\b")


@dataclass(frozen=True, slots=True)
class Suspect:
    """A folder of transformers that may hold a mixture of experts.

    Attributes:
        folder: Its name under ``transformers/models``.
        parts: Classes that are called or built like experts, routers or MoE blocks, and those that
            the model declares as a source of router logits.
        hints: What else made it a suspect, in words.
    """

    folder: str
    parts: tuple[str, ...]
    hints: tuple[str, ...]


def models_folder() -> Path:
    """``transformers/models`` of the installed release."""
    import transformers

    return Path(transformers.__file__).parent / "models"


def scan(folder: Path | None = None, *, only: str = "*") -> list[Suspect]:
    """Every suspect under ``folder``, by name; the installed transformers by default.

    Args:
        folder: Where the folders of the models are.
        only: Glob over their names.
    """
    found = []
    for path in sorted((folder or models_folder()).glob(only)):
        parts: set[str] = set()
        hints: set[str] = set()
        for source in sorted(path.glob("modeling_*.py")):
            for part, hint in _of_modeling(ast.parse(source.read_text(encoding="utf-8"))):
                parts.update({part} if part else ())
                hints.update({hint} if hint else ())
        for source in sorted(path.glob("configuration_*.py")):
            for field in _EXPERTS_IN_CONFIG.findall(source.read_text(encoding="utf-8")):
                hints.add(f"its configuration says {field}")
        if parts or hints:
            found.append(Suspect(path.name, tuple(sorted(parts)), tuple(sorted(hints))))
    return found


def _of_modeling(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and "modeling_" in node.module:
            for name in node.names:
                if "modeling_outputs" not in node.module and _is_part(name.name):
                    yield name.name, f"it imports {name.name}"
        if not isinstance(node, ast.ClassDef):
            continue
        if _is_part(node.name):
            yield node.name, ""
        for inner in ast.walk(node):
            if isinstance(inner, ast.Assign):
                yield from ((name, "") for name in _declared(inner))
            elif isinstance(inner, ast.Call):
                yield from _of_call(node.name, inner)


def _is_part(name: str) -> bool:
    return bool(_PART.search(name)) and not _NO_PART.search(name)


def _declared(node: ast.Assign) -> Iterator[str]:
    """Names of the classes that ``_can_record_outputs`` gives for ``router_logits``."""
    if not any(isinstance(t, ast.Name) and t.id == "_can_record_outputs" for t in node.targets):
        return
    if isinstance(node.value, ast.Dict):
        for key, value in zip(node.value.keys, node.value.values, strict=True):
            if isinstance(key, ast.Constant) and "router" in str(key.value):
                names = (n.id for n in ast.walk(value) if isinstance(n, ast.Name))
                yield from (name for name in names if name != "OutputRecorder")


def _of_call(owner: str, call: ast.Call) -> Iterator[tuple[str, str]]:
    name = ast.unparse(call.func).rpartition(".")[2]
    if name == "topk":
        yield "", f"{owner} takes a topk"
    elif name in ("ModuleList", "ModuleDict") and "xpert" in ast.unparse(call):
        yield owner, ""
    elif name == "Parameter" and call.args and isinstance(call.args[0], ast.Call):
        sizes = list(call.args[0].args)
        if len(sizes) == 1 and isinstance(sizes[0], ast.Tuple | ast.List):
            sizes = list(sizes[0].elts)
        if len(sizes) >= 3 and not isinstance(sizes[0], ast.Constant):
            leading = ast.unparse(sizes[0])
            if "expert" in leading:
                yield owner, ""
            else:
                yield "", f"{owner} stacks a parameter over {leading}"
