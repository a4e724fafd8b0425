"""The modules that are mutated, and the test files that must notice it, quickest and nearest first.

A trial runs in one process: what a test starts by a command line reads the file on the disk and sees no mutant.
"""

from __future__ import annotations

_MODELS = "tests/models/test_sam_distill.py"
_TERMS = "tests/engine/train/test_terms.py"
_DEFAULTS = "tests/config/test_part_defaults.py"
_RESTORE = ("tests/engine/restore/test_inference.py", "tests/engine/restore/test_sampling.py")
_BUILT = "tests/engine/restore/test_restore_build.py"
_SETS = ("tests/data/test_transforms.py", "tests/data/test_datasets.py", "tests/data/masks/test_mask_crop.py")
_RUNS = "tests/engine/train/test_training.py"
_DEGRADE = ("tests/data/degrade/test_degradations.py", "tests/data/test_datasets.py", _DEFAULTS)

TARGETS: dict[str, tuple[str, ...]] = {
    "sam4ir/distill/balance.py": ("tests/distill/test_balance.py", _MODELS),
    "sam4ir/distill/pool.py": ("tests/distill/test_pool.py", "tests/distill/test_spf.py", "tests/distill/test_sgr.py"),
    "sam4ir/distill/sgr.py": ("tests/distill/test_sgr.py", _MODELS, _DEFAULTS, _TERMS),
    "sam4ir/distill/spd.py": ("tests/distill/test_spd.py", _MODELS, _DEFAULTS, _TERMS),
    "sam4ir/distill/spf.py": ("tests/distill/test_spf.py", _MODELS, _DEFAULTS),
    "sam4ir/models/restoration.py": ("tests/models/test_restoration.py", _MODELS),
    "sam4ir/models/sam_diffsr.py": ("tests/models/test_sam_diffsr.py", "tests/engine/train/test_diffusion_runs.py"),
    "sam4ir/models/sam_distill.py": (_MODELS,),
    "sam4ir/diffusion/noise.py": ("tests/diffusion/test_seeded_noise.py", "tests/diffusion/test_samplers.py"),
    "sam4ir/diffusion/process.py": ("tests/diffusion/test_process.py", "tests/diffusion/test_samplers.py"),
    "sam4ir/diffusion/samplers.py": ("tests/diffusion/test_samplers.py", "tests/diffusion/test_process.py"),
    "sam4ir/diffusion/schedule.py": ("tests/diffusion/test_noise_schedule.py", "tests/diffusion/test_process.py"),
    "sam4ir/engine/train/batches.py": (
        "tests/engine/train/test_batches.py",
        "tests/data/test_stages.py",
        "tests/engine/train/test_progressive.py",
        _RUNS,
    ),
    "sam4ir/engine/train/ema.py": ("tests/engine/train/test_ema_weights.py", _RUNS),
    "sam4ir/engine/train/losses.py": ("tests/engine/train/test_losses.py",),
    "sam4ir/engine/train/schedule.py": ("tests/engine/train/test_schedule.py", _DEFAULTS),
    "sam4ir/engine/train/step.py": ("tests/engine/train/test_step.py", _RUNS, "tests/engine/train/test_recipe.py"),
    "sam4ir/engine/train/terms.py": (_TERMS,),
    "sam4ir/engine/train/views.py": ("tests/data/test_own_parts.py", "tests/engine/train/test_diffusion_runs.py"),
    "sam4ir/engine/restore/build.py": (_BUILT, *_RESTORE, "tests/engine/train/test_diffusion_runs.py"),
    "sam4ir/engine/restore/images.py": (_BUILT, "tests/test_restore_script.py"),
    "sam4ir/engine/restore/one_pass.py": _RESTORE,
    "sam4ir/engine/restore/sampling.py": ("tests/engine/restore/test_sampling.py", _BUILT),
    "sam4ir/data/cropped.py": ("tests/data/test_cropped.py", *_SETS, "tests/data/test_stages.py"),
    "sam4ir/data/transforms.py": _SETS,
    "sam4ir/data/views.py": ("tests/data/test_views.py", *_SETS, "tests/data/test_own_parts.py"),
    "sam4ir/data/windows.py": ("tests/data/test_windows.py", "tests/data/prepare/test_prepare.py"),
    "sam4ir/data/degrade/blur.py": _DEGRADE,
    "sam4ir/data/degrade/noise.py": _DEGRADE,
    "sam4ir/regions.py": ("tests/test_regions.py",),
}
