"""Networks that come to different ends in the atlas."""

import os
import time

from torch import nn


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


class Deciding(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def deciding():
    return nn.Sequential(nn.Conv2d(3, 8, 3), Deciding())


def narrow():
    return nn.Sequential(nn.Conv2d(3, 8, 3))


def broken():
    raise RuntimeError("no | such\nnetwork")


def dead():
    os.abort()


def endless():
    time.sleep(1000)


def large():
    return nn.Linear(2**16, 2**16)
