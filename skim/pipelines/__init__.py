"""Answers for many texts: transformers' pipelines, packed, sorted by length inside a window, in order out.

    classify = skim.pipeline("text-classification", "runs/sst2/ltp/minilm/<stamp>/model")
    classify(["a gripping , funny film", "dull"])         # as transformers.pipeline would, with fewer FLOPs
    for answer in classify(line for line in open("texts.txt")):  # a stream: no more than a window is held
        ...

Preprocessing and postprocessing are transformers' own; the forward, and which texts share one, are skim's.
"""
