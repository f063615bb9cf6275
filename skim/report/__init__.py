"""Reports of runs: shaded sentences, tables, pages, curves. Reads traces and ``results.json``.

python -m skim.report runs/      # every results.json below, aggregated over seeds, and the accuracy-cost curves
"""
