from unittest.mock import Mock

import pytest
import torch
from lightning import LightningModule, Trainer

from detect.errors import UserError
from detect.structures import Batch, Images, Targets
from detect.training.callbacks import StopOnNaN


def batch(*ids: int) -> Batch:
    count = len(ids)
    images = Images(torch.zeros(count, 3, 32, 32), torch.full((count, 2), 32))
    none = torch.zeros(count, 1, dtype=torch.bool)
    targets = Targets(torch.zeros(count, 1, 4), torch.zeros(count, 1, dtype=torch.int64), none, none)
    return Batch(images, targets, torch.tensor(ids), torch.ones(count, 2))


def end_of_step(loss: float) -> None:
    stop = StopOnNaN()
    trainer, module = Mock(Trainer, global_step=5), Mock(LightningModule)
    stop.on_train_batch_end(trainer, module, {"loss": torch.tensor(loss)}, batch(7, 12), 0)


def test_a_finite_loss_passes():
    end_of_step(1e30)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_step_and_images(loss):
    with pytest.raises(UserError, match=rf"^step 5: the loss is {loss} on the images with ids 7, 12; .*clip_norm"):
        end_of_step(loss)
