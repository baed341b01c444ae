"""Synthetic motion of a skeleton whose law is known: a mixture of gaits, each a linear Gaussian state-space model.

    z_{t+1} = A_g z_t + N(0, Q_g),   x_t = pose + H_g z_t + N(0, jitter² I),   z_1 stationary, gait g ~ weights

The state z holds two damped oscillators, which swing all bones together, and a slow walk of every bone on its own. So
the law of a whole motion is Gaussian given its gait, with `MotionLaw.covariances`, and past and future are parts of
it. Start at `walker`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vbjax.types import PRNGKey

PARENTS = (-1, 0, 1, 1, 3, 1, 5, 0, 7, 0, 9)
"""The joints of `walker`: pelvis, chest, head, elbow, hand, elbow, hand, knee, foot, knee, foot."""

_POSE = np.array(
    # sideways, up, forward
    [
        [0.0, 0.0, 0.0],
        [0.0, 0.55, 0.0],
        [0.0, 0.9, 0.0],
        [0.32, 0.3, 0.0],
        [0.38, 0.0, 0.1],
        [-0.32, 0.3, 0.0],
        [-0.38, 0.0, 0.1],
        [0.13, -0.45, 0.05],
        [0.13, -0.9, 0.0],
        [-0.13, -0.45, 0.05],
        [-0.13, -0.9, 0.0],
    ]
)


class MotionLaw(NamedTuple):
    """Given gait g of G: state z of size k, positions of `joints` joints in three dimensions, in metres.

    weights: p(g). transition A, state_scale: the square root of Q, diagonal. stationary: standard deviations of z_1,
    independent. observation H: `(G, 3 joints, k)`. pose: `(joints, 3)`. jitter: a standard deviation.
    """

    weights: Float[np.ndarray, " G"]
    transition: Float[np.ndarray, "G k k"]
    state_scale: Float[np.ndarray, "G k"]
    stationary: Float[np.ndarray, "G k"]
    observation: Float[np.ndarray, "G m k"]
    pose: Float[np.ndarray, "joints 3"]
    jitter: float

    def sample(self, key: PRNGKey, frames: int) -> Float[Array, "{frames} joints 3"]:
        """One motion, frame by frame."""
        key_gait, key_start, key_state, key_jitter = jax.random.split(key, 4)
        g = jax.random.categorical(key_gait, jnp.log(_single(self.weights)))
        A, H, scale = (_single(v)[g] for v in (self.transition, self.observation, self.state_scale))
        start = _single(self.stationary)[g] * jax.random.normal(key_start, scale.shape)

        def step(z, noise):
            return A @ z + scale * noise, H @ z

        _, positions = jax.lax.scan(step, start, jax.random.normal(key_state, (frames, *scale.shape)))
        positions = positions.reshape(frames, *self.pose.shape) + _single(self.pose)[None]
        return positions + self.jitter * jax.random.normal(key_jitter, positions.shape)

    def covariances(self, frames: int) -> Float[np.ndarray, "G d d"]:
        """Covariance of `frames` frames in a row, flattened to d = frames x joints x 3, given each gait.

        The mean is the pose, whatever the gait.
        """
        size = self.pose.size
        covariances = np.empty((len(self.weights), frames * size, frames * size))
        for g, (A, H, scale) in enumerate(zip(self.transition, self.observation, self.stationary, strict=True)):
            lagged = np.diag(scale**2)
            for lag in range(frames):
                block = H @ lagged @ H.T  # Cov(x_{t + lag}, x_t), that of z being A^lag times the stationary one
                for t in range(frames - lag):
                    late, early = (slice(i * size, (i + 1) * size) for i in (t + lag, t))
                    covariances[g, late, early], covariances[g, early, late] = block, block.T
                lagged = A @ lagged
        covariances += self.jitter**2 * np.eye(frames * size)
        return covariances


def adjacency(parents: tuple[int, ...]) -> Float[np.ndarray, "joints joints"]:
    """The graph of a tree: parents[j] comes before joint j; -1 marks a root. Raises ValueError for anything else."""
    if any(not -1 <= parent < joint for joint, parent in enumerate(parents)):
        raise ValueError(f"parents must come before their joints, -1 for a root; got {parents}")
    A = np.zeros((len(parents), len(parents)))
    for joint, parent in enumerate(parents):
        if parent >= 0:
            A[joint, parent] = A[parent, joint] = 1
    return A


def walker(*, jitter: float = 0.025, seed: int = 0) -> MotionLaw:
    """A person of eleven joints who walks, runs or waves with one arm, seen at about ten frames a second.

    seed: of the directions in which bones swing. Frequencies, amplitudes and coordination are the gaits': arms and
    legs swing against each other, the second harmonic moves the trunk, and a waving person stands.
    """
    rng = np.random.default_rng(seed)
    bones = len(PARENTS)
    # joint j is moved by the bones on its way from the root
    path = np.zeros((bones, bones))
    for joint, parent in enumerate(PARENTS):
        path[joint] = (path[parent] if parent >= 0 else 0) + np.eye(bones)[joint]
    carry = np.kron(path, np.eye(3))
    # period in frames; swing of legs, arms, trunk; waving hand
    gaits = [(14.0, 0.2, 0.12, 0.03, 0.0), (8.0, 0.25, 0.15, 0.04, 0.0), (10.0, 0.12, 0.08, 0.03, 0.12)]
    drift, memory, damping = 0.03, 0.9, 0.97
    size = 4 + 3 * bones
    A, H = np.zeros((len(gaits), size, size)), np.zeros((len(gaits), 3 * bones, size))
    tremble = 0.02 * rng.normal(size=(bones, 3, 4))
    for g, (period, legs, arms, trunk, wave) in enumerate(gaits):
        for pair in range(2):
            angle = 2 * math.pi * (pair + 1) / period
            turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            A[g, 2 * pair : 2 * pair + 2, 2 * pair : 2 * pair + 2] = damping * turn
        A[g, 4:, 4:] = memory * np.eye(3 * bones)
        swing = tremble.copy()
        forward = {3: -arms, 4: -arms, 5: arms, 6: arms, 7: legs, 8: legs, 9: -legs, 10: -legs}
        for joint, amplitude in forward.items():
            swing[joint, 2, 0] += amplitude
            # the far half of a limb follows a quarter of a turn behind
            swing[joint, 2, 1] += 0.5 * amplitude * (joint % 2 == 0)
        swing[:2, 1, 2] += trunk
        swing[6, :, 0] += np.array([-wave, 0.4 * wave, 0])
        H[g] = carry @ np.hstack([swing.reshape(3 * bones, 4), np.eye(3 * bones)])
    stationary = np.tile(np.concatenate([np.ones(4), np.full(3 * bones, drift)]), (len(gaits), 1))
    kept = np.concatenate([np.full(4, damping), np.full(3 * bones, memory)])
    return MotionLaw(
        weights=np.array([0.4, 0.3, 0.3]),
        transition=A,
        state_scale=stationary * np.sqrt(1 - kept**2),
        stationary=stationary,
        observation=H,
        pose=_POSE,
        jitter=jitter,
    )


def split(
    motion: Float[Array, "frames joints 3"], past: int, future: int
) -> tuple[Float[Array, "{past} joints 3"], Float[Array, "{future} joints 3"]]:
    """Past, frames 1 … P, and future, frames P+1 … P+F; raises ValueError unless the motion has P + F frames."""
    if past < 1 or future < 1 or motion.ndim != 3 or motion.shape[0] != past + future or motion.shape[2] != 3:
        raise ValueError(f"a motion of shape {motion.shape} is no {past} + {future} frames of joints in 3 dimensions")
    return motion[:past], motion[past:]


def _single(values: Float[np.ndarray, "..."]) -> Float[Array, "..."]:
    return jnp.asarray(values, jnp.float32)
