"""One command for a machine with a GPU: laws of static rows there, then times beside what they have to beat.

    python -m skim.benchmark.gpu

needs no data, no network and no pretrained weights, takes under eight minutes and ends with one table. Every part runs
in a process of its own: what breaks a GPU's context ends that part, with its reason as a line of the table, and no
other one. ``--device cpu --quick`` runs all of it on tiny shapes, to see that it would.
"""
