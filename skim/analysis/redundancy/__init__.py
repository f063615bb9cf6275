"""Redundancy of a model's layers and neurons for a task: how many of them suffice (Dalvi et al., EMNLP 2020).

Parts that work on plain arrays, and a pipeline that ties them together: states of all layers on the rows of a task,
their similarity, clusters and ranking, probes that are trained on some of them, and what a choice of them is worth.

A *neuron* is one number of a layer's states. Everywhere it is called by its index among those of all extracted layers,
``place of the layer * width + dimension``, and never by its index in a selection.

    from skim.analysis.redundancy import Probing, Rows, ccfs, layer_scores
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skim.lazy import on_first_use

if TYPE_CHECKING:  # the names of _PUBLIC, for editors and type checkers; a test holds the two together
    from skim.analysis.redundancy.analysis import Settings as Settings
    from skim.analysis.redundancy.analysis import analyse as analyse
    from skim.analysis.redundancy.clustering import THRESHOLDS as THRESHOLDS
    from skim.analysis.redundancy.clustering import cluster as cluster
    from skim.analysis.redundancy.clustering import cluster_layers as cluster_layers
    from skim.analysis.redundancy.clustering import correlation as correlation
    from skim.analysis.redundancy.clustering import members as members
    from skim.analysis.redundancy.clustering import redundant_by_layer as redundant_by_layer
    from skim.analysis.redundancy.control import control_task as control_task
    from skim.analysis.redundancy.control import selectivity as selectivity
    from skim.analysis.redundancy.elastic_net import ElasticNet as ElasticNet
    from skim.analysis.redundancy.extraction import Extraction as Extraction
    from skim.analysis.redundancy.extraction import Reading as Reading
    from skim.analysis.redundancy.metrics import METRICS as METRICS
    from skim.analysis.redundancy.metrics import metric as metric
    from skim.analysis.redundancy.probes import Probe as Probe
    from skim.analysis.redundancy.probes import train_probes as train_probes
    from skim.analysis.redundancy.probing import Probing as Probing
    from skim.analysis.redundancy.ranking import bottom_neurons as bottom_neurons
    from skim.analysis.redundancy.ranking import neurons_above as neurons_above
    from skim.analysis.redundancy.ranking import rank as rank
    from skim.analysis.redundancy.ranking import top_neurons as top_neurons
    from skim.analysis.redundancy.recipes import RECIPES as RECIPES
    from skim.analysis.redundancy.ridge import Ridge as Ridge
    from skim.analysis.redundancy.rows import Rows as Rows
    from skim.analysis.redundancy.rows import target_of as target_of
    from skim.analysis.redundancy.selection import FINE as FINE
    from skim.analysis.redundancy.selection import SHARES as SHARES
    from skim.analysis.redundancy.selection import LayerScores as LayerScores
    from skim.analysis.redundancy.selection import ccfs as ccfs
    from skim.analysis.redundancy.selection import first_above as first_above
    from skim.analysis.redundancy.selection import layer_scores as layer_scores
    from skim.analysis.redundancy.selection import select_layer as select_layer
    from skim.analysis.redundancy.selection import select_size as select_size
    from skim.analysis.redundancy.selection import sizes_of as sizes_of
    from skim.analysis.redundancy.selection import smallest_sets as smallest_sets
    from skim.analysis.redundancy.similarity import linear_cka as linear_cka
    from skim.analysis.redundancy.similarity import minibatch_cka as minibatch_cka
    from skim.analysis.redundancy.similarity import rbf_cka as rbf_cka
    from skim.analysis.redundancy.similarity import unbiased_hsic as unbiased_hsic
    from skim.analysis.redundancy.splits import cut as cut
    from skim.analysis.redundancy.splits import splits_of as splits_of
    from skim.analysis.redundancy.states import Splits as Splits
    from skim.analysis.redundancy.states import States as States
    from skim.analysis.redundancy.transfer import transfer_steps as transfer_steps

_PUBLIC = {  # public names, and the modules that they are loaded from on first use
    "Settings": "skim.analysis.redundancy.analysis",
    "analyse": "skim.analysis.redundancy.analysis",
    "THRESHOLDS": "skim.analysis.redundancy.clustering",
    "cluster": "skim.analysis.redundancy.clustering",
    "cluster_layers": "skim.analysis.redundancy.clustering",
    "correlation": "skim.analysis.redundancy.clustering",
    "members": "skim.analysis.redundancy.clustering",
    "redundant_by_layer": "skim.analysis.redundancy.clustering",
    "control_task": "skim.analysis.redundancy.control",
    "selectivity": "skim.analysis.redundancy.control",
    "ElasticNet": "skim.analysis.redundancy.elastic_net",
    "Extraction": "skim.analysis.redundancy.extraction",
    "Reading": "skim.analysis.redundancy.extraction",
    "METRICS": "skim.analysis.redundancy.metrics",
    "metric": "skim.analysis.redundancy.metrics",
    "Probe": "skim.analysis.redundancy.probes",
    "train_probes": "skim.analysis.redundancy.probes",
    "Probing": "skim.analysis.redundancy.probing",
    "bottom_neurons": "skim.analysis.redundancy.ranking",
    "neurons_above": "skim.analysis.redundancy.ranking",
    "rank": "skim.analysis.redundancy.ranking",
    "top_neurons": "skim.analysis.redundancy.ranking",
    "RECIPES": "skim.analysis.redundancy.recipes",
    "Ridge": "skim.analysis.redundancy.ridge",
    "Rows": "skim.analysis.redundancy.rows",
    "target_of": "skim.analysis.redundancy.rows",
    "FINE": "skim.analysis.redundancy.selection",
    "SHARES": "skim.analysis.redundancy.selection",
    "LayerScores": "skim.analysis.redundancy.selection",
    "ccfs": "skim.analysis.redundancy.selection",
    "first_above": "skim.analysis.redundancy.selection",
    "layer_scores": "skim.analysis.redundancy.selection",
    "select_layer": "skim.analysis.redundancy.selection",
    "select_size": "skim.analysis.redundancy.selection",
    "sizes_of": "skim.analysis.redundancy.selection",
    "smallest_sets": "skim.analysis.redundancy.selection",
    "linear_cka": "skim.analysis.redundancy.similarity",
    "minibatch_cka": "skim.analysis.redundancy.similarity",
    "rbf_cka": "skim.analysis.redundancy.similarity",
    "unbiased_hsic": "skim.analysis.redundancy.similarity",
    "cut": "skim.analysis.redundancy.splits",
    "splits_of": "skim.analysis.redundancy.splits",
    "Splits": "skim.analysis.redundancy.states",
    "States": "skim.analysis.redundancy.states",
    "transfer_steps": "skim.analysis.redundancy.transfer",
}

__all__ = [*_PUBLIC]

# statistics alone need neither torch nor a task
__getattr__, __dir__ = on_first_use(__name__, _PUBLIC)
