"""Options of training."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from detect.options import Fraction, options


@options
class JointOptions:
    """Joint training: all losses in every step (Girshick 2015, §2.3; Ren et al. 2015, "approximate joint training")."""

    name: Literal["joint"] = "joint"


@options
class AlternatingOptions:
    """Alternating training of RPN and detector in four steps of `epochs` passes each (Ren et al. 2015, §3.2)."""

    name: Literal["alternating"] = "alternating"


@options
class SVMOptions:
    """Options of R-CNN's linear SVMs; the defaults are those of the paper's code.

    Args:
        c: cost of a violated margin, relative to half the squared norm of the weights.
        positive_weight: factor of `c` for positives.
        bias_scale: constant appended to each feature vector. The larger it is, the less the bias is regularised.
        negative_iou: a region is a negative of a class if its IoU with every ground truth of the class is below this.
        hard_margin: a negative enters the cache if its score is above this.
        evict_margin: a negative leaves the cache if its score is below this after training.
        retrain_after: an SVM is retrained when its cache has more new negatives than this.
        feature_norm: mean norm to which features are scaled, so that one `c` suits every layer.
    """

    c: PositiveFloat = 1e-3
    positive_weight: PositiveFloat = 2.0
    bias_scale: PositiveFloat = 10.0
    negative_iou: PositiveFloat = 0.3
    hard_margin: float = -1.0001
    evict_margin: float = -1.2
    retrain_after: NonNegativeInt = 2000
    feature_norm: PositiveFloat = 20.0


@options
class RidgeOptions:
    """Options of R-CNN's box regressors; the defaults are those of the paper's code.

    Args:
        penalty: λ, relative to the squared errors summed over the samples of a class.
        min_iou: regions are samples if their largest IoU with a ground truth is above this.
        feature_norm: mean norm to which features are scaled.
    """

    penalty: PositiveFloat = 1000.0
    min_iou: float = 0.6
    feature_norm: PositiveFloat = 20.0


@options
class RCNNStagesOptions:
    """R-CNN's training: fine-tuning, then SVMs, then box regressors (Girshick et al. 2014, §2.3).

    Args:
        fine_tuning: fine-tune the network with softmax; false keeps it as initialised or loaded, an ablation of §3.2.
        svm: linear SVMs.
        ridge: box regressors.
    """

    name: Literal["rcnn_stages"] = "rcnn_stages"
    fine_tuning: bool = True
    svm: SVMOptions = field(default_factory=SVMOptions)
    ridge: RidgeOptions = field(default_factory=RidgeOptions)


RecipeOptions = Annotated[JointOptions | AlternatingOptions | RCNNStagesOptions, Field(discriminator="name")]


@options
class TrainingOptions:
    """Options of training.

    Args:
        recipe: recipe of training; null takes the model's default: `rcnn_stages` for R-CNN, `joint` for all others.
            `alternating` is for Faster R-CNN.
        weights: file with initial weights: a checkpoint or safetensors export of detect, or weights of torchvision,
            detectron2 or YOLOX; null loads `model.backbone.weights`, if given.
        epochs: passes over the training split.
        optimizer: `sgd`, `adagrad`, `rmsprop`, `adam` or `adamw`, as in torch.
        learning_rate: learning rate of the weights after warm-up.
        momentum: momentum of SGD and RMSprop.
        nesterov: use Nesterov's momentum.
        weight_decay: weight decay of convolutions and linear layers; norms and biases have none.
        bias_lr_factor: factor of the learning rate for biases; 2 in the papers' code.
        warmup_steps: steps in which the learning rate rises from `warmup_start` times its value.
        warmup_epochs: the same in epochs, which may be fractional; null takes `warmup_steps`.
        warmup_start: factor of the learning rate at the first step.
        warmup_curve: `linear`, or `quadratic`, which rises slowly at first.
        schedule: `steps` divides the learning rate by ten at each milestone, `cosine` decays it to `final_lr_factor`
            times its value, `constant` keeps it.
        milestones: epochs, which may be fractional, for `steps`.
        final_lr_factor: factor of the learning rate at the end, for `cosine`.
        closing_epochs: number of last epochs without mosaic and mixup, in which `cosine` has reached its end, and
            YOLOX has one more loss.
        clip_norm: maximum norm of all gradients together; null for no limit.
        precision: `fp32`, or mixed: `bf16` or `fp16`; `auto` is bf16 if the hardware supports it, else fp32.
        matmul_precision: precision of float32 matrix products on a GPU, as in `torch.set_float32_matmul_precision`:
            `highest` computes all 24 bits, `high` with TF32, 11 bits, is several times as fast. Convolutions use TF32
            with either.
        deterministic: compute the same bits in each run on a GPU, where sums in parallel otherwise change their order;
            slower. On the CPU this is so without it.
        ema: decay of the exponential moving average of the weights, which is then evaluated and saved; null for none.
        ema_ramp: steps t over which the decay rises, as decay · (1 − exp(−step / t)); 0 for a constant decay.
        compile: compile the computation of the losses with torch.compile: once for each canvas and number of ground
            truths, up to 8, 32, 128 …; on a GPU this takes a minute each.
        cuda_graphs: with `compile` on a GPU, run each compiled graph as a CUDA graph, which a small batch needs: its
            thousand kernels then take no time to start.
        validate_every: epochs between validations.
        save_minutes: minutes between checkpoints within an epoch, the maximum that a killed run loses; `last.ckpt` is
            also written after each epoch. Null writes it after each epoch only.
        patience: number of validations without a better AP after which training ends; null for never.
        seed: seed of initialisation, shuffling, augmentation and sampling.
        accelerator: device of training; `auto` takes a GPU if there is one.
        devices: number of devices; null takes all GPUs, or one process on the CPU.
    """

    recipe: RecipeOptions | None = None
    weights: Path | None = None
    epochs: PositiveInt = 12
    optimizer: Literal["sgd", "adagrad", "rmsprop", "adam", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.02
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 1e-4
    bias_lr_factor: NonNegativeFloat = 1.0
    warmup_steps: NonNegativeInt = 500
    warmup_epochs: NonNegativeFloat | None = None
    warmup_start: Fraction = 0.001
    warmup_curve: Literal["linear", "quadratic"] = "linear"
    schedule: Literal["steps", "cosine", "constant"] = "steps"
    milestones: tuple[NonNegativeFloat, ...] = (8, 11)
    final_lr_factor: Fraction = 0.0
    closing_epochs: NonNegativeInt = 0
    clip_norm: PositiveFloat | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    deterministic: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    ema_ramp: NonNegativeInt = 0
    compile: bool = False
    cuda_graphs: bool = False
    validate_every: PositiveInt = 1
    save_minutes: PositiveFloat | None = 15.0
    patience: PositiveInt | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: PositiveInt | None = None

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> TrainingOptions:
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError(
                "nesterov is for sgd with momentum; leave it out, or choose these for optimizer and momentum"
            )
        return self

    @model_validator(mode="after")
    def _cuda_graphs_are_compiled(self) -> TrainingOptions:
        if self.cuda_graphs and not self.compile:
            raise ValueError("cuda_graphs needs compile; set compile to true as well, or leave it out")
        return self

    @model_validator(mode="after")
    def _does_not_only_close(self) -> TrainingOptions:
        if self.closing_epochs >= self.epochs:
            raise ValueError(
                f"of {self.epochs} epochs, {self.closing_epochs} are closing ones; give fewer closing_epochs, or more "
                "epochs"
            )
        return self

    @property
    def closing_from(self) -> int:
        """First of the closing epochs, counted from 0; the number of epochs if there are none."""
        return self.epochs - self.closing_epochs
