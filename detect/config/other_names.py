"""Option names of other detection packages, so that the error for such a name can tell the name here."""

from __future__ import annotations

_IMAGE_SIZE = "the size of images is data.short_side, a list such as [640], and data.long_side, its limit"
_CLASSES = "classes and their number come from the data set"
_TRAIN_STAGES = (
    "it is model.backbone.train_stages, which has the opposite meaning: the number of stages that are trained, counted "
    "from the last; 0 freezes the whole backbone"
)
_PRECISION = "it is training.precision: fp32, bf16, fp16 or auto"
_SCORE = "it is model.postprocess.score_threshold; for detect predict --score"
_NMS = "it is model.postprocess.nms_threshold; the RPN has its own, model.rpn.nms_threshold"
_NO_CLASS_WEIGHTS = (
    "all classes count alike; model.region_head.positive_fraction sets the share of objects against "
    "background, and the report has the AP of each class"
)
_AUGMENT = "it is data.augment, a list of albumentations' transforms, such as [{HorizontalFlip: {p: 0.5}}]"
_NO_COPY_PASTE = "objects are not pasted into other images; data.mosaic and data.mixup combine whole images"
_STEPS = "training is measured in epochs: training.epochs"
_ROOT = "it is data.root, the folder of the data set"
_OUT = "it is an option of the command: --out DIR"

