"""Lines of code that load an artifact, with its own names, shapes and normalization."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exporter.card import Normalization
from exporter.formats import FORMATS
from exporter.formats.tflite.c_source import identifier
from exporter.inputs import made_of

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Tensor:
    """An input or output of an artifact as snippets see it.

    Attributes:
        name: Its name in the artifact.
        variable: A name for it that is a word in any language.
        shape: Sizes for one sample, or for the batch that the artifact insists on; free ones are 1.
        dtype: NumPy's name of the element type.
        quantization: Scale and zero point; None if it is not quantized.
        normalization: Of the raw values.
    """

    name: str
    variable: str
    shape: tuple[int, ...]
    dtype: str
    quantization: Mapping[str, Any] | None
    normalization: Normalization = field(default_factory=Normalization)

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def bits(self) -> str:
        """The number of bits of an element, as digits."""
        return re.sub(r"\D", "", self.dtype) or "8"

    def element(self, raw: str, index: str, suffix: str = "") -> str:
        """Writes an expression of the normalized element at an index, in most languages' syntax.

        Args:
            raw: Names the array of raw values.
            index: Names the index.
            suffix: Marks a number as of single precision.
        """
        given = self.normalization
        if given.reverse_channels:
            index = f"{index} + 2 - 2 * ({index} % 3)"
        value = raw.replace("?", index)

        def parts(values: tuple[float, ...], name: str) -> str:
            own = f"{self.variable}_{name}[{index} % {len(values)}]"
            return own if len(values) > 1 else _literal(values[0], suffix)

        if given.means != (0,):
            value = f"({value} - {parts(given.means, 'mean')})"
        return value if given.stds == (1,) else f"{value} / {parts(given.stds, 'std')}"

    def constants(self, suffix: str = "") -> dict[str, str]:
        """Writes means and deviations that are several, by the name of their array."""
        both = {"mean": self.normalization.means, "std": self.normalization.stds}
        return {
            f"{self.variable}_{name}": ", ".join(_literal(value, suffix) for value in values)
            for name, values in both.items()
            if len(values) > 1
        }


def _literal(value: float, suffix: str) -> str:
    digits = f"{value:.9g}"
    # In C, what has a suffix needs a point.
    return f"{digits}.0{suffix}" if suffix and digits.lstrip("-").isdigit() else digits + suffix


@dataclass(frozen=True)
class Snippet:
    """Code in one language."""

    language: str
    code: str


def snippets(
    artifact: Mapping[str, Any], manifest: Mapping[str, Any], environment: "Environment"
) -> list[Snippet]:
    """Returns the snippets of an artifact of a manifest, rendered by a Jinja environment."""
    file, taken = artifact["file"], set[str]()
    fmt = FORMATS.get(artifact["format"])  # Its package may not be installed any more.
    normalization = {
        name: made_of(Normalization, {**each, **{k: _numbers(each[k]) for k in ("mean", "std")}})
        for name, each in manifest["card"]["normalization"].items()
    }
    inputs, outputs = (
        [_tensor(each, normalization, taken) for each in file[part]]
        for part in ("inputs", "outputs")
    )
    known = {
        "file": file["path"],
        "model": manifest["model_name"],
        "inputs": inputs,
        "outputs": outputs,
        "identifier": identifier(manifest["model_name"]),
    }
    return [
        Snippet(language, environment.get_template(f"snippets/{name}.j2").render(known).strip())
        for language, name in (fmt.snippets.items() if fmt else ())
    ]


def _tensor(
    values: Mapping[str, Any], normalization: Mapping[str, Normalization], taken: set[str]
) -> Tensor:
    name = values["name"]
    word = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "tensor"
    word = word if word[0].isalpha() else f"t_{word}"
    # No language has keywords that end so.
    variable = next(v for n in range(len(taken) + 1) if (v := f"{word}_{n}") not in taken)
    taken.add(variable)
    shape = tuple(1 if size is None else size for size in values["shape"])
    given = normalization.get(name, Normalization())
    return Tensor(name, variable, shape, values["dtype"], values["quantization"], given)


def _numbers(value: Any) -> Any:
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


def quoted(text: str, language: str = "") -> str:
    """Writes a text as a literal with double quotes; Kotlin has dollars to escape."""
    literal = json.dumps(text)
    return literal.replace("$", "\\$") if language == "kotlin" else literal
