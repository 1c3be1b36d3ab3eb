"""The recipe of a run: its options in groups, checked against each other and the formats."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from exporter import plugins
from exporter.errors import RecipeError, brief, did_you_mean
from exporter.formats import FORMAT_NAMES, FORMATS, VARIANT_NAMES
from exporter.formats.variants import MIXED, Variant
from exporter.inputs import parse_json
from exporter.options.channels import AUTO_CHANNELS
from exporter.options.groups import (
    ALL,
    COMPENSATED,
    FLOAT32,
    NOT_QUANTIZED,
    Cut,
    Export,
    Goal,
    Group,
    Option,
    Quantization,
    Source,
    Tuning,
    Verification,
)
from exporter.options.rank import NO_RANK
from exporter.screen import fits_screen

GROUPS: dict[str, type[Group]] = {
    "source": Source,
    "goal": Goal,
    "cut": Cut,
    "tuning": Tuning,
    "quantization": Quantization,
    "export": Export,
    "verification": Verification,
}

GROUP_OF = {option.name: name for name, group in GROUPS.items() for option in group.options()}
"""The group of each option, by the option's name."""

QUANTIZATIONS = (NOT_QUANTIZED, *(name for name in VARIANT_NAMES if name != FLOAT32))


@fits_screen
@dataclass(frozen=True, init=False)
class Recipe:
    """All that a run is asked to do; the same after a trip through JSON.

    It is made of options by name, as ``Recipe(rank=20, formats=("onnx",))``, of whole groups, as
    ``Recipe(goal=Goal(rank=20))``, or of both; the others have their defaults. Budgets and parts
    may be text as on the command line, such as ``max_size="250KB"``, and are kept as numbers.

    Attributes:
        source: The model and the data.
        goal: What the ranks are chosen by.
        cut: How kernels are factorized.
        tuning: Training after the cut.
        quantization: The numeric variants of the artifacts; ``"all"`` becomes those that the
            formats have.
        export: The artifacts, and where they are written; ``"all"`` becomes the formats whose
            packages are installed.
        verification: Tolerances.

    Raises:
        RecipeError: If an option is unknown, out of its range, or contradicts another one.
        PluginError: If a format that another package adds cannot be used.
    """

    source: Source
    goal: Goal
    cut: Cut
    tuning: Tuning
    quantization: Quantization
    export: Export
    verification: Verification

    def __init__(self, **given: Any) -> None:
        plugins.check(plugins.FORMATS)
        unknown = sorted(set(given) - set(GROUP_OF) - set(GROUPS))
        if unknown:
            raise RecipeError(
                f"Unknown options {unknown}. Known: {sorted(GROUP_OF)}."
                f"{did_you_mean(unknown, GROUP_OF)}"
            )
        for name, kind in GROUPS.items():
            options = {o: value for o, value in given.items() if GROUP_OF.get(o) == name}
            group = replace(given[name], **options) if name in given else kind(**options)
            object.__setattr__(self, name, group)
        installed = [name for name, fmt in FORMATS.items() if not fmt.extra.missing]
        formats = _known("formats", self.export.formats, FORMAT_NAMES, installed)
        object.__setattr__(self, "export", replace(self.export, formats=formats))
        had = {name for fmt in formats for name in quantizations(fmt)}
        if self.quantization.rounding != COMPENSATED:
            had.discard(MIXED)
        offered = [name for name in QUANTIZATIONS if name in had]
        chosen = _known("quantize", self.quantization.quantize, QUANTIZATIONS, offered)
        object.__setattr__(self, "quantization", replace(self.quantization, quantize=chosen))
        self._check_variants()
        target = self.goal.target
        if target and not any(FORMATS[f].is_measured(target, v) for f, v in self.artifacts):
            measured = [
                f"{name} ({', '.join(q for q, v in _variants(name) if fmt.is_measured(target, v))})"
                for name, fmt in FORMATS.items()
                if target in fmt.targets
            ]
            raise RecipeError(
                f"target {target!r} measures {', '.join(measured)}. Received: formats "
                f"{', '.join(formats)} and quantize {', '.join(chosen)}."
            )
        if self.cut.channels == AUTO_CHANNELS and not self.goal.is_budget:
            raise RecipeError(
                f"channels {AUTO_CHANNELS!r} divides a budget: give max_size, max_drop or another "
                f"limit. Received: {self.goal.kind} {getattr(self.goal, self.goal.kind)!r}. Or "
                "give channels as a part such as 0.5."
            )
        if self.tuning.train == "adaptive" and self.goal.rank in (NO_RANK, "full"):
            raise RecipeError(
                "train 'adaptive' divides what low ranks take. Received: rank "
                f"{self.goal.rank!r}. Give another rank, or a budget."
            )

    def _check_variants(self) -> None:
        """Checks that each format has one of the variants, and each variant is one of a format."""
        formats, chosen = self.export.formats, self.quantization.quantize
        if self.quantization.io_type != FLOAT32 and not self.calibrates:
            raise RecipeError(
                f"io_type {self.quantization.io_type!r} needs a variant that computes in integers. "
                f"Received: quantize {', '.join(chosen)}."
            )
        if MIXED in chosen and self.quantization.rounding != COMPENSATED:
            raise RecipeError(
                f"quantize {MIXED!r} chooses the bits of each layer by what compensated rounding "
                f"loses. Received: rounding {self.quantization.rounding!r}."
            )
        for name in formats:
            had = quantizations(name)
            if not set(had) & set(chosen):
                raise RecipeError(
                    f"quantize must name a variant of each format; {name} has {', '.join(had)}. "
                    f"Received: {', '.join(chosen)}."
                )
        for variant in chosen:
            if not any(variant in quantizations(name) for name in formats):
                having = [name for name in FORMAT_NAMES if variant in quantizations(name)]
                raise RecipeError(
                    f"quantize {variant!r} is a variant of the formats {', '.join(having)}. "
                    f"Received: formats {', '.join(formats)}."
                )

    @property
    def artifacts(self) -> tuple[tuple[str, str], ...]:
        """Format and variant of each artifact, in order."""
        return tuple(
            (name, FLOAT32 if quantization == NOT_QUANTIZED else quantization)
            for name in self.export.formats
            for quantization in self.quantization.quantize
            if quantization in quantizations(name)
        )

    @property
    def calibrates(self) -> bool:
        """Whether a variant asks for ranges of activations, and so for data."""
        return any(variant.calibrated for variant in self._variants)

    @property
    def needs_data(self) -> bool:
        """Whether a variant cannot be made without data."""
        return any(variant.needs_data for variant in self._variants)

    @property
    def has_integers(self) -> bool:
        """Whether weights of a variant are integers, whose scales are chosen by data."""
        return any(variant.scheme is not None for variant in self._variants)

    @property
    def _variants(self) -> list[Variant]:
        return [FORMATS[name].variant(variant) for name, variant in self.artifacts]

    @classmethod
    def for_verb(cls, verb: str, used: Sequence[str], choices: Mapping[str, Any]) -> "Recipe":
        """Makes the recipe of a public function, which uses some groups and single options.

        Raises:
            RecipeError: If the function does not use a choice, or ``Recipe`` refuses one.
        """
        idle = [n for n in choices if n in GROUP_OF and not {n, GROUP_OF[n]} & set(used)]
        if idle:
            raise RecipeError(
                f"{verb} does not use {', '.join(idle)}. It uses: "
                f"{', '.join(n for n, g in GROUP_OF.items() if {n, g} & set(used))}."
            )
        return cls(**choices)

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as values that JSON knows, by group and by option."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Reads what ``to_dict`` returned, or options without groups, as manifests once had them.

        Raises:
            RecipeError: If a key is unknown or a value is out of its range.
        """
        flat: dict[str, Any] = {}
        for key, value in values.items():
            group = GROUPS.get(key)
            if group is None:
                flat[key] = value
                continue
            known = [option.name for option in group.options()]
            unknown = sorted(set(value) - set(known)) if isinstance(value, Mapping) else None
            if unknown != []:
                raise RecipeError(
                    f"{key} must be an object with options of {known}. Received: {value!r}."
                    f"{did_you_mean(unknown, known)}"
                )
            flat |= value
        return cls(**flat)

    def to_json(self) -> str:
        """Returns the recipe as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Reads what ``to_json`` returned.

        Raises:
            RecipeError: If the text is no JSON object, or ``from_dict`` refuses it.
        """
        try:
            values = parse_json(text)
        except ValueError as error:
            raise RecipeError(f"The recipe is not JSON: {brief(error)}") from error
        if not isinstance(values, dict):
            raise RecipeError(f"A recipe is a JSON object. Received: {type(values).__name__}.")
        return cls.from_dict(values)


def quantizations(fmt: str) -> list[str]:
    """Returns the values of ``quantize`` that a format has variants for."""
    return [quantization for quantization, _ in _variants(fmt)]


def _variants(fmt: str) -> list[tuple[str, str]]:
    """Returns the values of ``quantize`` of a format, each with the name of its variant."""
    names = (variant.name for variant in FORMATS[fmt].variants)
    return [(NOT_QUANTIZED if name == FLOAT32 else name, name) for name in names]


def recipe_schema(*, written: bool = False) -> dict[str, Any]:
    """Returns the JSON schema of a recipe as ``to_dict`` returns it, with quantities as numbers.

    Or of one that is ``written`` by hand, with quantities as text, and options left out.
    """

    def strict(properties: dict[str, Any]) -> dict[str, Any]:
        closed = {"additionalProperties": False} | (
            {} if written else {"required": list(properties)}
        )
        return {"type": "object", **closed, "properties": properties}

    def of_option(option: Option) -> dict[str, Any]:
        if not written:
            return option.schema
        told, values = option.full_help, {**option.schema}
        if option.value.read is not None:
            values = {"anyOf": [values, {"type": "string"}]}
        return {**values, "description": told}

    schema = strict(
        {
            name: {
                "description": group.title,
                **strict({option.name: of_option(option) for option in group.options()}),
            }
            for name, group in GROUPS.items()
        }
    )
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "exporter recipe"}
    return {**draft, **schema} if written else schema


def _known(
    option: str, names: Sequence[Any], known: Sequence[str], every: Sequence[str]
) -> tuple[str, ...]:
    """Checks names, of which ``all`` stands for ``every``, and drops repetitions."""
    chosen: list[str] = []
    for name in names:
        if name != ALL and name not in known:
            raise RecipeError(
                f"Unknown name {name!r} in {option}. Known: {', '.join([*known, ALL])}."
                f"{did_you_mean(name, known)}"
            )
        chosen.extend(every if name == ALL else [name])
    if not chosen:
        raise RecipeError(f"{option} is empty. Known: {', '.join(known)}.")
    return tuple(dict.fromkeys(chosen))
