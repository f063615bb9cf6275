"""Redundancy of a model's layers and neurons for a task: how many of them suffice (Dalvi et al., EMNLP 2020).

Parts that work on plain arrays, and a pipeline that ties them together: states of all layers on the rows of a task,
their similarity, clusters and ranking, probes that are trained on some of them, and what a choice of them is worth.

A *neuron* is one number of a layer's states. Everywhere it is called by its index among those of all extracted layers,
``place of the layer * width + dimension``, and never by its index in a selection.
"""
