"""Reports of runs: shaded sentences, tables, pages, curves. Reads traces and ``results.json``.

python -m skim.report runs/      # every results.json below, aggregated over seeds: a table, a page, Pareto pictures
"""
