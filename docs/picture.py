"""Draw docs/picture.svg: the tokens of a sentence that each layer of a trained model computes.

    python docs/picture.py runs/transkimmer/model "the plot is paper-thin and the jokes fall flat , but ..."

docs/results/transkimmer.md has the commands that trained the model. Light and dark, as the reader prefers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import AutoTokenizer

import skim
from skim.report.heatmap import read
from skim.report.svg import grid, write_svg

if __name__ == "__main__":
    folder, text = sys.argv[1:]
    (skimmed,) = read(skim.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), [text])
    write_svg(Path(__file__).with_name("picture.svg"), grid(skimmed, cell=30))
    print(skimmed.rows)
