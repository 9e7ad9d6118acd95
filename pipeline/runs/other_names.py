"""What else the settings of a recipe are called: in papers, in timm, in other programs.

A recipe takes none of these; the error that one leads to names the setting that is meant.
"""

MODEL = {
    "image_size": "img_size resolution size",
    "patch_size": "patch",
    "in_channels": "in_chans channels",
    "num_classes": "classes",
    "width": "dim embed_dim hidden_size",
    "depth": "layers num_layers",
    "num_heads": "heads n_heads",
    "dropout": "drop_rate",
    "drop_path": "drop_path_rate stochastic_depth",
    "pool": "global_pool pooling",
    "pos_embed": "position_embedding",
    "layer_scale": "init_values",
    "register_tokens": "reg_tokens num_register_tokens",
    "qk_norm": "qk_normalization",
    "gradient_checkpointing": "grad_checkpointing checkpointing",
}
AUGMENT = {
    "vertical_flip": "vflip",
    "horizontal_flip": "hflip flip",
    "shift": "translate",
    "scale": "zoom",
    "rotate_degrees": "rotate rotation degrees",
    "tone": "brightness contrast color_jitter",
    "coarse_dropout": "cutout random_erasing",
}
TRAIN = {
    "seed": "random_state",
    "init": "pretrained weights checkpoint",
    "num_folds": "folds n_splits k",
    "epochs": "num_epochs max_epochs n_epochs",
    "batch_size": "bs batch",
    "accumulation": "grad_accum accumulation_steps",
    "sampling": "sampler",
    "positive_label": "label_smoothing smoothing",
    "positive_weight": "pos_weight",
    "focal_gamma": "gamma focal",
    "auxiliaries": "aux auxiliary",
    "optimizer": "opt optim",
    "layer_decay": "llrd",
    "frozen_layers": "freeze",
    "learning_rate": "lr max_lr base_lr",
    "warmup_epochs": "warmup",
    "weight_decay": "wd decay",
    "clip_norm": "grad_clip max_norm clip_grad",
    "ema_decay": "ema model_ema",
    "precision": "amp dtype fp16 mixed_precision",
    "device": "gpu accelerator",
    "workers": "num_workers",
}
