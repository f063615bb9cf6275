"""Train a compressed encoder.

$ python train.py method=transkimmer task=sst2 backbone=minilm method.target=0.5
$ python train.py -m method=dense,transkimmer seed=1,2,3          # a sweep
$ python train.py --help                                          # groups and options

The same where skim is installed and there is no checkout: python -m skim.train
"""

from skim.train import start

if __name__ == "__main__":
    start()
