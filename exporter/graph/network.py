"""A Keras model as the rest of this package sees it."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import ref

from exporter.errors import ModelError
from exporter.graph.backend import require_tensorflow
from exporter.graph.calls import Call, record_calls, record_when_asked, trace_sample
from exporter.graph.conversion import recast
from exporter.graph.layers import activation_of, kind_of
from exporter.graph.macs import count_macs
from exporter.graph.names import check_names
from exporter.graph.outputs import Family, loss_name, losses_by_output, output_layers
from exporter.graph.recurrent import refuse_stateful
from exporter.graph.rewrite import Replacement, rewrite
from exporter.graph.runner import KerasRunner
from exporter.graph.signature import Signature, TensorInfo
from exporter.graph.subclassed import as_functional
from exporter.graph.types import Layer, Model, Variable
from exporter.graph.walk import first_operations, is_graph, links, own_weights, parts, walk

if TYPE_CHECKING:
    from exporter.data import OutputHint, Task


_ARITHMETIC = {"Add", "Subtract", "Multiply", "TrueDivide", "Divide"}
"""Operations of ``keras.ops`` that a model scales its input by."""


class Network:
    """A Keras model, wrapped and checked once when it enters the package.

    Its structure is read when it is first asked for, and kept; its weights are not.

    Attributes:
        model: The Keras model.
        sizes: The shape of a sample of each input by name, where the model leaves it free.
    """

    def __init__(self, model: Model, sizes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        """Checks that the model can be walked and copied; wraps a subclassed one as Functional.

        Raises:
            ModelError: If it is not a built Keras model.
        """
        require_tensorflow()
        import keras

        if not isinstance(model, keras.Model):
            raise ModelError(f"A Keras model is required. Received: {type(model).__name__}.")
        self._given = model
        if not isinstance(model, keras.Sequential) and not is_graph(model):
            model = as_functional(model)
        if not model.built or not is_graph(model):
            raise ModelError(
                f"Model {model.name!r} has not been built, so the shapes of its weights are "
                "unknown. Give it a keras.Input, or call model.build(input_shape)."
            )
        check_names(model)
        self.model, self.sizes = model, sizes or {}
        refuse_stateful(self.layers)

    @classmethod
    def of(cls, model: "Network | Model") -> "Network":
        """Wraps a Keras model, unless it is wrapped already."""
        return model if isinstance(model, cls) else cls(model)

    @property
    def compiled_loss(self) -> Any:
        """What the model was compiled with; None if it was not. A wrapper of it never is."""
        return getattr(self._given, "loss", None)

    @property
    def name(self) -> str:
        """The name of the model."""
        return str(self.model.name)

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The layers of the model by path; see ``walk``. Calls of inner ones can be asked for."""
        found, model = dict(walk(self.model)), ref(self.model)
        if any(map(parts, found.values())):
            record_when_asked(found.values(), lambda: _record_calls(model()))
        return found

    @cached_property
    def links(self) -> list[tuple[str, Layer, Layer]]:
        """Pairs of layers where the first one feeds the second one alone; see ``walk.links``."""
        return list(links(self.model))

    @cached_property
    def signature(self) -> Signature:
        """The model as a function of named inputs; sparse ones raise a ModelError."""
        return Signature(self.model, self.sizes)

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs, in the order of ``model.inputs``."""
        return self.signature.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The outputs, in the order of the flattened output structure."""
        return self.signature.outputs

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model insists on; None if any will do."""
        return next((info.fixed_batch for info in self.inputs if info.fixed_batch), None)

    @cached_property
    def _sample(self) -> tuple[int, dict[Layer, Call]]:
        function, calls = trace_sample(self.signature, self.layers.values())
        return count_macs(function) // (self.fixed_batch or 1), calls

    @property
    def macs(self) -> int:
        """The multiply-accumulates for one sample; see ``count_macs``."""
        macs, _ = self._sample
        return macs

    @property
    def calls(self) -> dict[Layer, Call]:
        """The first call of each layer on one sample, with known sizes."""
        _, calls = self._sample
        return calls

    @property
    def params(self) -> int:
        """The number of parameters."""
        return int(self.model.count_params())

    @property
    def random_states(self) -> list[Variable]:
        """States, two integers each, of what layers such as ``Dropout`` draw at random."""
        suffix = "seed_generator_state"
        return [each for each in self.model.variables if each.path.endswith(suffix)]

    @cached_property
    def scales_input(self) -> bool:
        """Whether a layer, or arithmetic, rescales or normalises what the model is given."""
        return any(
            kind_of(layer, inherited=True).scales_input for layer in self.layers.values()
        ) or any(type(first).__name__ in _ARITHMETIC for _, first in first_operations(self.model))

    def families(self, tasks: "Mapping[str, Task]") -> dict[str, Family]:
        """Tells by the last layer of each output which family of distributions the output is.

        Args:
            tasks: What labels mean, by output. Outputs for classes that are neither a softmax nor a
                sigmoid are taken for logits.
        """
        families: dict[str, Family] = {}
        for info, layer in zip(self.outputs, output_layers(self.model), strict=True):
            task = tasks.get(info.name)
            plain: Family = "gaussian"
            if task and task.classes and info.shape[-1] != 1:
                plain = "categorical_logits"
            elif task and task.is_logit:
                plain = "bernoulli_logits"
            families[info.name] = activation_of(layer).probabilities or plain
        return families

    def hints(self, loss: Any) -> "dict[str, OutputHint]":
        """Tells what is known of each output, by its last layer and by the loss."""
        from exporter.data import OutputHint

        losses = self.losses(loss)
        return {
            name: OutputHint(
                activation_of(layer).probabilities,
                loss_name(losses[name]) if name in losses else None,
                bool(getattr(losses.get(name), "from_logits", False)),
            )
            for name, layer in zip(
                [info.name for info in self.outputs], output_layers(self.model), strict=True
            )
        }

    def losses(self, loss: Any) -> dict[str, Any]:
        """Resolves a loss of ``keras.Model.compile`` to one by output; see ``losses_by_output``."""
        names = [info.name for info in self.outputs]
        # A Sequential model has no names for its only output.
        return losses_by_output(loss, names, getattr(self.model, "output_names", names))

    def runner(self, *, eager: bool = False) -> KerasRunner:
        """Returns a function that predicts named arrays; see ``KerasRunner``."""
        return KerasRunner(self.signature, eager=eager)

    def rewrite(
        self, replacements: Mapping[str, Replacement], dropped: Iterable[str] = ()
    ) -> "Network":
        """Copies the model with some layers replaced or left out; see ``rewrite.rewrite``."""
        return Network(rewrite(self.model, replacements, dropped), self.sizes)

    def copy(self) -> "Network":
        """Copies the model with its weights, under the current strategy."""
        return self.rewrite({})

    def recast(self, dtype: str) -> "Network":
        """Copies the model with every floating point dtype set to another; see ``recast``."""
        return Network(recast(self.model, dtype), self.sizes)


def _record_calls(model: Model | None) -> None:
    if model is not None:
        layers = [layer for _, layer in walk(model)]
        record_calls(Signature(model), [(layer, own_weights(layer)) for layer in layers])
