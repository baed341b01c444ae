"""Slips in attention, and in the shapes of the networks about it."""

from tests.mutants.mutation import within

attention = within("attention.py")
transformer, convolution, pixelwise, unet = (
    within(f"networks/{name}.py") for name in ("transformer", "convolution", "pixelwise", "unet")
)

MUTATIONS = (
    attention(
        "scores divided by d, not by its root",
        "/ math.sqrt(queries.shape[1])",
        "/ queries.shape[1]",
        "attention-dot-product-variance",
    ),
    attention(
        "softmax over the queries",
        "jax.nn.softmax(logits, where=mask)",
        "jax.nn.softmax(logits, axis=0, where=mask)",
        "scaled-dot-product-attention",
    ),
    attention(
        "a position sees its successor",
        "jnp.tri(length, dtype=bool)",
        "jnp.tri(length, k=1, dtype=bool)",
        "transformer-permutation",
    ),
    attention(
        "the softmax's slope: p for p (1 - p) on the diagonal",
        "return off - jnp.diag(off.sum(1))",
        "return off + jnp.diag(p)",
        "softmax-saturation",
    ),
    attention(
        "the slope of two keys without its characteristic function's two",
        "2 * (w / c) ** 2",
        "(w / c) ** 2",
        "softmax-saturation",
    ),
    attention(
        "positions: wavelengths grow half as fast",
        "jnp.arange(0.0, width, 2) / width",
        "jnp.arange(0.0, width, 2) / 2 / width",
        "test_attention.py::test_positions_are_the_papers_table",
    ),
    transformer("the mask is forgotten", "(q, k, v, mask)", "(q, k, v, None)", "transformer-permutation"),
    transformer(
        "layer norm over the positions",
        "centred = h - h.mean(1, keepdims=True)",
        "centred = h - h.mean(0, keepdims=True)",
        "transformer-permutation",
    ),
    convolution(
        "even kernels are padded on the other side",
        "((k - 1) // 2, k // 2)",
        "(k // 2, (k - 1) // 2)",
        "test_pixelwise.py::test_circular_convolutions_and_their_gradients_equal_flax[conv]",
    ),
    pixelwise(
        "the way back up does not ask for the size",
        'back = size if self.padding == "SAME" else None',
        "back = None",
        "ae-pixelwise-shape",
    ),
    unet(
        "a size is refused only where it is odd",
        "if any(n % unit for n in size):",
        "if any(n % 2 for n in size):",
        "unet-shape",
    ),
    unet(
        "the time does not reach the blocks",
        "nn.silu(GroupNorm(self.groups)(h, scale, shift))",
        "nn.silu(GroupNorm(self.groups)(h))",
        "unet-shape",
    ),
)
