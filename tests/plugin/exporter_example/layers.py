"""The layer, as models use it: it needs Keras alone."""

import keras


@keras.saving.register_keras_serializable(package="exporter_example")
class ScaledDense(keras.layers.Layer):
    """A Dense layer whose product is multiplied by a constant."""

    def __init__(self, units, scale=0.5, activation=None, use_bias=True, **options):
        super().__init__(**options)
        self.units, self.scale, self.use_bias = units, scale, use_bias
        self.activation = keras.activations.get(activation)

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        shape = (self.units,)
        self.bias = self.add_weight(shape, "zeros", name="bias") if self.use_bias else None

    def call(self, inputs):
        product = self.scale * keras.ops.matmul(inputs, self.kernel)
        return self.activation(product if self.bias is None else product + self.bias)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)

    def get_config(self):
        activation = keras.activations.serialize(self.activation)
        own = {"units": self.units, "scale": self.scale, "activation": activation}
        return {**super().get_config(), **own, "use_bias": self.use_bias}
