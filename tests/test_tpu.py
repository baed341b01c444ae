"""Every kind of train step compiles for TPU with the real compiler, four chips, the batch split over them.

No TPU is needed, but its compiler: `pip install libtpu` in the version that the installed jax asks for.
"""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from vbjax import training
from vbjax.diffusion.decoders import embed_levels
from vbjax.diffusion.losses import denoising_loss
from vbjax.gan.values import GAMES
from vbjax.networks.denoisers import mlp_denoiser, unet_denoiser
from vbjax.networks.gan import conv_gan
from vbjax.networks.hierarchical_vae import hierarchical_vae
from vbjax.networks.vae import conv_vae, mlp_vae

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU's compiler, is missing"),
]

BATCH = 64


def denoising(networks):
    def objective(key, denoiser, x):
        key_level, key_noise = jax.random.split(key)
        gamma = jax.random.uniform(key_level, minval=-8.0, maxval=6.0)
        return denoising_loss(key_noise, denoiser, embed_levels(x, levels=17), gamma), {}

    return networks.init, networks.loss(objective), jnp.float32, networks.classes


def vae(networks):
    return networks.init, networks.loss(samples=5), jnp.uint8, 0


def gan(networks):
    return networks.init, networks.loss(GAMES["hinge"], r1=1.0), jnp.float32, 10


DIGIT, LOGISTICS = (8, 8), {"likelihood": "autoregressive_logistic_mixture", "levels": 17}
STEPS = {
    "mlp VAE": lambda: (DIGIT, vae(mlp_vae(DIGIT, latent_dim=8, hidden=(64,), **LOGISTICS))),
    "VAE of flows": lambda: (
        DIGIT,
        vae(mlp_vae(DIGIT, latent_dim=8, hidden=(64,), encoder="flow", prior="flow", **LOGISTICS)),
    ),
    "conv VAE": lambda: ((28, 28), vae(conv_vae((28, 28), latent_dim=8, **LOGISTICS))),
    "hierarchical VAE": lambda: (DIGIT, vae(hierarchical_vae(DIGIT, latent_dims=(4, 8), hidden=(64,), **LOGISTICS))),
    "mlp denoiser": lambda: (DIGIT, denoising(mlp_denoiser(DIGIT, width=64, prediction="levels", levels=17))),
    "U-Net": lambda: ((28, 28), denoising(unet_denoiser((28, 28), classes=10))),
    "DCGAN": lambda: ((28, 28), gan(conv_gan((28, 28), latent_dim=16, features=(16, 32), classes=10, spectral=True))),
}


def compiled(function, *arguments, shardings):
    return jax.jit(function, in_shardings=shardings).lower(*arguments).compile()


@pytest.fixture(scope="module")
def chips():
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return topologies.make_mesh(topology, (4,), ("examples",))


@pytest.mark.parametrize("name", STEPS)
def test_a_train_step_compiles_for_four_chips_which_add_up_their_gradients(name, chips):
    shape, (init, loss, dtype, classes) = STEPS[name]()
    optimizer = training.make_optimizer(learning_rate=1e-3, schedule="cosine", steps=10)
    state = jax.eval_shape(lambda: training.init_state(init(jax.random.key(0)), optimizer, ema_decay=0.9))
    data = jax.ShapeDtypeStruct((BATCH, *shape), dtype)
    if classes:
        data = (data, jax.ShapeDtypeStruct((BATCH,), jnp.int32))

    def step(state, data):
        key = jax.random.key(1)
        return training.train_step(key, loss, lambda _: data, optimizer, state, ema_decay=0.9)

    everywhere, split = (NamedSharding(chips, PartitionSpec(*axes)) for axes in ((), ("examples",)))
    program = compiled(step, state, data, shardings=(everywhere, split))
    assert "all-reduce" in program.as_text()
    # 16 GiB a chip
    assert program.memory_analysis().temp_size_in_bytes < 16 * 2**30


def test_a_program_that_cannot_fit_is_refused_by_the_compiler(chips):
    """So that the test above can fail: a matrix of 64 GiB on every chip."""
    x = jax.ShapeDtypeStruct((2**17, 2**17), jnp.float32)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?i)memory|exceed|hbm"):
        compiled(jnp.sin, x, shardings=NamedSharding(chips, PartitionSpec()))
