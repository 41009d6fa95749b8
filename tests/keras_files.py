"""A script, for a process in which Keras finds its backend: writes networks, compiled and trained, in each of Keras's
formats into the folder it is given, and the scores of some images. test_weights_keras.py runs it.

Convolutions of one shape follow each other, more than ten, so that their order matters and conv2d_10 comes after
conv2d_9.
"""

import os
import sys

NAMES = ["zeta", "alpha", "tenth", "second", "mid", "conv_10", "conv_9", "k", "x", "b", "a", "last"]
WIDTH, SIZE = 4, 8


def block(layers, x, names, normalise=True, **options):
    """Convolutions and batch norms with these names, or Keras's own if they are None."""
    for name in names:
        x = layers.Conv2D(WIDTH, 3, padding="same", name=name)(x)
        if normalise:
            x = layers.BatchNormalization(name=name and f"of_{name}", **options)(x)
        x = layers.ReLU()(x)
    return x


def head(layers, x, names):
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = layers.Dropout(0.5, seed=1)(layers.Dense(6, activation="relu", name=names[0])(x))
    x = layers.Dense(6, activation="relu", name=names[1])(x)
    return layers.Dense(6, name=names[2])(x)


def networks(keras):
    layers = keras.layers

    def functional(names, heads, **options):
        x = layers.Input((SIZE, SIZE, WIDTH))
        return keras.Model(x, head(layers, block(layers, x, names, **options), heads))

    def nested(frozen=0, normalise=True):
        inner = layers.Input((SIZE, SIZE, WIDTH))
        base = keras.Model(inner, block(layers, inner, NAMES[1:8], normalise), name="base")
        for layer in base.layers[:frozen]:
            layer.trainable = False
        x = layers.Input((SIZE, SIZE, WIDTH))
        y = base(block(layers, x, NAMES[:1], normalise))
        return keras.Model(x, head(layers, block(layers, y, NAMES[8:], normalise), ["m", "c", "j"]))

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            for name in NAMES:
                setattr(self, name, layers.Conv2D(WIDTH, 3, padding="same"))
                setattr(self, f"of_{name}", layers.BatchNormalization())
            self.flatten, self.heads = layers.Flatten(), [layers.Dense(6) for _ in range(3)]

        def call(self, x, training=False):
            for name in NAMES:
                x = keras.ops.relu(getattr(self, f"of_{name}")(getattr(self, name)(x), training=training))
            x = self.flatten(keras.ops.max(keras.ops.reshape(x, (-1, SIZE // 2, 2, SIZE // 2, 2, WIDTH)), (2, 4)))
            for dense in self.heads[:-1]:
                x = keras.ops.relu(dense(x))
            return self.heads[-1](x)

    automatic = functional([None] * 12, [None] * 3)
    return {
        "own names": functional(NAMES, ["m", "c", "j"]),
        "automatic names": automatic,
        "sequential": keras.Sequential([layers.Input((SIZE, SIZE, WIDTH)), *automatic.layers[1:]]),
        "epsilon": functional(NAMES, ["m", "c", "j"], epsilon=0.5),
        "nested": nested(),
        "nested, frozen": nested(frozen=7),
        "nested, plain": nested(normalise=False),
        "subclassed": Subclassed(),
    }


def main(folder):
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, SIZE, SIZE, WIDTH)).astype("float32")
    for name, model in networks(keras).items():
        model.compile(
            keras.optimizers.Adam(0.01, use_ema=name == "epsilon"),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        model.fit(x, np.arange(12) % 6, epochs=2, verbose=0)
        for suffix in ("weights.h5", "h5", "keras"):
            if suffix == "weights.h5":
                model.save_weights(f"{folder}/{name}.{suffix}")
            elif suffix == "keras" or name != "subclassed":
                model.save(f"{folder}/{name}.{suffix}")
        np.savez(f"{folder}/{name}.npz", x=x, scores=model.predict(x, verbose=0))


if __name__ == "__main__":
    main(sys.argv[1])
