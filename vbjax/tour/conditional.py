"""The tour's conditional VAE: trained in seconds on the digits, shown by what its code keeps when the class changes."""

import jax
import jax.numpy as jnp

from vbjax import conditional, datasets, evaluation, latent_space, progress, training
from vbjax.distributions import Categorical
from vbjax.networks.conditional_vae import mlp_cvae
from vbjax.reports import Section, image, latent_pictures, pictures, prose, section, table
from vbjax.types import PRNGKey

CLASSES = 10
SAMPLES = 50
"""K of the IWAE-K bounds."""


def conditional_section(key: PRNGKey, *, steps: int = 600) -> Section:
    """Train a class-conditional VAE on the 8x8 digits and return its section of the page.

    Test bounds on log p(x|y) and log p(x), the Bayes classifier, and analogies. Raises ValueError for no steps.
    """
    data = datasets.load("digits").on_device()
    networks = mlp_cvae(
        (8, 8),
        classes=CLASSES,
        likelihood="discretised_logistic",
        levels=data.levels,
        latent_dim=8,
        hidden=(256, 256),
        dropout=0.1,
    )
    optimizer = training.make_optimizer(learning_rate=2e-3, schedule="cosine", steps=steps)
    key_init, key_data, key_train, key_evidence = jax.random.split(key, 4)
    state = training.init_state(jax.jit(networks.init)(key_init), optimizer, ema_decay=0.99)
    rows: list[training.Row] = []
    with progress.Progress(steps) as bar:

        def on_chunk(state: training.TrainState, row: training.Row) -> None:
            rows.append(row)
            bar.update(row)

        state = training.fit(
            key_train,
            networks.loss(),
            datasets.batches(key_data, (data.train_images, data.train_labels), 128),
            optimizer,
            state,
            steps=steps,
            chunk=100,
            ema_decay=0.99,
            on_chunk=on_chunk,
        )
    images, labels = jnp.asarray(data.test_images, jnp.float32), jnp.asarray(data.test_labels)
    class_prior = Categorical(jnp.log(jnp.bincount(jnp.asarray(data.train_labels), length=CLASSES).astype(jnp.float32)))

    @jax.jit
    def measure(key, params, images):
        cvae = networks.bind(params)
        drawn = jax.vmap(lambda x, y: latent_space.analogies(cvae, x, y, classes=CLASSES))(images, labels)
        evidence = conditional.class_evidence(key, cvae, class_prior, images, samples=SAMPLES, batch_size=64)
        return evidence, latent_space.style_kept(drawn, images, labels)

    evidence, kept = measure(key_evidence, state.averaged, images)
    given_class, marginal = evidence.at(labels).likelihood(64), evidence.marginal().likelihood(64)
    right = evaluation.over_examples((evidence.log_posterior().argmax(1) == labels).astype(jnp.float32))
    figure = latent_pictures.analogies(
        networks.bind(state.averaged),
        images,
        labels,
        latent_pictures.style_values(images, labels, classes=CLASSES),
        [str(y) for y in range(CLASSES)],
    )
    caption = (
        "A test digit with much or little of a style (left) and every class drawn at its code; red: its own class. "
        "Smoothed between the 8×8 pixels."
    )
    return section(
        "The class given: what is left is style",
        prose(
            f"A conditional VAE reads the label beside the pixels and beside the code, so that the code need not hold "
            f"it. Trained for {steps} steps in {rows[-1]['seconds']:.0f} s. Summing p(y) p(x|y) over the ten classes "
            "gives a bound on log p(x), on the same integers as every other row of this page, and Bayes' rule a "
            "classifier."
        ),
        table(
            ("conditional VAE, 450 test digits", "value", "unit"),
            [
                (f"−log p(x|y), IWAE-{SAMPLES}", given_class.bits_per_dim, "bits/dim"),
                (f"−log p(x), IWAE-{SAMPLES} of each class", marginal.bits_per_dim, "bits/dim"),
                ("accuracy of the Bayes classifier", right, "fraction"),
                ("slant kept when the class changes", kept["slant"], "correlation"),
                ("ink kept when the class changes", kept["ink"], "correlation"),
            ],
            caption="In parentheses: the standard error over test images",
        ),
        image(pictures.png(figure), alt=caption, caption=caption),
        id="conditional-vae",
    )
