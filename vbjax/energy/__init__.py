"""Energy-based and directed models of binary units, small enough to be known exactly.

`rbm`: restricted Boltzmann machines, their exact likelihood and contrastive divergence. `boltzmann`: the general
machine, its Gibbs kernels, and the Hopfield network at zero temperature. `deep_belief`: stacked machines and their
layerwise bound. `directed`: belief networks and ancestral sampling. Read `rbm` first.
"""

from vbjax.energy.boltzmann import (
    BoltzmannMachine,
    hopfield_sweep,
    random_scan_kernel,
    random_scan_step,
    sequential_kernel,
    sequential_sweep,
    tempered,
)
from vbjax.energy.deep_belief import DeepBeliefNet, LayerwiseBound, aggregated_posterior, layerwise_bound
from vbjax.energy.directed import DirectedModel, directed_model, sigmoid_belief_net
from vbjax.energy.rbm import (
    RBM,
    Phases,
    contrastive_divergence,
    expected_contrastive_divergence,
    gibbs_chain,
    gibbs_step,
    initial_rbm,
    likelihood_phases,
    persistent_contrastive_divergence,
    visible_kernel,
)
from vbjax.energy.states import MAX_KERNEL_UNITS, MAX_UNITS, states

__all__ = [
    "MAX_KERNEL_UNITS",
    "MAX_UNITS",
    "RBM",
    "BoltzmannMachine",
    "DeepBeliefNet",
    "DirectedModel",
    "LayerwiseBound",
    "Phases",
    "aggregated_posterior",
    "contrastive_divergence",
    "directed_model",
    "expected_contrastive_divergence",
    "gibbs_chain",
    "gibbs_step",
    "hopfield_sweep",
    "initial_rbm",
    "layerwise_bound",
    "likelihood_phases",
    "persistent_contrastive_divergence",
    "random_scan_kernel",
    "random_scan_step",
    "sequential_kernel",
    "sequential_sweep",
    "sigmoid_belief_net",
    "states",
    "tempered",
    "visible_kernel",
]
