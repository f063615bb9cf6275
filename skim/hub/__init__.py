"""The one door for names of data sets and models: a mirror folder, then the Hugging Face cache, then the hub.

    export SKIM_MIRROR=/data/mirror
    python -m skim.hub fetch task=sst2,mrpc backbone=minilm    # on a machine with internet: fill the mirror
    python -m skim.hub list                               # what the mirror holds, and what of it is complete
    python -m skim.hub convert <in> <out>                 # a published Funnel or ALBERT-ACT, see skim/hub/convert.py

A mirror holds ``datasets/<hub id>/<config>/<split>.parquet``, or the hub's own files of a split, such as
``train-00000-of-00002.parquet``, and ``models/<hub id>/``. Compute nodes without internet need nothing else, and never
wait for the hub: it is asked once, briefly, before anything is downloaded from it.
"""

from __future__ import annotations

from skim.hub.data import dataset, held, lacking, parquet
from skim.hub.door import mirror
from skim.hub.models import complete, model_path, tokenizer_of

__all__ = ["complete", "dataset", "held", "lacking", "mirror", "model_path", "parquet", "tokenizer_of"]
