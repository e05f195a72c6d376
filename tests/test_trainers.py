"""Networks that accelerate and Lightning train are pruned between two epochs, where these are."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import chanprune

SHAPE = (3, 12, 12)


def network():
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)),
    )


def loader():
    images = torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(32) % 4), batch_size=8)


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters() if parameter.dim() > 1]


def test_accelerate_trains_the_small_network_on():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader())

    def epoch(model):
        for images, labels in batches:
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(model(images), labels))
            optimizer.step()

    epoch(model)
    whole = accelerator.unwrap_model(model)
    graph = chanprune.trace(whole, SHAPE)
    plan = chanprune.select(whole, graph, ratio=0.5)
    small = chanprune.compact(whole, graph, plan)
    chanprune.carry(whole, small, graph, plan, optimizer)
    prepared = accelerator.prepare_model(small)
    before = weights(small)
    epoch(prepared)
    assert all(not torch.equal(a, b) for a, b in zip(before, weights(small), strict=True))
    assert small[0].out_channels + small[3].out_channels == 20


def test_lightning_trains_the_small_network_on(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, index):
            images, labels = batch
            return F.cross_entropy(self.net(images), labels)

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=1e-2, momentum=0.9)

    class Prune(lightning.Callback):
        before = None

        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                net = module.net
                graph = chanprune.trace(net, SHAPE)
                plan = chanprune.select(net, graph, ratio=0.5)
                module.net = chanprune.compact(net, graph, plan)
                chanprune.carry(net, module.net, graph, plan, *trainer.optimizers)
                self.before = weights(module.net)

    module, prune = Module(), Prune()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[prune],
        default_root_dir=tmp_path,
    )
    trainer.fit(module, loader())
    after = weights(module.net)
    assert all(not torch.equal(a, b) for a, b in zip(prune.before, after, strict=True))
    assert module.net[0].out_channels + module.net[3].out_channels == 20