_ANSWERS = {
    # optimisation
    "lr lr0 base_lr max_lr": "it is training.learning_rate",
    "lrf min_lr min_lr_ratio": "it is training.final_lr_factor, for training.schedule: cosine",
    "lr_schedule lr_scheduler scheduler cos_lr": "it is training.schedule: steps, cosine or constant",
    "lr_steps lr_milestones decay_epochs step_size": "it is training.milestones, in epochs",
    "gamma lr_gamma": "the learning rate is divided by ten at each of training.milestones",
    "optim opt": "it is training.optimizer: sgd, adagrad, rmsprop, adam or adamw",
    "wd l2": "it is training.weight_decay",
    "warmup warmup_iters": "it is training.warmup_steps",
    "warmup_factor warmup_ratio": "it is training.warmup_start",
    "epoch num_epochs max_epochs n_epochs": "it is training.epochs",
    "max_steps max_iter max_iters iterations steps": _STEPS,
    "clip grad_clip clip_grad clip_grad_norm gradient_clip_val max_norm": "it is training.clip_norm",
    "ema_decay model_ema use_ema": "it is training.ema, the decay of the average, such as 0.9998",
    "amp fp16 half bf16 use_amp mixed_precision": _PRECISION,
    "accumulate grad_accum accumulate_grad_batches gradient_accumulation_steps nbs": (
        "gradients are not accumulated; raise data.batch_size, or training.devices"
    ),
    "early_stopping early_stop": "it is training.patience, in validations without a better AP",
    "val_interval eval_interval val_period eval_period check_val_every_n_epoch": "it is training.validate_every",
    "save_period save_interval checkpoint_interval save_every": "it is training.save_minutes",
    "class_weights class_weight cls_weights pos_weight": _NO_CLASS_WEIGHTS,
    "focal focal_loss fl_gamma": _NO_CLASS_WEIGHTS,
    # machine
    "device": "it is training.accelerator: auto, cpu or gpu; training.devices is the number of devices",
    "gpus num_gpus n_gpu ngpus": "it is training.devices, the number of devices",
    "distributed strategy world_size": "start several processes with torchrun --nproc-per-node N -m detect train …",
    # data
    "batch batch_size bs train_batch_size samples_per_gpu ims_per_batch": "it is data.batch_size, per device",
    "imgsz img_size image_size imagesz input_size img_scale": _IMAGE_SIZE,
    "min_size max_size": f"{_IMAGE_SIZE}; boxes have model.rpn.min_size and model.postprocess.min_size",
    "test_size": "it is data.eval_short_side, and data.long_side",
    "multi_scale multiscale": "it is data.short_side with several sizes, such as [480, 640, 800]",
    "num_workers n_workers dataloader_num_workers workers_per_gpu": "it is data.workers",
    "data_dir data_path data_root dataset_dir dataset_root dataset": _ROOT,
    "num_classes nc n_classes class_names names": _CLASSES,
    "augmentation augmentations transforms transform hflip fliplr flipud": _AUGMENT,
    "hsv_h hsv_s hsv_v perspective": _AUGMENT,
    "degrees translate shear": (
        "they are data.mosaic.degrees, data.mosaic.translate and data.mosaic.shear; without mosaic, data.augment takes "
        "albumentations' Affine"
    ),
    "mosaic": "it is data.mosaic, a section: {} for its defaults",
    "mixup": "it is data.mixup, a section: {} for its defaults",
    "mosaic_prob": "it is data.mosaic.probability",
    "mixup_prob enable_mixup": "it is data.mixup.probability",
    "mosaic_scale": "it is data.mosaic.scale",
    "mixup_scale": "it is data.mixup.scale",
    "copy_paste": _NO_COPY_PASTE,
    "close_mosaic no_aug_epochs": "it is training.closing_epochs",
    "cache": "images are not cached; data.workers processes read and decode them",
    # network
    "pretrained pretrained_weights pretrained_backbone weights_backbone": (
        "it is model.backbone.weights: a name of torchvision's, such as IMAGENET1K_V1, or a file"
    ),
    "freeze frozen_stages freeze_at freeze_backbone freeze_layers frozen": _TRAIN_STAGES,
    "trainable_backbone_layers trainable_layers": "it is model.backbone.train_stages, counted from the last stage",
    "norm_eval freeze_bn frozen_bn": "it is model.backbone.norm: frozen",
    "sync_bn syncbn": "it is model.backbone.norm: sync",
    "arch architecture model_name": "they are model.name, the detector, and model.backbone.name",
    "anchors anchor_scales": "it is model.rpn.anchor_sizes; detect data check DIR --config CONFIG proposes better ones",
    "aspect_ratios anchor_aspect_ratios": "it is model.rpn.anchor_ratios",
    "rpn_nms_thresh": "it is model.rpn.nms_threshold",
    "rpn_batch_size_per_image": "it is model.rpn.batch_size_per_image",
    "rpn_fg_iou_thresh": "it is model.rpn.positive_iou",
    "rpn_bg_iou_thresh": "it is model.rpn.negative_iou",
    "rpn_pre_nms_top_n_train rpn_pre_nms_top_n_test": "it is pre_nms_top_k in model.rpn.training and model.rpn.testing",
    "rpn_post_nms_top_n_train rpn_post_nms_top_n_test": (
        "it is post_nms_top_k in model.rpn.training and model.rpn.testing"
    ),
    "box_batch_size_per_image": "it is model.region_head.batch_size_per_image",
    "box_positive_fraction": "it is model.region_head.positive_fraction",
    "box_fg_iou_thresh": "it is model.region_head.positive_iou",
    "box_bg_iou_thresh": "it is model.region_head.negative_iou",
    # detections
    "conf conf_thres conf_threshold confidence score score_thr score_thresh box_score_thresh": _SCORE,
    "iou iou_thres iou_thr iou_threshold nms nms_iou nms_thr nms_thresh box_nms_thresh": _NMS,
    "max_det max_dets max_per_img detections_per_img box_detections_per_img": "it is model.postprocess.max_detections",
    "agnostic_nms": "NMS compares only detections of the same class",
    # command
    "save_dir output_dir work_dir log_dir logdir output project": _OUT,
    "resume_from": "it is an option of the command: detect train --resume --out DIR",
    "tta": "they are options of detect predict: --tta-flip and --tta-scales",
}
_BY_NAME = {name: answer for names, answer in _ANSWERS.items() for name in names.split()}
OTHER_NAMES = tuple(_BY_NAME)


def answer_other_name(option: str) -> str | None:
    """Return the answer to an unknown option of this name in any section; None if no other package has the name."""
    name = option.rpartition(".")[2].lstrip("-").replace("-", "_").lower()
    return _BY_NAME.get(name)
