"""Look at a finished run again: deterministic, packed.

$ python evaluate.py ckpt=runs/sst2/transkimmer/minilm/<stamp> what=metrics
$ python evaluate.py ckpt=... what=predict
$ python evaluate.py ckpt=... what=tokens text="a gripping , funny film"
$ python evaluate.py ckpt=... what=latency
$ python evaluate.py ckpt=... what=throughput
$ python evaluate.py ckpt=... what=curve targets=[0.3,0.5,0.7]
$ python evaluate.py ckpt=... what=curve shifts=[-0.7,0,0.7] timed=true
$ python evaluate.py ckpt=... what=depth
$ python evaluate.py ckpt=... what=redundancy
$ python evaluate.py what=redundancy backbone=minilm task=rte

The same where skim is installed and there is no checkout: python -m skim.evaluate
"""

from skim.evaluate import start

if __name__ == "__main__":
    start()
