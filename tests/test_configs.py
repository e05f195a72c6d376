"""Every shipped configuration file composes and is valid."""

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from chanprune.components import KINDS, find, known
from chanprune.config import cli
from chanprune.config.cli import config_dir
from chanprune.config.schema import SECTIONS, validate
from chanprune.criteria import CRITERIA
from chanprune.data import DATASETS
from chanprune.methods import METHODS
from chanprune.models import MODELS

GROUPS = ("model", "method", "criterion", "dataset", "experiment")
FILES = sorted(
    path.relative_to(config_dir()) for group in GROUPS for path in (config_dir() / group).rglob("*")
)
CHOICES = [path for path in FILES if path.suffix == ".yaml"]


def composed(*overrides: str):
    return cli.composed("config", cli.checked(overrides, sweeps=False))


def test_there_are_as_many_choices_as_names():
    stems = {g: {path.stem for path in CHOICES if path.parts[0] == g} for g in GROUPS}
    assert stems["criterion"] == set(CRITERIA)
    assert stems["method"] == set(METHODS) and stems["dataset"] == set(DATASETS)
    forms = {"densenet40_bottleneck", "densenet100_bottleneck", "densenet100_bc"}
    assert stems["model"] == {*MODELS, *forms, "compact"} - {"densenet100"}
    assert len([path for path in CHOICES if path.parts[0] == "experiment"]) == 87


@pytest.mark.parametrize("path", [p for p in CHOICES if p.parts[0] in KINDS], ids=str)
def test_a_file_agrees_with_the_signature(path):
    """What a file of a component's own name says is the default; a file of another name differs."""
    kind, name = path.parts[0], path.stem
    values = OmegaConf.to_container(OmegaConf.load(config_dir() / path))
    values = values if "name" in values else values[kind]
    component = find(kind, values.get("library", values["name"]))
    if name == "compact":
        return
    stated = {key: value for key, value in values.items() if key in component.options}
    defaults = {key: component.options[key].default for key in stated}
    required = {key for key in stated if component.options[key].is_required}
    assert {key for key in stated if stated[key] == "???"} == required
    if name in component.names:
        assert {**stated, **dict.fromkeys(required)} == defaults
    else:
        assert all(stated[key] != defaults[key] for key in stated)


def test_a_run_records_what_its_files_leave_out():
    config = composed("dataset=cifar10", "model=densenet40_bottleneck", "method=cucb")
    assert "val_share" not in config["dataset"] and "growth" not in config["model"]
    checked = validate(config)
    assert checked["dataset"]["val_share"] == 0.1 and checked["model"]["growth"] == 12
    for kind in KINDS:
        component = find(kind, checked[kind]["name"])
        assert checked[kind].keys() == {"name", *component.options}


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_of_a_component_has_a_line_of_help(kind):
    for name in known(kind):
        component = find(kind, name)
        assert component.about
        for key, option in component.options.items():
            assert option.help.endswith("."), (name, key)


@pytest.mark.parametrize("path", CHOICES, ids=str)
def test_every_choice_composes_and_is_valid(path, tmp_path):
    choice = Path(*path.parts[1:]).with_suffix("").as_posix()
    overrides = [f"{path.parts[0]}={choice}"]
    if path.stem in ("imagefolder", "images") or "imagenet" in path.stem:
        overrides.append(f"dataset.root={tmp_path}")
    if path.stem == "custom":
        overrides.append("model.target=net:Net")
    if path.stem in ("torchvision", "timm"):
        overrides.append("model.name=resnet18")
    if path.stem == "compact":
        overrides.append("model.run=somewhere")
    config = composed(*overrides)
    assert validate(config)["seed"] == 0
    if path.parts[0] != "experiment":
        assert config[path.parts[0]]["name"] in (path.stem, path.stem.split("_")[0], "resnet18")


def test_experiments_are_the_published_recipe():
    config = composed("experiment=slimming/vgg19_cifar10")
    assert config["model"]["name"] == "vgg19" and config["dataset"]["name"] == "cifar10"
    assert config["method"]["sparsity_weight"] == 1e-4
    assert config["prune"]["ratio"] == 0.7
    for stage in (config["train"], config["finetune"]):
        assert (stage["epochs"], stage["batch_size"], stage["lr"]) == (160, 64, 0.1)
        assert stage["milestones"] == [0.5, 0.75] and stage["nesterov"]


def test_rows_of_the_prioritized_table_are_the_published_recipe():
    for classes, levels in ((10, [0.25, 0.5, 0.75, 1.0]), (100, [0.5, 1.0])):
        config = composed(f"experiment=prioritized/vgg16_cifar{classes}")
        assert config["method"]["levels"] == levels and config["method"]["sparsity_weight"] == 1e-3
        assert config["prune"]["rule"] == "elementwise" and config["prune"]["threshold"] == 0.05
        for stage in (config["train"], config["finetune"]):
            assert (stage["optimiser"], stage["lr"], stage["batch_size"]) == ("adam", 5e-4, 64)
            assert stage["milestones"] == [] and stage["weight_decay_norm"] == 0
        config = composed(f"experiment=prioritized/idp_vgg16_cifar{classes}")
        assert not config["model"]["norm"] and config["method"]["levels"] == levels
        assert (config["train"]["lr"], config["train"]["batch_size"]) == (2e-4, 32)
        assert config["finetune"]["epochs"] == 0


@pytest.mark.parametrize("model", ["vgg19", "preresnet164", "densenet40"])
@pytest.mark.parametrize(("dataset", "epochs"), [("cifar10", 160), ("cifar100", 160), ("svhn", 20)])
def test_experiments_of_cucb_are_the_poster_s_constants_on_slimming_s_schedule(
    model, dataset, epochs
):
    config = composed(f"experiment=cucb/{model}_{dataset}")
    assert (config["model"]["name"], config["dataset"]["name"]) == (model, dataset)
    assert config["method"]["exploration"] == 1 and config["method"]["every"] == 1
    assert config["prune"]["absorb"] == "none" and config["prune"]["recalibrate"] == 5000
    for stage in (config["train"], config["finetune"]):
        assert (stage["epochs"], stage["batch_size"], stage["lr"]) == (epochs, 64, 0.1)


def test_the_command_line_overrides_data_set_and_experiment():
    config = composed("experiment=slimming/vgg19_cifar10", "train.epochs=3", "prune.ratio=0.1")
    assert (config["train"]["epochs"], config["prune"]["ratio"]) == (3, 0.1)
    assert composed("dataset=cifar10", "train.epochs=7")["train"]["epochs"] == 7


def test_every_option_is_explained():
    """Each key of the main file has a comment on its line or belongs to a self-evident pair."""
    text = (config_dir() / "config.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    for section in ("run", "prune"):
        assert set(values[section]) == set(SECTIONS[section].model_fields)
        for key in values[section]:
            line = next(x for x in text.splitlines() if x.strip().startswith(f"{key}:"))
            assert "#" in line, line
