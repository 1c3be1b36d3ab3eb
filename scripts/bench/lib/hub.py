"""Backbones of keras_hub as entries of the corpus: small, with random weights."""

import corpus
import keras_hub

TEXT = {"vocabulary_size": 400, "num_layers": 2, "num_heads": 2, "hidden_dim": 32}
FEED_FORWARD, LENGTH = 64, 48


@corpus.architecture("keras_hub: BertBackbone")
def hub_bert():
    return keras_hub.models.BertBackbone(
        **TEXT,
        intermediate_dim=FEED_FORWARD,
        max_sequence_length=LENGTH,
        num_segments=corpus.WORDS,
    )


@corpus.architecture("keras_hub: GPT2Backbone")
def hub_gpt2():
    return keras_hub.models.GPT2Backbone(
        **TEXT, intermediate_dim=FEED_FORWARD, max_sequence_length=LENGTH
    )


@corpus.architecture("keras_hub: DebertaV3Backbone")
def hub_deberta():
    return keras_hub.models.DebertaV3Backbone(
        **TEXT, intermediate_dim=FEED_FORWARD, max_sequence_length=LENGTH, bucket_size=8
    )


@corpus.architecture("keras_hub: ViTBackbone")
def hub_vit():
    return keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3),
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=FEED_FORWARD,
    )


@corpus.architecture("keras_hub: WhisperBackbone")
def hub_whisper():
    return keras_hub.models.WhisperBackbone(
        **TEXT,
        intermediate_dim=FEED_FORWARD,
        max_encoder_sequence_length=2 * LENGTH,
        max_decoder_sequence_length=LENGTH,
    )
