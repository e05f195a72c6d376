"""The training loop itself: which epoch a stage hands on, and that every option has its effect."""

import copy
from dataclasses import fields
from statistics import fmean

import pytest
import torch
from torch import Tensor, nn

from chanprune.channels import trace
from chanprune.methods import Method, PruneOptions
from chanprune.pipeline.loop import Stage, train
from chanprune.pipeline.optimiser import TrainOptions
from chanprune.pipeline.record import Record
from chanprune.processes.interruption import Interruption
from tests.networks import SMALL, SMALL_SHAPE
from tests.test_pipeline import STAGE

IMAGES = 8


class Numbered:
    """Batches of noise, the first value of each image its number, all of class 0 or 1."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def epoch(self, index: int):
        draws = torch.Generator().manual_seed(index)
        for _ in range(self.number):
            images = torch.randn(IMAGES, *SMALL_SHAPE, generator=draws)
            images[:, 0, 0, 0] = torch.arange(IMAGES)
            yield images, torch.arange(IMAGES) % 2


class Answers(nn.Module):
    """Knows the class of so many of the images."""

    def __init__(self, right: int) -> None:
        super().__init__()
        self.right = nn.Parameter(torch.tensor(right), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        number = images[:, 0, 0, 0].long()
        is_right = number < self.right
        return torch.eye(2)[torch.where(is_right, number, number + 1) % 2]


class Scripted(Method):
    """Shows networks that classify given numbers of the images, other ones after each epoch."""

    def __init__(self, script) -> None:
        super().__init__()
        self.script = iter(script)
        self.states: list[dict[str, Tensor]] = []

    def validated(self, model: nn.Module) -> dict[str, nn.Module]:
        self.states.append(copy.deepcopy(model.state_dict()))
        return {f"_{i}": Answers(right) for i, right in enumerate(next(self.script))}


def trained(folder, method: Method, keep: str = "last", **options):
    torch.manual_seed(0)
    model = SMALL["chain"]()
    stage = Stage(
        *("train", folder / "train", keep, 0, PruneOptions(ratio=0.0), "the start"),
        *(Interruption(), lambda epoch, metrics: None),
    )
    stage.folder.mkdir()
    record = Record(folder)
    setting = TrainOptions(**{**STAGE, "batch_size": IMAGES, **options})
    graph = trace(model, SMALL_SHAPE)
    batches, validation = Numbered(3), Numbered(1)
    epoch, _ = train(model, graph, batches, validation, setting, method, stage, record)
    record.close()
    return epoch, model.state_dict()


def same(left, right) -> bool:
    return all(torch.equal(left[name], tensor) for name, tensor in right.items())


def random_script(seed: int) -> list[list[int]]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, IMAGES + 1, (4, 1 + seed % 3), generator=draws).tolist()


@pytest.mark.parametrize(
    "script",
    [
        [[8, 0], [5, 5], [7, 2]],
        [[3, 5], [4, 4], [5, 3], [3, 3]],
        [[6], [6], [2]],
        [[0], [0]],
        *map(random_script, range(3)),
    ],
)
def test_the_epoch_that_is_best_on_the_mean_is_handed_on_and_of_equals_the_later(script, tmp_path):
    method = Scripted(script)
    epoch, state = trained(tmp_path, method, "best", epochs=len(script))
    best = max(range(len(script)), key=lambda index: (fmean(script[index]), index))
    assert epoch == best + 1
    assert [same(state, own) for own in method.states].index(True) == best


def test_the_last_epoch_is_handed_on_where_that_is_asked(tmp_path):
    method = Scripted([[8], [8], [0]])
    epoch, state = trained(tmp_path, method, epochs=3)
    assert epoch == 3 and same(state, method.states[-1])


CHANGES = {
    "epochs": 2,
    "lr": 0.04,
    "optimiser": "adam",
    "momentum": 0.8,
    "nesterov": False,
    "weight_decay": 1e-2,
    "weight_decay_norm": 1e-2,
    "weight_decay_bias": 1e-2,
    "schedule": "cosine",
    "milestones": [0.4],
    "lr_factor": 0.2,
    "warmup": 0.7,
    "label_smoothing": 0.1,
    "precision": "bf16",
}
OF_OTHERS = {"batch_size", "compile", "save_every_minutes"}


def test_every_option_is_tried():
    assert {field.name for field in fields(TrainOptions)} == {*CHANGES, *OF_OTHERS}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("plain"), Method(), epochs=3, schedule="step")[1]


@pytest.mark.parametrize("option", CHANGES)
def test_no_option_of_the_loop_is_passed_over(option, plain, tmp_path):
    options = {"epochs": 3, "schedule": "step", option: CHANGES[option]}
    assert not same(trained(tmp_path, Method(), **options)[1], plain)


def test_what_is_no_option_of_the_mathematics_changes_no_bit(plain, tmp_path):
    options = {"epochs": 3, "schedule": "step", "save_every_minutes": 0.0}
    assert same(trained(tmp_path, Method(), **options)[1], plain)
